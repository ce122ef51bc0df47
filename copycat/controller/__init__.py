"""From what the cluster runs to what the mirror does, and back to what people see."""
