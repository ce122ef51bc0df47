"""The Kubernetes side: what the cluster runs, told as plain values. Nobody else imports kr8s or httpx."""
