"""What the commands do, as one seam between the command line and everything behind it.

Each method imports what it needs when it is called, so that `copycat --help` stays quick; and before it returns what is to be
awaited, so that the garbage collector may start when everything is there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from copycat.app.manifests import ManifestFile
    from copycat.app.plan_output import Printer
    from copycat.config.settings import Settings
    from copycat.progress import Reporter

__all__ = ["Program", "RealProgram"]


class Program(Protocol):
    """What the commands do."""

    async def run(
        self,
        settings: Settings,
        *,
        kubeconfig: str | None,
        context: str | None,
        load: Callable[[], Settings] | None = None,
    ) -> None:
        """The controller, until SIGTERM or SIGINT; `load` reads the configuration again."""
        ...

    async def mirror(
        self,
        settings: Settings,
        *,
        references: Sequence[str],
        manifests: Sequence[ManifestFile],
        reporter: Reporter,
    ) -> bool:
        """Copy once. True if all are at the target as asked."""
        ...

    async def plan(
        self,
        settings: Settings,
        *,
        manifests: Sequence[ManifestFile] | None,
        kubeconfig: str | None,
        context: str | None,
        printer: Printer,
    ) -> bool:
        """Print what `run` would do; None: for the cluster. True if nothing stands in the way."""
        ...

    async def demo(self, *, keep: bool) -> bool:
        """Show it all. True if everything is as it should be."""
        ...


class RealProgram:
    """The program itself."""

    def run(
        self,
        settings: Settings,
        *,
        kubeconfig: str | None,
        context: str | None,
        load: Callable[[], Settings] | None = None,
    ) -> Coroutine[Any, Any, None]:
        from copycat.app.process import run

        return run(settings, kubeconfig=kubeconfig, context=context, load=load)

    def mirror(
        self,
        settings: Settings,
        *,
        references: Sequence[str],
        manifests: Sequence[ManifestFile],
        reporter: Reporter,
    ) -> Coroutine[Any, Any, bool]:
        from copycat.app.oneshot import mirror

        return mirror(settings, references=references, manifests=manifests, reporter=reporter)

    def plan(
        self,
        settings: Settings,
        *,
        manifests: Sequence[ManifestFile] | None,
        kubeconfig: str | None,
        context: str | None,
        printer: Printer,
    ) -> Coroutine[Any, Any, bool]:
        from copycat.app.plan import plan

        return plan(
            settings, manifests=manifests, kubeconfig=kubeconfig, context=context, printer=printer
        )

    def demo(self, *, keep: bool) -> Coroutine[Any, Any, bool]:
        from copycat.demo import main as show

        return show(keep=keep)
