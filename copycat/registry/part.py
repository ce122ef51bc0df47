"""What every part of a repository's API stands on: who asks, where, and how a request is made of it."""

from __future__ import annotations

from yarl import URL

from copycat.errors import DigestMismatch
from copycat.oci.digest import Digest
from copycat.registry.answers import ERROR_LIMIT, Place, Reply
from copycat.registry.auth import Login
from copycat.registry.calls import Call
from copycat.registry.keychain import ANONYMOUS, Access
from copycat.registry.transport import Transport

__all__ = ["HEAD_UNSUPPORTED", "Part"]

#: A registry does not serve HEAD here.
HEAD_UNSUPPORTED = frozenset({405, 501})


class Part:
    """A repository of a registry, with one login for all of its requests."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        name: str,
        *,
        push: bool = False,
        access: Access = ANONYMOUS,
    ) -> None:
        """Args: `registry` is normalised (`docker.io`); `push` asks for the right to write, too."""
        self.registry, self.name = registry, name
        self._transport, self._access = transport, access
        self._side = transport.side(registry)
        self._actions = "pull,push" if push else "pull"
        self._login = Login(repository=name, actions=self._actions, access=access, side=self._side)

    @property
    def access(self) -> Access:
        """On whose behalf the repository is asked."""
        return self._access

    def _place(
        self, what: str, reference: str | Digest | None = None, *, writing: bool = False
    ) -> Place:
        name = f"{self.registry}/{self.name}"
        if reference is not None:
            name += f"@{reference}" if isinstance(reference, Digest) else f":{reference}"
        return Place(
            registry=self.registry,
            what=f"{what} {name}",
            reference=name,
            side=self._side,
            writing=writing,
        )

    @staticmethod
    def _mismatch(place: Place, text: str) -> DigestMismatch:
        return DigestMismatch(
            f"{place.who}: {place.what} {text}.", side=place.side, reference=place.reference
        )

    async def _fetch(
        self,
        method: str,
        path: str,
        place: Place,
        *,
        url: URL | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        accept: frozenset[int] = frozenset(),
        follow: bool = True,
        limit: int = ERROR_LIMIT,
        counted: bool = False,
    ) -> Reply:
        return await self._transport.fetch(
            self.registry,
            Call(
                method=method,
                repository=self.name,
                path=path,
                url=url,
                place=place,
                login=self._login,
                headers=headers or {},
                body=body,
                accept=accept,
                follow=follow,
                limit=limit,
                counted=counted,
            ),
        )
