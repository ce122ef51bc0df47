"""Where copies go: what differs between a plain registry and one that wants its repositories made.

The mirror works with any target through this interface. Plain registries make a repository when it
is first pushed to, or belong to somebody who makes a project for them; ECR has a control plane.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from typing import Literal, TypeVar

from copycat.errors import CopycatError, Denied, NotFound, RegistryError, Unauthorized
from copycat.oci.digest import Digest
from copycat.registry.repository import Repository
from copycat.registry.transport import Transport

__all__ = ["Refusal", "Target", "names_missing_project", "target_refusal"]

T = TypeVar("T")

Refusal = Literal["target_denied", "quota", "missing_project"]

#: The longest `host/name` that common clients take (OCI distribution specification, "Pulling manifests").
MAX_NAME = 255

_QUOTA = re.compile(r"quota|storage limit|insufficient storage|limit ?exceeded", re.IGNORECASE)
_PROJECT = re.compile(
    r"\b(project|namespace|organi[sz]ation|workspace)\b.{0,160}\b(not found|does not exist|unknown)"
    r"|NAMESPACE_UNKNOWN|PROJECT_UNKNOWN",
    re.IGNORECASE,
)


class Target:
    """A registry that copies are pushed to; the base class serves every registry without a control plane."""

    kind: Literal["docker", "ecr"] = "docker"

    def __init__(
        self,
        transport: Transport,
        registry: str,
    ) -> None:
        """Args: `registry` is the host, without a path."""
        self.registry = registry
        self._transport = transport

    @property
    def max_repository(self) -> int:
        """The longest repository name, in characters."""
        return MAX_NAME - len(self.registry) - 1

    @property
    def mounts(self) -> bool:
        """Whether asking for blobs of other repositories is worth a request; refusals are remembered further down."""
        return True

    def repository(self, name: str) -> Repository:
        """A repository to push to."""
        return Repository(self._transport, self.registry, name, push=True)

    def makes(self, repository: str) -> bool:
        """Whether `provision` would make the repository, said without asking anybody.

        Raises:
            RegistryError: what the configuration or the name forbids, as `provision` would.
        """
        del repository
        return False

    async def provision(self, repository: str) -> None:
        """Make the repository. Call it when the target answers that it does not exist.

        Raises:
            RegistryError: it cannot be made.
        """

    async def maintain(self) -> None:
        """Do what failed earlier and can wait; called now and then, never raises for a registry's refusal."""

    async def known_blobs(
        self, repository: str, digests: Collection[Digest], *, make: bool = True
    ) -> set[Digest] | None:
        """Which of the blobs the repository has, in fewer requests than one HEAD each; None: ask for each.

        Args: `make`: a repository that is missing may be made, if this kind of target does that here.
        """
        del repository, digests, make
        return None

    async def provisioned(self, repository: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, after making the repository where this kind of target has to.

        `attempt` may be called several times, and starts anew each time.

        Raises:
            RegistryError: of the attempt, or of `provision`.
        """
        del repository
        return await attempt()


def target_refusal(error: BaseException) -> Refusal | None:
    """Why the target takes no copy at all just now, or None if the error concerns one image or another side.

    Such a refusal holds the target and not the image (product.md section 5): permissions, quota, a
    project that somebody has to make. Temporary errors hold nobody, and neither does a repository
    that the configuration says not to create.
    """
    if not isinstance(error, CopycatError) or error.side != "target" or error.temporary:
        return None

    if not isinstance(error, RegistryError) or error.reason == "repository_missing":
        return None

    text = _answer(error)
    if error.reason == "quota" or error.status == 507 or _QUOTA.search(text):
        return "quota"

    if names_missing_project(error):
        return "missing_project"

    if isinstance(error, NotFound) and error.code == "NAME_UNKNOWN":
        return "missing_project"

    return "target_denied" if isinstance(error, Denied | Unauthorized) else None


def names_missing_project(error: CopycatError) -> bool:
    """Whether the target says in so many words that what the repository belongs to does not exist."""
    return isinstance(error, NotFound | Denied | Unauthorized) and bool(
        _PROJECT.search(_answer(error))
    )


def _answer(error: RegistryError) -> str:
    """The answer alone: the rest of the message holds names, and somebody's image is called quota."""
    return f"{error.code} {error.message.partition('(HTTP')[2]}"
