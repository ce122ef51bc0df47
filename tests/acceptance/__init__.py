"""What can be copied, between registries of every kind: a table of cases and profiles with one outcome each."""
