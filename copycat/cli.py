"""The command line. It parses, loads the configuration and hands over; everything heavy is imported on demand.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from copycat import __version__
from copycat.arguments import normalise
from copycat.errors import ConfigError, CopycatError, Problem
from copycat.program import Program, RealProgram

if TYPE_CHECKING:
    from copycat.app.manifests import ManifestFile
    from copycat.config.settings import Settings

_T = TypeVar("_T")

__all__ = ["cli", "execute", "main", "until_terminated"]


cli = typer.Typer(
    name="copycat",
    help="Keep a restorable copy of every container image that a Kubernetes cluster runs, in a registry you control.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_config = typer.Typer(
    help="Validate and explain a configuration.", no_args_is_help=True, rich_markup_mode=None
)
cli.add_typer(_config, name="config")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"copycat {__version__}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
]
_ConfigPath = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="YAML file (default: CONFIG_PATH, else /config/config.yaml).",
    ),
]
_Kubeconfig = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Kubeconfig file, for use outside of a cluster."),
]
_Context = Annotated[str | None, typer.Option(metavar="NAME", help="Context of the kubeconfig.")]
_Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="FILE|-",
        help="Kubernetes manifests, YAML or JSON; - is standard input.",
    ),
]


def _flag(text: str, *, metavar: str = "[=true|false]") -> Any:
    return typer.Option(metavar=metavar, help=text)


def _ignored(*names: str) -> Any:
    return typer.Option(*names, hidden=True)


@cli.callback()
def _root(version: _Version = False) -> None:
    """Keep a restorable copy of every container image that a Kubernetes cluster runs, in a registry you control."""


@cli.command("run")
def _run(
    ctx: typer.Context,
    *,
    config: _ConfigPath = None,
    dry_run: Annotated[str | None, _flag("Say what would be copied; write nothing.")] = None,
    dry_pull: Annotated[str | None, _flag("Ask no source registry.")] = None,
    metrics_bind_address: Annotated[
        str | None, _flag("Metrics listener; 0 is off.", metavar="ADDRESS")
    ] = None,
    health_probe_bind_address: Annotated[
        str | None, _flag("Probe listener; 0 is off.", metavar="ADDRESS")
    ] = None,
    leader_elect: Annotated[
        str | None, _flag("One replica works, by a Lease (default: in a cluster).")
    ] = None,
    kubeconfig: _Kubeconfig = None,
    context: _Context = None,
    zap_log_level: Annotated[
        str | None, _flag("debug, info, warn, error, … or a number.", metavar="LEVEL")
    ] = None,
    zap_encoder: Annotated[str | None, _flag("json or console.", metavar="FORMAT")] = None,
    zap_devel: Annotated[str | None, _ignored("--zap-devel")] = None,
    zap_stacktrace_level: Annotated[str | None, _ignored("--zap-stacktrace-level")] = None,
    zap_time_encoding: Annotated[str | None, _ignored("--zap-time-encoding")] = None,
    version: _Version = False,
) -> None:
    """Watch the cluster and mirror what it runs, until stopped.

    Flags win over environment variables, those over the file. Go's spellings work: -dry-run, --dry-run=true.
    """
    flags = {
        "dryRun": dry_run,
        "dryPull": dry_pull,
        "metricsAddr": metrics_bind_address,
        "healthAddr": health_probe_bind_address,
        "leaderElect": leader_elect,
        "logLevel": _zap_level(zap_log_level),
        "logFormat": zap_encoder,
    }
    settings = _load(config, flags)
    log = _configure_logs(settings.log_level, settings.log_format, sys.stdout)
    ignored = {
        "--zap-devel": zap_devel,
        "--zap-stacktrace-level": zap_stacktrace_level,
        "--zap-time-encoding": zap_time_encoding,
    }
    for name, value in ignored.items():
        if value is not None:
            log.warning("flag has no effect", flag=name)
    for warning in settings.warnings:
        log.warning("configuration", warning=warning)
    load = partial(_load, config, flags)
    _await(_program(ctx).run(settings, kubeconfig=kubeconfig, context=context, load=load))


@cli.command("mirror")
def _mirror(
    ctx: typer.Context,
    *,
    references: Annotated[
        list[str] | None, typer.Argument(metavar="REF", help="Images, as in a Pod's spec.")
    ] = None,
    file: _Files = None,
    config: _ConfigPath = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="HOST[/PREFIX]", help="Where to, instead of the configured target."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Unverified TLS or plain HTTP for the target and the registries of the REFs.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per image, for programs.")
    ] = False,
) -> None:
    """Copy images once, without a cluster: references, and all images of Kubernetes manifests."""
    if not references and not file:
        raise typer.BadParameter("give references, or manifests with -f", param_hint="REF")
    from copycat.progress import make_reporter

    settings = _mirror_settings(config, target, references or [], insecure=insecure)
    reporter = make_reporter(sys.stdout, as_json=as_json)
    _configure_for_people(settings, reporter.beside(sys.stderr))
    work = _program(ctx).mirror(
        settings,
        references=references or [],
        manifests=[_read(name) for name in file or []],
        reporter=reporter,
    )
    _finish(_await(until_terminated(work)))


@cli.command("plan")
def _plan(
    ctx: typer.Context,
    *,
    file: _Files = None,
    config: _ConfigPath = None,
    kubeconfig: _Kubeconfig = None,
    context: _Context = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object per image and one about all, for programs."),
    ] = False,
) -> None:
    """Say what `run` would do now, for the cluster or for manifests. Touches nothing.

    With manifests and --kubeconfig or --context: for the cluster as it would be with the manifests applied.
    Exit code 0: every image would be at the target as asked; 1: not; 2: usage or configuration.
    """
    settings = _load(config, {})
    _configure_for_people(settings, sys.stderr)
    from copycat.app.plan_output import make_printer

    manifests = [_read(name) for name in file] if file else None
    work = _program(ctx).plan(
        settings,
        manifests=manifests,
        kubeconfig=kubeconfig,
        context=context,
        printer=make_printer(sys.stdout, as_json=as_json),
    )
    _finish(_await(until_terminated(work)))


@cli.command("demo")
def _demo(
    ctx: typer.Context,
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running and print its addresses.")
    ] = False,
) -> None:
    """Run the whole program against an embedded cluster and embedded registries."""
    _configure_logs("warn", "text", sys.stderr)
    _finish(_await(_program(ctx).demo(keep=keep)))


@_config.command("check")
def _check(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="The same as --config.")
    ] = None,
    config: _ConfigPath = None,
) -> None:
    """Validate the configuration and say where each value comes from; all problems at once."""
    from copycat.config.schema import explain

    settings = _load(config or path, {})
    rows = [(row.key, row.value, row.origin) for row in explain(settings)]
    widths = [min(max(len(row[i]) for row in rows), 48) for i in (0, 1)]
    for key, value, origin in rows:
        typer.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
    for warning in settings.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("The configuration is valid.", err=True)


@_config.command("schema")
def _schema() -> None:
    """Print the JSON schema of the configuration file."""
    from copycat.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


# What the commands share


def _program(ctx: typer.Context) -> Program:
    program: Program = ctx.obj
    return program


def _load(config: str | None, flags: Mapping[str, object]) -> Settings:
    from copycat.config.sources import load

    return load(path=config, flags=flags)


def _zap_level(text: str | None) -> str | None:
    """zap also takes numbers: 0 is info, more is debug of growing detail."""
    if text is None or not text.isdecimal():
        return text
    return "debug" if int(text) else "info"


def _mirror_settings(
    config: str | None, target: str | None, references: Sequence[str], *, insecure: bool
) -> Settings:
    flags: dict[str, object] = {}
    if target is not None:
        host, _, prefix = target.partition("/")
        flags |= {"targetKind": "docker", "docker.registry": host, "docker.repoPrefix": prefix}
    if not insecure:
        return _load(config, flags)
    flags["docker.insecure"] = True
    configured = _load(config, flags).insecure_registries
    hosts = dict.fromkeys([*configured, *_hosts(references)])
    return _load(config, {**flags, "insecureRegistries": list(hosts)})


def _hosts(references: Sequence[str]) -> Iterator[str]:
    from copycat.errors import InvalidReference
    from copycat.oci.reference import Reference

    for text in references:
        try:
            yield Reference.parse(text).registry
        except InvalidReference:
            continue  # becomes that image's failure


def _read(name: str) -> ManifestFile:
    from copycat.app.manifests import ManifestFile

    try:
        if name == "-":
            return ManifestFile(name="standard input", text=sys.stdin.buffer.read())
        return ManifestFile(name=name, text=Path(name).read_bytes())
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise ConfigError(Problem(path="-f", message=message)) from error


def _configure_logs(level: str, form: Any, stream: Any) -> Any:
    from copycat import logs

    logs.configure(level, form, stream=stream)
    return logs.get_logger("copycat.cli")


def _configure_for_people(settings: Settings, stream: TextIO) -> None:
    """Results are for standard output; events go to `stream`, few and readable unless asked otherwise."""
    asked = settings.context.origins
    log = _configure_logs(
        settings.log_level if "logLevel" in asked else "warn",
        settings.log_format if "logFormat" in asked else "text",
        stream,
    )
    for warning in settings.warnings:
        log.warning("configuration", warning=warning)


def _await(work: Awaitable[_T]) -> _T:
    """Run it in an event loop. What it needs is imported by now: whoever made it did that."""
    import anyio

    async def whole() -> _T:
        return await work

    # Modules live to the end: the collector need not look at them again. And an event loop makes many
    # short-lived objects that no cycle holds: collecting at every 700 of them costs a twentieth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()
    return anyio.run(whole)


async def until_terminated(work: Awaitable[_T]) -> _T:
    """SIGTERM cancels the work as Ctrl-C does, so that it leaves nothing half-done: as the first process of a
    container it would else be ignored. The exit code is the shell's for that signal."""
    import anyio

    done: list[_T] = []
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        done.append(await work)
        tasks.cancel_scope.cancel()
    if not done:
        sys.exit(128 + signal.SIGTERM)
    return done[0]


