"""Loads the plugin that decides about tests which need a real program."""

from __future__ import annotations

pytest_plugins = ["tests.needs"]
