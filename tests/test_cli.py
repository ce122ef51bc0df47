"""The command line: what it hands over, what it says, and its exit codes."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import copycat
from copycat import logs
from copycat.app.manifests import ManifestFile
from copycat.app.plan_output import Printer
from copycat.cli import execute
from copycat.config.settings import Settings
from copycat.errors import ConfigError, CopycatError, NotFound, Problem
from copycat.logs import get_logger
from copycat.progress import Outcome, Reporter


@dataclass
class Recorder:
    """Stands for the program: keeps what it was given, answers as the test says."""

    good: bool = True
    error: BaseException | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    def _answer(self, command: str, **given: Any) -> bool:
        self.seen = {"command": command, **given}
        if self.error is not None:
            raise self.error
        return self.good

    async def run(
        self,
        settings: Settings,
        *,
        kubeconfig: str | None,
        context: str | None,
        load: Callable[[], Settings] | None = None,
    ) -> None:
        """Keep."""
        assert load is not None
        assert load() == settings
        get_logger("test").info("running", password="hunter2")
        self._answer("run", settings=settings, kubeconfig=kubeconfig, context=context)

    async def mirror(
        self,
        settings: Settings,
        *,
        references: Sequence[str],
        manifests: Sequence[ManifestFile],
        reporter: Reporter,
    ) -> bool:
        """Keep, and report one image."""
        with reporter:
            for text in references:
                reporter.finished(text, Outcome(source=text, state="protected", good=True))
        return self._answer("mirror", settings=settings, references=references, manifests=manifests)

    async def plan(
        self,
        settings: Settings,
        *,
        manifests: Sequence[ManifestFile] | None,
        kubeconfig: str | None,
        context: str | None,
        printer: Printer,
    ) -> bool:
        """Keep."""
        return self._answer(
            "plan",
            manifests=manifests,
            kubeconfig=kubeconfig,
            context=context,
            form=type(printer).__name__,
        )

    async def demo(self, *, keep: bool) -> bool:
        """Keep."""
        return self._answer("demo", keep=keep)


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process with no configuration but a target, and its logging put back afterwards."""
    for name in ("LOG_LEVEL", "LOG_FORMAT", "DRY_RUN", "METRICS_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONFIG_PATH", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("TARGET_KIND", "docker")
    monkeypatch.setenv("TARGET_REGISTRY", "registry.example.com")
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.unconfigure()


@pytest.fixture
def program() -> Recorder:
    """What stands for the program."""
    return Recorder()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], program: Recorder) -> Call:
    """Runs a command line: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            execute(arguments, program=program)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


# run


def test_run(call: Call, program: Recorder) -> None:
    """Flags win over the environment; the program gets settings, kubeconfig and context."""
    code, out, _ = call(
        "run", "-dry-run", "--dry-pull=false", "-metrics-bind-address=:9090", "--health-probe-bind-address", "0",
        "--leader-elect=false", "--kubeconfig", "/k", "--context", "c",
    )  # fmt: skip

    settings: Settings = program.seen["settings"]
    assert code == 0
    assert (settings.dry_run, settings.dry_pull, settings.leader_elect) == (True, False, False)
    assert (settings.metrics_addr, settings.health_addr) == (":9090", "0")
    assert (program.seen["kubeconfig"], program.seen["context"]) == ("/k", "c")
    event = json.loads(out.splitlines()[-1])
    assert (event["msg"], event["password"]) == ("running", "***")


def test_run_by_default(call: Call, program: Recorder) -> None:
    """Without flags the settings are those of the file and the environment."""
    assert call("run")[0] == 0
    settings: Settings = program.seen["settings"]
    assert (settings.dry_run, settings.leader_elect, settings.metrics_addr) == (
        False,
        None,
        ":8080",
    )


def test_zap_flags(call: Call, program: Recorder) -> None:
    """The original's zap flags are taken: level and encoder have effect, the others a warning each."""
    code, out, _ = call(
        "run", "-zap-devel", "--zap-stacktrace-level=error", "-zap-time-encoding", "iso8601",
        "--zap-log-level=3", "-zap-encoder=console",
    )  # fmt: skip

    settings: Settings = program.seen["settings"]
    assert code == 0
    assert (settings.log_level, settings.log_format) == ("debug", "text")
    for flag in ("--zap-devel", "--zap-stacktrace-level", "--zap-time-encoding"):
        assert f"flag has no effect flag={flag}" in out


