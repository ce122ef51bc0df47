"""Configuration: a YAML file, the environment over it, flags over both. Nobody below this package sees it."""

from __future__ import annotations

from copycat.config.settings import Settings
from copycat.config.sources import load

__all__ = ["Settings", "load"]