def _finish(good: bool) -> None:
    raise typer.Exit(0 if good else 1)


# From errors to exit codes


def _errors(error: BaseException) -> Iterator[BaseException]:
    """The error, or those inside a group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _errors(inner)
    else:
        yield error


def _exit(error: BaseException) -> NoReturn:
    """Say what failed and end; what is not an error of ours is raised again, with its traceback."""
    errors = list(_errors(error))
    if any(isinstance(e, KeyboardInterrupt) for e in errors):
        sys.exit(130)
    if any(isinstance(e, BrokenPipeError) for e in errors):
        _close_output()
    if not all(isinstance(e, CopycatError) for e in errors):
        raise error
    for text in dict.fromkeys(str(e) for e in errors):
        sys.stderr.write(f"copycat: {text}\n")
    sys.exit(2 if any(isinstance(e, ConfigError) for e in errors) else 1)


def _close_output() -> NoReturn:
    """Nobody reads it any more (`| head`): what is left in the buffer must not fail at the exit."""
    with suppress(OSError):  # not a file: there is nothing that the exit would flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def execute(arguments: Sequence[str], *, program: Program | None = None) -> NoReturn:
    """Run a command line and exit. Args: `program` does the work; by default the real one."""
    try:
        cli(args=normalise(arguments), prog_name="copycat", obj=program or RealProgram())
    except (CopycatError, BaseExceptionGroup) as error:
        _exit(error)
    sys.exit(0)


def _leave(end: SystemExit) -> NoReturn:
    """End at once: taking a thousand modules apart takes longer than most requests. Everything is closed by now."""
    if sys.getprofile() or sys.gettrace() or not isinstance(end.code, int | None):
        raise end  # a profiler has something to write yet
    logging.shutdown()
    code = end.code or 0
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more
            code = code or 1
    os._exit(code)


def main() -> NoReturn:
    """The entry point `copycat`."""
    gc.disable()  # while modules are imported, which live to the end; `_await` enables it
    try:
        execute(sys.argv[1:])
    except SystemExit as end:
        _leave(end)