@pytest.mark.parametrize(("number", "level"), [("0", "info"), ("1", "debug"), ("error", "error")])
def test_zap_levels(call: Call, program: Recorder, number: str, level: str) -> None:
    """Numbers are levels too."""
    assert call("run", f"--zap-log-level={number}")[0] == 0
    assert program.seen["settings"].log_level == level


def test_every_problem_at_once(
    call: Call, program: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that cannot be used: every problem on standard error, exit 2, nothing started, no traceback."""
    monkeypatch.setenv("DIGEST_PULL", "perhaps")
    code, out, err = call(
        "run", "--dry-run=maybe", "--metrics-bind-address=nonsense", "--zap-log-level=loud"
    )

    assert (code, out, program.seen) == (2, "", {})
    for word in ("digestPull", "dryRun", "metricsAddr", "logLevel"):
        assert word in err
    assert "Traceback" not in err


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(Problem(path="a", message="is bad")), 2),
        (NotFound("it is missing"), 1),
        (
            ExceptionGroup(
                "g", [NotFound("it is missing"), ExceptionGroup("h", [CopycatError("and so on")])]
            ),
            1,
        ),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), NotFound("x")]), 130),
    ],
    ids=["configuration", "error", "group", "interrupt", "interrupted-group"],
)
def test_errors(call: Call, program: Recorder, error: BaseException, code: int) -> None:
    """Our errors are sentences on standard error, never tracebacks; exit codes tell the kinds apart."""
    program.error = error
    got, _, err = call("run")

    assert got == code
    assert "Traceback" not in err
    if code == 1:
        assert "copycat: it is missing\n" in err


@pytest.mark.parametrize(
    "error", [ValueError("bug"), ExceptionGroup("g", [ValueError("bug")])], ids=["alone", "group"]
)
def test_bugs(program: Recorder, error: Exception) -> None:
    """What is not an error of ours keeps its traceback."""
    program.error = error
    with pytest.raises(type(error)):
        execute(["run"], program=program)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "extra"],
        ["run", "--dry-run", "true"],
        ["fly"],
        ["mirror"],
        ["run", "--nothing"],
        ["config", "fly"],
    ],
    ids=" ".join,
)
def test_usage(call: Call, program: Recorder, arguments: list[str]) -> None:
    """Wrong usage is exit 2 and a word on standard error; nothing is done."""
    code, out, err = call(*arguments)

    assert (code, program.seen, out) == (2, {}, "")
    assert "Usage: copycat" in err


# mirror


def test_mirror(call: Call, program: Recorder, tmp_path: Path) -> None:
    """References and manifests are handed over together; lines come to standard output."""
    (tmp_path / "a.yaml").write_text("kind: Pod\n")
    code, out, _ = call("mirror", "alpine", "-f", str(tmp_path / "a.yaml"), "ghcr.io/a/b:1")

    assert code == 0
    assert program.seen["references"] == ["alpine", "ghcr.io/a/b:1"]
    assert program.seen["manifests"] == [
        ManifestFile(name=str(tmp_path / "a.yaml"), text=b"kind: Pod\n")
    ]
    assert "protected  alpine" in out
    assert "2 images" in out


def test_mirror_json(call: Call) -> None:
    """`--json` prints objects and nothing else on standard output."""
    _, out, _ = call("mirror", "--json", "alpine")

    assert [json.loads(line)["source"] for line in out.splitlines()] == ["alpine"]


def test_mirror_standard_input(
    call: Call, program: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-f -` reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kind: Pod")))
    assert call("mirror", "-f", "-")[0] == 0
    assert program.seen["manifests"] == [ManifestFile(name="standard input", text=b"kind: Pod")]
    assert program.seen["references"] == []


def test_mirror_target(call: Call, program: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--target` wins over the configuration, whatever its kind; `--insecure` is for it and the REFs' registries."""
    monkeypatch.setenv("TARGET_KIND", "ecr")
    monkeypatch.setenv("INSECURE_REGISTRIES", "other.example.com")
    code, _, _ = call(
        "mirror",
        "--target",
        "localhost:5001/mirror/$registry",
        "--insecure",
        "localhost:5000/a:1",
        "alpine",
        "B@D",
    )

    settings: Settings = program.seen["settings"]
    assert code == 0
    assert (settings.target_kind, settings.docker.registry) == ("docker", "localhost:5001")
    assert settings.docker.repo_prefix == "mirror/$registry"
    assert settings.insecure_hosts >= {
        "localhost:5000",
        "localhost:5001",
        "docker.io",
        "other.example.com",
    }


def test_mirror_is_secure_by_default(call: Call, program: Recorder) -> None:
    """Without `--insecure` no host loses its TLS."""
    call("mirror", "--target", "localhost:5001", "alpine")

    assert program.seen["settings"].insecure_hosts == frozenset()


def test_mirror_failed(call: Call, program: Recorder) -> None:
    """Exit 1 if not all are at the target."""
    program.good = False

    assert call("mirror", "alpine")[0] == 1


def test_mirror_unreadable_file(call: Call, program: Recorder) -> None:
    """A file that cannot be read is named, exit 2."""
    code, _, err = call("mirror", "-f", "/nowhere/x.yaml")

    assert (code, program.seen) == (2, {})
    assert "/nowhere/x.yaml cannot be read" in err


def test_logs_of_one_shot_commands(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings come to standard error, readable, or as the owner asks; standard output has results alone."""
    monkeypatch.setenv("CONFIG_PATH", "/nowhere/config.yaml")
    _, out, err = call("mirror", "--json", "alpine")
    assert "WARN" in err
    assert "WARN" not in out
    monkeypatch.setenv("LOG_FORMAT", "json")
    _, _, err = call("mirror", "--json", "alpine")
    assert json.loads(err.splitlines()[0])["level"] == "warn"
    monkeypatch.setenv("LOG_LEVEL", "error")
    assert call("mirror", "--json", "alpine")[2] == ""


def test_warnings_of_run(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allowed but hardly meant is logged at the start."""
    monkeypatch.setenv("CONFIG_PATH", "/nowhere/config.yaml")
    _, out, _ = call("run")

    assert "/nowhere/config.yaml" in json.loads(out.splitlines()[0])["warning"]


# plan, demo


def test_plan(call: Call, program: Recorder, tmp_path: Path) -> None:
    """`plan` is for the cluster, or for manifests."""
    assert call("plan", "--context", "c")[0] == 0
    assert program.seen == {
        "command": "plan",
        "manifests": None,
        "kubeconfig": None,
        "context": "c",
        "form": "LinesPlan",
    }
    (tmp_path / "a.json").write_text("{}")
    program.good = False
    assert call("plan", "--json", "-f", str(tmp_path / "a.json"))[0] == 1
    assert program.seen["manifests"] == [ManifestFile(name=str(tmp_path / "a.json"), text=b"{}")]
    assert program.seen["form"] == "JsonPlan"


def test_a_plan_of_nothing_readable(call: Call) -> None:
    """A manifest that cannot be read is a usage error, which names it."""
    code, _, err = call("plan", "-f", "/nowhere/a.yaml")
    assert code == 2
    assert "/nowhere/a.yaml" in err


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
def test_demo(call: Call, program: Recorder, good: bool, code: int) -> None:
    """`demo` needs no configuration and says by its exit code whether all is as it should be."""
    program.good = good
    assert call("demo")[0] == code
    assert program.seen == {"command": "demo", "keep": False}
    assert call("demo", "--keep")[0] == code
    assert program.seen["keep"] is True


def test_the_collector_works(
    call: Call, program: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector is off while modules load; whatever runs then, runs with it."""
    seen: list[bool] = []

    async def demo(*, keep: bool) -> bool:
        seen.append(gc.isenabled())
        return not keep

    monkeypatch.setattr(program, "demo", demo)
    gc.disable()
    try:
        call("demo")
    finally:
        gc.enable()
    assert seen == [True]


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["mirror", "--target", "127.0.0.1:9/x", "127.0.0.1:1/a:1"], "copycat.app.oneshot"),
        (["demo"], "copycat.demo"),
    ],
)
def test_the_collector_waits_for_the_modules(arguments: list[str], module: str) -> None:
    """Everything that a command needs is loaded before the collector is on: it would walk all of it at every start."""
    code = (
        "import gc, os, sys\n"
        "def freeze():\n"
        f"    print({module!r} in sys.modules, gc.isenabled(), flush=True)\n"
        "    os._exit(0)\n"
        "gc.freeze = freeze\n"
        f"sys.argv = ['copycat', *{arguments!r}]\n"
        "from copycat.cli import main\n"
        "main()\n"
    )
    root = str(Path(copycat.__file__).parents[1])
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "True False\n"


# config


def test_config_check(call: Call, tmp_path: Path) -> None:
    """`config check` explains each value; the file may be given either way."""
    path = tmp_path / "c.yaml"
    path.write_text("digestPull: true\n")
    for arguments in (["--config", str(path)], [str(path)]):
        code, out, err = call("config", "check", *arguments)
        assert code == 0
        [row] = [line for line in out.splitlines() if line.startswith("digestPull ")]
        assert row.split() == ["digestPull", "true", str(path)]
        assert "environment TARGET_REGISTRY" in out
        assert "The configuration is valid." in err


def test_config_check_refuses(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys and bad values: all of them, exit 2; secrets are never echoed."""
    path = tmp_path / "c.yaml"
    path.write_text("digestPul: true\nmaxTransfers: many\n")
    monkeypatch.setenv("TARGET_PASSWORD", "Canary9secret")
    code, out, err = call("config", "check", "--config", str(path))

    assert (code, out) == (2, "")
    assert "digestPul" in err
    assert "maxTransfers" in err
    assert "Canary9secret" not in err


def test_config_check_warns(call: Call) -> None:
    """Warnings do not make a configuration invalid."""
    code, _, err = call("config", "check", "--config", "/nowhere.yaml")

    assert code == 0
    assert "warning: " in err


def test_config_schema(call: Call) -> None:
    """`config schema` prints a JSON schema."""
    code, out, _ = call("config", "schema")

    assert code == 0
    assert "targetKind" in json.loads(out)["properties"]


# The process


def test_nobody_reads(call: Call, program: Recorder) -> None:
    """A reader that went away (`| head`) ends the work with exit code 1, and without a traceback."""
    program.error = BaseExceptionGroup("", [BrokenPipeError()])
    code, out, err = call("mirror", "alpine")
    assert code == 1
    assert "Traceback" not in out + err
    assert "Broken" not in out + err


def test_a_closed_pipe() -> None:
    """The same in a process of its own: not a word from the interpreter's exit either."""
    read, write = os.pipe()
    os.close(read)
    nowhere = ["--insecure", "--target", "127.0.0.1:1", "127.0.0.1:1/a:1"]
    with os.fdopen(write, "wb") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "copycat", "mirror", "--json", *nowhere],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=os.environ | {"REGISTRY_RETRY_ATTEMPTS": "1", "LOG_LEVEL": "error"},
            text=True,
            check=False,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (1, "")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m copycat` as a process of its own."""
    root = str(Path(copycat.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "copycat", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": root},
    )


@pytest.mark.parametrize(
    "arguments", [["--version"], ["run", "--version"], ["run", "-version"]], ids=" ".join
)
def test_version(arguments: list[str]) -> None:
    """The version, without any configuration."""
    done = python(*arguments)

    assert (done.returncode, done.stdout) == (0, f"copycat {copycat.__version__}\n")


def test_no_output() -> None:
    """Without a standard output (`>&-`) there is nothing to flush at the end, and no traceback."""
    command = f"exec {sys.executable} -m copycat config schema >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_profiler_gets_its_say(tmp_path: Path) -> None:
    """The process leaves at once, but not before who measures it has written what was measured."""
    found = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(found), "-m", "copycat", "--version"]
    subprocess.run(command, capture_output=True, check=True)

    assert found.stat().st_size > 0


def test_no_configuration() -> None:
    """A start without any configuration says what is missing and how to give it."""
    done = python("run")

    assert done.returncode == 2
    assert "ECR_ACCOUNT_ID" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick() -> None:
    """`copycat --help` needs at most 0.3 s, the best of five, and imports nothing heavy."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert python("--help").returncode == 0
        times.append(time.perf_counter() - start)
    code = "import sys, copycat.cli; print([m for m in ('rich', 'aiohttp', 'pydantic', 'anyio', 'kr8s') if m in sys.modules])"
    root = str(Path(copycat.__file__).parents[1])
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root},
    )

    assert loaded.stdout == "[]\n"
    assert min(times) < 0.3
