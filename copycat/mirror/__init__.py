"""Mirroring: one image from its source to the target, safely and once."""
