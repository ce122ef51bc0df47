"""What one may show to a registry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["IDENTITY_USER", "Credentials"]

#: Docker's config.json marks an identity token by this user name.
IDENTITY_USER = "<token>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one may show to a registry: a name and a password, a bearer token, or an identity token."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """Sent as Bearer; on a 401 with a Bearer challenge it is exchanged there."""
    identity_token: str = field(default="", repr=False)
    """A refresh token: exchanged by POST (registry notes 1.2)."""
    source: str = ""
    """Where it was configured, for messages: `registryCredentials[0]`."""

    @property
    def key(self) -> str:
        """An opaque name for caches that is the same for the same secret and says nothing about it."""
        secret = f"{self.username}\0{self.password}\0{self.token}\0{self.identity_token}"
        return hashlib.sha256(secret.encode()).hexdigest()[:32]

    @property
    def refresh_token(self) -> str:
        """The identity token, in either of its spellings; empty if this is another kind."""
        if self.identity_token:
            return self.identity_token
        return self.password if self.username == IDENTITY_USER else ""
