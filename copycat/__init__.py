"""k8s-copycat: a restorable copy of every container image that a Kubernetes cluster runs."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
