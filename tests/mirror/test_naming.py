"""Names at the target: placeholders, path rules, grammar, length."""

from __future__ import annotations

import re

import pytest

from copycat.errors import InvalidReference
from copycat.mirror.naming import ARCH, Naming, PathRule, clean, expand_go_template, subset_tag
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference, is_repository, is_tag


def rule(pattern: str, target: str) -> PathRule:
    """A rule with a regular expression."""
    return PathRule(source=pattern, target=target, pattern=re.compile(pattern))


def name(naming: Naming, image: str = "ghcr.io/team/app:1", **workload: str) -> str:
    """The repository for an image."""
    return naming.repository(Reference.parse(image), **workload)


@pytest.mark.parametrize(
    ("prefix", "image", "wanted"),
    [
        pytest.param("", "nginx", "library/nginx", id="none"),
        pytest.param("mirror", "ghcr.io/a/b:1", "mirror/a/b", id="plain"),
        pytest.param("/Mirror//X/", "ghcr.io/a/b:1", "mirror/x/a/b", id="cleaned"),
        pytest.param("$namespace", "ghcr.io/a/b:1", "shop/a/b", id="namespace"),
        pytest.param("p/$podname", "ghcr.io/a/b:1", "p/web/a/b", id="podname"),
        pytest.param("$container_name", "ghcr.io/a/b:1", "main/a/b", id="container"),
        pytest.param("$registry", "h.example:5000/a/b:1", "h.example__5000/a/b", id="port"),
        pytest.param("$registry", "ghcr.io/a/b:1", "ghcr.io/a/b", id="registry"),
        pytest.param("$namespace-$podname", "ghcr.io/a/b:1", "shop-web/a/b", id="joined"),
        pytest.param("$unknown", "ghcr.io/a/b:1", "unknown/a/b", id="unknown"),
    ],
)
def test_prefix(prefix: str, image: str, wanted: str) -> None:
    """Placeholders take the workload's names, and the whole is a repository name."""
    found = name(Naming(prefix=prefix), image, namespace="shop", owner="web", container="main")
    assert found == wanted
    assert is_repository(found)


@pytest.mark.parametrize(
    ("prefix", "flags"),
    [
        pytest.param("x/$registry", (False, False, False), id="registry"),
        pytest.param("$namespace", (False, True, True), id="namespace"),
        pytest.param("x/ns-$namespace/y", (False, True, True), id="namespace in a segment"),
        pytest.param("$namespace-$podname", (False, False, True), id="two in a segment"),
        pytest.param("$podname", (False, False, True), id="podname"),
        pytest.param("$container_name", (False, False, True), id="container"),
        pytest.param("$arch", (True, False, False), id="arch"),
    ],
)
def test_what_a_prefix_needs(prefix: str, flags: tuple[bool, bool, bool]) -> None:
    """A naming says what has to be known before a name is complete, and what separates workloads."""
    found = Naming(prefix=prefix)
    assert (found.needs_architecture, found.separates_namespaces, found.per_workload) == flags


def test_architecture() -> None:
    """`$arch` stays until the image is known; then it is the architectures, once each, sorted."""
    naming = Naming(prefix="m/$arch")
    open_name = name(naming)
    assert ARCH in open_name
    assert naming.finish(open_name, ["arm64", "amd64", "arm64"]) == "m/amd64-arm64/team/app"
    assert naming.finish(open_name) == "m/team/app"
    assert naming.finish("m/team/app", ["amd64"]) == "m/team/app"


@pytest.mark.parametrize("prefix", ["", "$arch"], ids=["at-once", "once-the-image-is-known"])
def test_no_name(prefix: str) -> None:
    """Rules that leave nothing of a path are said to, before anything is asked or read."""
    naming = Naming(prefix=prefix, rules=[rule(".*", "--")])
    with pytest.raises(InvalidReference, match="pathMap"):
        naming.finish(name(naming))


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        pytest.param([PathRule(source="team/", target="t/")], "t/app", id="prefix"),
        pytest.param([PathRule(source="x", target="y")], "team/app", id="no-match"),
        pytest.param([rule(r"^team/(.+)$", "t/$1/x")], "t/app/x", id="group"),
        pytest.param([rule(r"^(?P<who>\w+)/", "${who}s/")], "teams/app", id="named-group"),
        pytest.param([rule("^x", "y"), rule("app", "b")], "team/b", id="first-that-matches"),
        pytest.param([rule("t", "d"), rule("d", "e")], "deam/app", id="only-one"),
        pytest.param([rule("(.*)", "m/$1")], "m/team/app", id="all-of-it-once"),
        pytest.param([rule("p*$", "q")], "team/aq", id="no-empty-match-at-the-end"),
        pytest.param([rule("x*", "z")], "ztzezazmz/zazpzpz", id="empty-matches"),
    ],
)
def test_path_rules(rules: list[PathRule], wanted: str) -> None:
    """The first rule that matches rewrites the path, as Go's ReplaceAllString would."""
    assert name(Naming(rules=rules)) == wanted


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        pytest.param("$1-$2", "a-b", id="numbers"),
        pytest.param("${1}x", "ax", id="braces"),
        pytest.param("$1x", "", id="longest-name"),
        pytest.param("$n", "b", id="name"),
        pytest.param("$9$nobody", "", id="no-such-group"),
        pytest.param("$$1", "$1", id="dollar"),
        pytest.param("$0", "ab", id="whole"),
        pytest.param("$3.", ".", id="not-taken"),
        pytest.param("$", "$", id="malformed"),
        pytest.param("$²", "", id="digit-that-is-no-number"),
    ],
)
def test_go_templates(template: str, wanted: str) -> None:
    """Replacement texts mean what they mean in Go."""
    match = re.match("(a)(?P<n>b)(c)?", "ab")
    assert match is not None
    assert expand_go_template(template, match) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        pytest.param("A/B", "a/b", id="case"),
        pytest.param("a b/c:d", "a-b/c-d", id="characters"),
        pytest.param("a//b/", "a/b", id="empty-parts"),
        pytest.param("-a-/_b_/.c.", "a/b/c", id="ends"),
        pytest.param("a..b/c.-d/e___f", "a-b/c-d/e-f", id="runs"),
        pytest.param("a__b/c--d/e.f/g_h", "a__b/c--d/e.f/g_h", id="kept"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_clean(path: str, wanted: str) -> None:
    """Any path becomes one that registries take, and a good one stays as it is."""
    assert clean(path) == wanted


def test_length() -> None:
    """A path that is too long is cut, stays valid, and stays apart from its neighbours."""
    first, second = (Naming(prefix="x" * 30 + "/" + end, max_length=40) for end in ("abc", "abd"))
    names = {name(first), name(second)}
    assert len(names) == 2
    assert all(len(n) <= 40 and is_repository(n) for n in names)
    assert clean("a" * 40, max_length=40) == "a" * 40


def test_marker() -> None:
    """The marker of a narrowed copy names its root and its platforms, in whatever order they come."""
    amd, arm = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
    assert subset_tag("ab" * 32, [amd, arm]) == subset_tag("ab" * 32, [arm, amd])
    assert subset_tag("ab" * 32, [amd]) != subset_tag("ab" * 32, [arm])
    assert is_tag(subset_tag("ab" * 64, [amd]))
