"""Every reason code that the program can give, read off its source.

A reason is a constant text at one of these places: the keyword or parameter `reason` of a call, a class's
`default_reason`, a variable named `reason`, and the value that a function returns in the place where its
caller unpacks a `reason`. A place that holds anything else must only hand a reason on; otherwise this
module refuses, so that no code can hide from the documentation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

__all__ = ["Unreadable", "constant_texts", "reasons", "sources", "warnings"]

#: A module whose `reason` is a sentence of a health check, not a code.
_OTHERS = frozenset({"copycat/app/probes.py"})
NAMES = frozenset({"reason", "timeout_reason", "default_reason"})
#: What only hands a reason on: the texts come from somewhere that is looked at too (a state has its own section).
_HANDED_ON = frozenset(
    {"reason", "timeout_reason", "default_reason", "code", "refusal", "verdict", "state"}
)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


class Unreadable(AssertionError):
    """A reason that cannot be read off the source."""


def sources() -> list[Path]:
    """The modules of the program; the sandbox's errors are those of its servers."""
    package = ROOT / "copycat"
    return [p for p in sorted(package.rglob("*.py")) if "sandbox" not in p.parts]


def _with_reasons() -> list[Path]:
    return [p for p in sources() if str(p.relative_to(ROOT)) not in _OTHERS]


class _Module:
    """One module, with what is needed to follow its reasons."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = _parsed(path)
        self.constants: dict[str, str] = {}
        self.tables: dict[str, list[ast.expr]] = {}
        """Name of a mapping → the values in it."""
        self.places: dict[str, int] = {}
        """Function or class → position of its parameter `reason`, `self` not counted."""
        self.imported: dict[str, str] = {}
        """Name that comes from another module of the program → that module."""
        self.returned: dict[str, int] = {}
        """Function → place of the reason in the tuple that it returns."""
        for node in ast.walk(self.tree):
            self._learn(node)

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            self._learn_name(node)
        elif isinstance(node, ast.ImportFrom) and node.module:
            self.imported |= {a.asname or a.name: node.module for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in node.args.args if a.arg not in {"self", "cls"}]
            self._place(node.name, names)
        elif isinstance(node, ast.ClassDef):
            fields = [
                s.target.id
                for s in node.body
                if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
            ]
            self._place(node.name, fields)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = _unpacked(node.targets[0])
            if "reason" in names and isinstance(node.value.func, ast.Name):
                self.returned[node.value.func.id] = names.index("reason")

    def _learn_name(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        match node.value:
            case ast.Constant(value=str(text)):
                self.constants |= dict.fromkeys(names, text)
            case ast.Dict(values=values):
                self.tables |= dict.fromkeys(names, values)
            case _:
                pass

    def _place(self, name: str, parameters: list[str]) -> None:
        found = [n for n in parameters if n in NAMES - {"default_reason"}]
        if found:
            self.places[name] = parameters.index(found[0])

    def values(self) -> Iterator[ast.expr]:
        """Every expression that is a reason."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield from (k.value for k in node.keywords if k.arg in NAMES)
                name = (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute)
                    else getattr(node.func, "id", "")
                )
                if name in self.places and len(node.args) > self.places[name]:
                    yield node.args[self.places[name]]
            elif isinstance(node, ast.Assign):
                yield from _assigned(node)
                yield from _alternatives(node)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                if isinstance(node.target, ast.Name) and node.target.id in NAMES:
                    yield node.value
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._results(node)

    def _results(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
        place = self.returned.get(function.name)
        for node in ast.walk(function):
            if not isinstance(node, ast.Return) or node.value is None:
                continue
            if place is not None and isinstance(node.value, ast.Tuple):
                yield node.value.elts[place]
            elif place is None and function.name == "_verdict":
                yield node.value

    def texts(self, value: ast.expr) -> Iterator[str]:
        """The texts that an expression can have. Raises Unreadable."""
        match value:
            case ast.Constant(value=str(text)):
                yield text
            case ast.Constant(value=None):
                pass
            case ast.IfExp():
                yield from self.texts(value.body)
                yield from self.texts(value.orelse)
            case ast.BoolOp():
                for part in value.values:
                    yield from self.texts(part)
            case ast.Name(id=name) if name in self.constants:
                yield self.constants[name]
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in _HANDED_ON:
                pass
            case ast.Subscript(value=ast.Name(id=name)) if name in self.tables:
                for entry in self.tables[name]:
                    yield from self.texts(entry)
            case ast.Call(func=ast.Name(id="str")):
                pass  # the status of an answer
            case _:
                raise Unreadable(
                    f"{self.path}:{value.lineno}: what reason is {ast.unparse(value)}?"
                )


def _unpacked(target: ast.expr) -> list[str]:
    return [e.id if isinstance(e, ast.Name) else "" for e in getattr(target, "elts", ())]


def _assigned(node: ast.Assign) -> Iterator[ast.expr]:
    for target in node.targets:
        if isinstance(target, ast.Name) and target.id in NAMES:
            yield node.value
        names = _unpacked(target)
        if "reason" in names and isinstance(node.value, ast.Tuple):
            yield node.value.elts[names.index("reason")]


def _alternatives(node: ast.Assign) -> Iterator[ast.expr]:
    """The words of `Refusal = Literal[…]`: why a target holds everybody."""
    names = [t.id for t in node.targets if isinstance(t, ast.Name)]
    if "Refusal" in names and isinstance(node.value, ast.Subscript):
        yield from getattr(node.value.slice, "elts", [node.value.slice])


def _linked() -> list[_Module]:
    """The modules, each with what it knows of the functions and classes that it imports."""
    modules = {_dotted(path): _Module(path) for path in _with_reasons()}
    own = {name: (dict(m.places), dict(m.constants)) for name, m in modules.items()}
    for module in modules.values():
        for name, origin in module.imported.items():
            places, constants = own.get(origin, ({}, {}))
            if name in places:
                module.places.setdefault(name, places[name])
            if name in constants:
                module.constants.setdefault(name, constants[name])
    return list(modules.values())


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def reasons() -> dict[str, set[str]]:
    """Reason code → the modules that give it."""
    found: dict[str, set[str]] = {}
    for module in _linked():
        for value in module.values():
            for text in module.texts(value):
                if text:
                    found.setdefault(text, set()).add(str(module.path.relative_to(ROOT)))
    return found


def warnings() -> dict[str, set[str]]:
    """The events that are logged as warnings or errors → the modules that log them."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Call) and node.args and _warns(node.func):
                for text in _texts(node.args[0]):
                    found.setdefault(text, set()).add(str(path.relative_to(ROOT)))
    return found


def _warns(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in {"warning", "error", "exception"}
        and "log" in ast.unparse(function.value)
    )


def _texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)


def constant_texts() -> str:
    """All constant texts of the program, formatted values as `…`, one a line: what its messages are made of."""
    lines = []
    for path in sources():
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)
