"""The logins of whoever ran `docker login`: a `config.json`, read again when it changes, and its credential helpers.

Docker's own rules hold: `credHelpers` win over `credsStore`, that over what the file itself holds; a key with a
path is nearer than one without. A file that cannot be read and a helper that fails are a warning, and the
next candidate's turn: public images must be had all the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from copycat.errors import RegistryError
from copycat.oci.reference import DOCKER_HUB
from copycat.registry.credentials import Credentials
from copycat.registry.credhelper import TIME_LIMIT, ask_helper
from copycat.registry.dockerconfig import DockerConfig, DockerHelper, covers, parse_docker_config
from copycat.registry.keychain import Access
from copycat.registry.once import Once
from copycat.registry.renewable import Issued, Renewable

__all__ = ["DockerKeychain", "docker_config_file"]

#: Seconds between looks at the file.
LOOK = 10.0
#: How long a helper's answer is used at most, in seconds; half of it, and it is asked again. Helpers do not say.
LIFE = 600.0
#: How long a helper that failed is left alone, in seconds.
PATIENCE = 60.0
#: A file that is longer was written for something else.
MAX_FILE = 1024 * 1024

#: Docker's own key for Docker Hub.
_HUB = "https://index.docker.io/v1/"
_NOTHING = Credentials()


def docker_config_file(environ: Mapping[str, str], *, workstation: bool) -> Path | None:
    """Where the file is: in DOCKER_CONFIG; on a workstation else in ~/.docker. None: nowhere."""
    if folder := environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    if workstation and (home := environ.get("HOME")):
        return Path(home) / ".docker" / "config.json"
    return None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The file as it was last read."""

    stamp: tuple[int, int, int]
    config: DockerConfig


class DockerKeychain:
    """Answers for the registries that the file names, and asks its store for all others."""

    def __init__(
        self,
        file: Path,
        *,
        required: bool,
        environ: Mapping[str, str] = os.environ,
        helper_time_limit: float = TIME_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `required`: a missing file gets a warning; `environ` is the helpers'; the clock counts seconds."""
        self._file = file
        self._required = required
        self._environ = environ
        self._time_limit = helper_time_limit
        self._clock = clock
        self._once = Once("docker-config")
        self._lock = anyio.Lock()
        self._looked = float("-inf")
        self._seen: _Seen | None = None
        self._logins: dict[tuple[str, str], Renewable] = {}

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """The file's candidates, nearest first."""
        del access
        config = await self._config()
        found: list[tuple[int, int, Credentials]] = []
        for rank, helper in _helpers(config, registry, repository):
            credentials = await self._ask(helper)
            if credentials is not None:
                found.append((-len(helper.path), rank, credentials))
        found += [
            (-len(auth.path), 3 if auth.is_pattern else 2, auth.credentials)
            for auth in config.auths
            if auth.matches(registry, repository)
        ]
        found.sort(key=lambda row: row[:2])
        return [credentials for *_, credentials in found]

    def expired(self, registry: str, credentials: Credentials) -> None:
        """A registry says that these are too old: a helper that gave them is asked again."""
        del registry
        for login in self._logins.values():
            login.expired(credentials)

    # The helpers

    async def _ask(self, helper: DockerHelper) -> Credentials | None:
        key = (helper.helper, helper.server)
        login = self._logins.get(key)
        if login is None:
            login = self._logins[key] = Renewable(
                partial(self._fetch, *key), patience=PATIENCE, clock=self._clock
            )
        try:
            credentials = await login.get()
        except RegistryError as error:
            self._once.warn(key, "no login from a credential helper", error=str(error))
            return None

        self._once.over(key)
        return credentials if credentials.key != _NOTHING.key else None

    async def _fetch(self, helper: str, server: str) -> Issued:
        credentials = await ask_helper(
            helper, server, environ=self._environ, time_limit=self._time_limit
        )
        return Issued(credentials=credentials or _NOTHING, life=LIFE)

    # The file

    async def _config(self) -> DockerConfig:
        if self._clock() - self._looked >= LOOK:
            async with self._lock:
                if self._clock() - self._looked >= LOOK:
                    await self._look()
                    self._looked = self._clock()

        return self._seen.config if self._seen is not None else DockerConfig()

    async def _look(self) -> None:
        """What cannot be read leaves what was read before: somebody may be writing it at this moment."""
        try:
            seen = await anyio.to_thread.run_sync(_read, self._file, self._seen)
        except FileNotFoundError:
            if self._seen is not None:
                self._warn("it is gone; what it held stays in use")
            elif self._required:
                self._warn("it does not exist; DOCKER_CONFIG names the folder that it is in")
            return
        except OSError as error:
            self._warn(error.strerror or type(error).__name__)
            return
        except ValueError as error:
            self._warn(str(error))
            return

        if seen is not self._seen:
            # somebody may have logged in anew
            self._seen, self._logins = seen, {}
        if seen.config.problems:
            self._warn("; ".join(seen.config.problems))
        else:
            self._once.over(self._file)

    def _warn(self, problem: str) -> None:
        self._once.warn(
            self._file, "docker's logins cannot be used", file=str(self._file), problem=problem
        )


def _read(file: Path, seen: _Seen | None) -> _Seen:
    """Runs in a thread. Raises OSError, and ValueError in words without content."""
    status = file.stat()
    stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
    if seen is not None and seen.stamp == stamp:
        return seen

    if status.st_size > MAX_FILE:
        raise ValueError(f"it is larger than {MAX_FILE // 1024} KiB")

    config = parse_docker_config(file.read_bytes(), source=f"of {file}")
    return _Seen(stamp, config)


def _helpers(
    config: DockerConfig, registry: str, repository: str
) -> Iterator[tuple[int, DockerHelper]]:
    """Who may have a login for a repository: 0 for its own helper, 1 for the store."""
    for helper in config.helpers:
        if helper.host == registry and covers(helper.path, repository):
            yield 0, helper

    if not config.store:
        return

    whole = False
    for entry in config.stored:
        if entry.host == registry and covers(entry.path, repository):
            whole = whole or not entry.path
            yield 1, entry

    if not whole:
        server = _HUB if registry == DOCKER_HUB else registry
        yield 1, DockerHelper(host=registry, server=server, helper=config.store)
