"""Arguments of `copycat run` in Go's spelling, so that the original's `args` work unchanged.

Go's flag package takes one dash or two, `-flag=value` or `-flag value`, and a boolean flag never takes
the next argument. Here everything becomes `--flag=value` or `--flag value`, which the command line's parser takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["normalise"]

#: Flags that mean `true` without a value.
_BOOLEAN: Final = frozenset({"dry-run", "dry-pull", "leader-elect", "zap-devel"})
_VALUED: Final = frozenset(
    {
        "config",
        "context",
        "health-probe-bind-address",
        "kubeconfig",
        "metrics-bind-address",
        "zap-encoder",
        "zap-log-level",
        "zap-stacktrace-level",
        "zap-time-encoding",
    }
)
_SWITCHES: Final = frozenset({"help", "version"})
#: What Go's flag package takes for a boolean.
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def normalise(arguments: Sequence[str]) -> list[str]:
    """The arguments, those of `run` with two dashes and boolean flags with a value. Others are left alone."""
    if not arguments or arguments[0] != "run":
        return list(arguments)
    result = ["run"]
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--":
            return [*result, argument, *rest]
        name, equals, value = argument.lstrip("-").partition("=")
        if name in _SWITCHES and argument.startswith("-") and value in _FALSE:
            continue
        if name in _SWITCHES and value in _TRUE:
            argument = argument.partition("=")[0]  # noqa: PLW2901 - the parser takes no value here
        result.append(_flag(argument, name, explicit=bool(equals)))
        if name in _VALUED and not equals and argument.startswith("-"):
            result += [value for value in [next(rest, None)] if value is not None]
    return result


def _flag(argument: str, name: str, *, explicit: bool) -> str:
    known = name in _BOOLEAN or name in _VALUED or name in _SWITCHES
    if not argument.startswith("-") or not known:
        return argument
    spelled = "--" + argument.lstrip("-")
    return f"{spelled}=true" if name in _BOOLEAN and not explicit else spelled
