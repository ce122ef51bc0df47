"""A changed configuration is taken up while the program runs, or refused as a whole, and the old one stays.

Files are compared by their content now and then, which sees every way to change one: an editor's new inode, a
ConfigMap's swapped link, a clock that stands. Three kinds of them:

* the configuration: read anew, with the environment and the flags over it, as at the start;
* certificates: tried, then every connection is made anew with them;
* logins (user names, passwords, tokens): the keychain reads them anew by itself, so here only the images that
  failed for the old ones are tried again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from copycat.app.wiring import Engine
from copycat.config.keys import rows
from copycat.config.settings import Settings
from copycat.config.sources import DEFAULT_PATH
from copycat.errors import ConfigError, CopycatError
from copycat.logs import get_logger
from copycat.metrics import Metrics
from copycat.registry.hosts import HostConfig, TlsContexts

__all__ = ["POLL", "Reload", "Reloader"]

_log = get_logger(__name__)

#: Seconds between looks at the files; not less than the keychain's own, or images would be tried too early.
POLL = 10.0
#: A file is compared up to here (bytes).
_MAX_FILE = 16 << 20

#: What changes without a new term.
_LEVEL = "logLevel"
#: What may be refused.
_FILE, _LOGINS = "configuration", "logins"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """How a program gets its configuration again."""

    load: Callable[[], Settings]
    """Reads it as at the start. Blocks; raises ConfigError."""
    engines: Callable[[Settings], AbstractAsyncContextManager[Engine]]
    logins: tuple[str, ...] = ()
    """Files with logins that the configuration does not name (Docker's)."""


class Reloader:
    """Watches the files of the configuration that is in use."""

    def __init__(
        self,
        settings: Settings,
        *,
        load: Callable[[], Settings],
        adopt: Callable[[Settings], Awaitable[None]],
        set_level: Callable[[str], None],
        retry: Callable[[], None],
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]],
        logins: Collection[str] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        adopt: goes on with other settings; raises CopycatError if that cannot be, and then has changed nothing.
        set_level: changes the log level.
        retry: tries again what failed.
        sleep: between two looks.
        logins: files that are looked at besides those of the settings.
        """
        self._settings = settings
        self._load = load
        self._adopt = adopt
        self._set_level = set_level
        self._retry = retry
        self._metrics = metrics
        self._sleep = sleep
        self._logins = logins
        self._wall = wall
        self._faults: set[str] = set()

    async def run(self) -> None:
        """Look, for ever."""
        self._metrics.reload_success_time.set(self._wall())
        config, certificates, logins = await self._look()
        await self._reload()  # what changed between the start and the first look
        due = False
        while True:
            await self._sleep(POLL)
            if due:
                self._retry()
            before = config, certificates, logins
            config, certificates, logins = await self._look()
            due = logins != before[2]
            if due:
                self._judge_logins(before[2], logins)
            if (config, certificates) != before[:2]:
                await self._reload(again=certificates != before[1])
                # Other files may be named now. What was looked at before keeps its look: it may have
                # changed again since, and that has not been read.
                after = await self._look()
                config, certificates, logins = (
                    {path: old.get(path, content) for path, content in new.items()}
                    for old, new in zip((config, certificates, logins), after, strict=True)
                )

    async def _look(self) -> tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]]:
        return await anyio.to_thread.run_sync(_look, self._settings, self._logins)

    async def _reload(self, *, again: bool = False) -> None:
        """Read the configuration and go on with it. Args: `again`: also if it is the same."""
        try:
            fresh = await anyio.to_thread.run_sync(self._load)
            changed = _changed(self._settings, fresh)
            later = sorted(key for key in changed if _restarts(key))
            now = sorted(changed - set(later))
            wanted = fresh.model_copy(update=_kept(self._settings))
            if again or set(now) - {_LEVEL}:
                await _try_certificates(wanted)
                await self._adopt(wanted)
        except CopycatError as error:
            self._refuse(error)
            return
        except Exception as bug:  # noqa: BLE001 - what works must not end because something else does not
            _log.exception("reload broke")
            self._refuse(CopycatError(f"internal error: {type(bug).__name__}"))
            return
        if _LEVEL in changed:
            self._set_level(fresh.log_level)
        self._settings = wanted
        self._accept(now, later, again=again)

    def _judge_logins(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Which of the files the keychain takes up, and which it does not."""
        _log.info("login files changed", files=_differing(before, after))
        broken = [f"{path}: {text[1:]}" for path, text in after.items() if text.startswith("!")]
        if broken:
            _log.error("login files cannot be read; what they held stays in use", problems=broken)
        self._tell(_LOGINS, bad=bool(broken))

    def _tell(self, part: str, *, bad: bool) -> None:
        """The metric is 1 while no part of the newest configuration is refused."""
        (self._faults.add if bad else self._faults.discard)(part)
        self._metrics.reload_successful.set(0 if self._faults else 1)

    def _refuse(self, error: CopycatError) -> None:
        self._tell(_FILE, bad=True)
        problems = error.problems if isinstance(error, ConfigError) else (error,)
        _log.error(
            "changed configuration refused; the one before stays in use",
            problems=[str(problem) for problem in problems],
        )

    def _accept(self, now: Collection[str], later: Collection[str], *, again: bool) -> None:
        refused = _FILE in self._faults
        self._tell(_FILE, bad=False)
        self._metrics.reload_success_time.set(self._wall())
        if now or again:
            _log.info("changed configuration in use", keys=list(now), certificates=again)
            for warning in self._settings.warnings:
                _log.warning("configuration", warning=warning)
        elif refused:
            _log.info("configuration is the one in use again")
        if later:
            _log.warning("these changes take effect at the next start", keys=list(later))


