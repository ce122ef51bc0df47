"""Platforms in one spelling, so that comparing them is comparing values.

Nodes, people and image indexes write the same machine differently (`aarch64`, `arm64/v8`, `arm64`).
The normalisation is containerd's (platforms, `database.go`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from copycat.errors import InvalidReference, printable

__all__ = ["Platform"]

_SYSTEMS = {"macos": "darwin"}

_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}

#: What a variant means where it has several spellings; the base of an architecture is the empty one.
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}

#: `os[(version)]/architecture[/variant]`; the version is written as containerd does (`FormatAll`).
_PLATFORM = re.compile(
    r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]+)\))?/([A-Za-z0-9_-]+)(?:/([A-Za-z0-9_.-]+))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """What an image runs on. However it is made, the attributes are normalised."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __post_init__(self) -> None:
        system = self.os.lower()
        architecture, implied = _ARCHITECTURES.get(self.architecture.lower(), ("", ""))
        architecture = architecture or self.architecture.lower()
        variant = self.variant.lower() or implied
        object.__setattr__(self, "os", _SYSTEMS.get(system, system))
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "variant", _VARIANTS.get((architecture, variant), variant))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """The platform that `os/architecture[/variant]` names.

        Raises:
            InvalidReference: with reason `invalid_platform`.
        """
        match = _PLATFORM.fullmatch(text)
        if match is None:
            shown = printable(text, 100)
            raise InvalidReference(
                f'"{shown}" is not a platform: write os/architecture or os/architecture/variant, as in linux/arm64',
                reference=shown,
                reason="invalid_platform",
            )

        system, version, architecture, variant = match.groups()
        return cls(system, architecture, variant or "", version or "")

    def __str__(self) -> str:
        version = f"({self.os_version})" if self.os_version else ""
        # arm/v7 is written in full although it is the default: that is how indexes show it.
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}{version}/{self.architecture}{variant}"

    def matches(self, candidate: Platform) -> bool:
        """Whether `candidate` is what is wanted here: the same machine, never a merely compatible one.

        A wanted `os_version` may be a prefix (`10.0.17763`); none wanted admits every version.
        """
        wanted = (self.os, self.architecture, self.variant)
        if wanted != (candidate.os, candidate.architecture, candidate.variant):
            return False

        return not self.os_version or f"{candidate.os_version}.".startswith(f"{self.os_version}.")

    @property
    def is_unknown(self) -> bool:
        """`unknown/unknown`: BuildKit's mark for entries that are no images (attestations)."""
        return self.os == self.architecture == "unknown"