# Files


def _look(
    settings: Settings, more: Collection[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What the files hold now: configuration, certificates, logins. Blocks."""
    context = settings.context
    config = (context.file or context.missing_file or DEFAULT_PATH,)
    certificates = [settings.registry_ca_file]
    for host in settings.registries:
        certificates += [host.ca_file, host.client_cert_file, host.client_key_file]
    logins = [settings.docker.password_file, *more]
    for entry in settings.registry_credentials:
        logins += [entry.username_file, entry.password_file, entry.token_file]
    return _contents(config), _contents(certificates), _contents(logins)


def _contents(paths: Collection[str]) -> dict[str, str]:
    return {path: _content(Path(path)) for path in paths if path}


def _content(path: Path) -> str:
    """A hash, or "!" and why there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MAX_FILE)).hexdigest()
    except OSError as error:
        return f"!{error.strerror or type(error).__name__}"


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(path for path in after if after[path] != before.get(path))


async def _try_certificates(settings: Settings) -> None:
    """Raises Unavailable, naming the keys, if a certificate's file cannot be used."""
    contexts = TlsContexts(ca_file=settings.registry_ca_file)
    await contexts.get(None)
    for entry in settings.registries:
        await contexts.get(
            HostConfig(
                host=entry.host,
                ca_file=entry.ca_file,
                client_cert_file=entry.client_cert_file,
                client_key_file=entry.client_key_file,
            )
        )


# Keys


def _values(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows(Settings):
        if row.attributes:
            value: Any = settings
            for attribute in row.attributes:
                value = getattr(value, attribute)
            found[row.path] = value
    return found


def _changed(old: Settings, new: Settings) -> set[str]:
    """Keys whose values differ. Never their values: some are secrets."""
    before, after = _values(old), _values(new)
    return {key for key in after if after[key] != before[key]}


def _restarts(key: str) -> bool:
    return any(row.path == key and row.key.restart for row in rows(Settings))


def _kept(settings: Settings) -> dict[str, Any]:
    """What only a restart changes, as it is in use."""
    return {
        row.attributes[0]: getattr(settings, row.attributes[0])
        for row in rows(Settings)
        if row.key.restart and len(row.attributes) == 1
    }
