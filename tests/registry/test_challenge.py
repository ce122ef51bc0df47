"""WWW-Authenticate in all the ways that it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.registry.challenge import Challenge, covers, find, parse_challenges

BEARER = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["Basic"], [("basic", {})], id="bare"),
        pytest.param(['Basic realm="x"'], [("basic", {"realm": "x"})], id="basic"),
        pytest.param(
            [BEARER],
            [
                (
                    "bearer",
                    {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"},
                )
            ],
            id="hub",
        ),
        pytest.param(
            ['bearer REALM="https://a/t?x=1,2",Scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/t?x=1,2", "scope": "repository:a/b:pull,push"})],
            id="quoted-commas-and-case",
        ),
        pytest.param(
            [r'Basic realm="say \"hi\", \\o/"'],
            [("basic", {"realm": r'say "hi", \o/'})],
            id="escaped-quotes",
        ),
        pytest.param(
            ['Bearer realm="a",service="b", Basic realm="c"'],
            [("bearer", {"realm": "a", "service": "b"}), ("basic", {"realm": "c"})],
            id="two-in-one-header",
        ),
        pytest.param(
            ['Basic realm="c"', 'Bearer realm="a"'],
            [("basic", {"realm": "c"}), ("bearer", {"realm": "a"})],
            id="two-headers",
        ),
        pytest.param(
            ["Negotiate YIIJvwYGKwYBBQUCoIIJszCCCa+gJzAlBg==, Basic realm=x"],
            [("negotiate", {}), ("basic", {"realm": "x"})],
            id="token68",
        ),
        pytest.param(
            ["Bearer realm=https://a/t , service=b"],
            [("bearer", {"realm": "https://a/t", "service": "b"})],
            id="unquoted",
        ),
        pytest.param(
            ['Bearer realm = "a" , , service="b"'],
            [("bearer", {"realm": "a", "service": "b"})],
            id="blanks-and-empty-elements",
        ),
        pytest.param(['Bearer realm="a'], [("bearer", {"realm": "a"})], id="never-closed"),
        pytest.param(['realm="a"'], [], id="no-scheme"),
        pytest.param(
            ["Basic, Bearer realm=a"], [("basic", {}), ("bearer", {"realm": "a"})], id="list"
        ),
        pytest.param(["Bearer realm=a,realm=b"], [("bearer", {"realm": "a"})], id="first-counts"),
    ],
)
def test_parse(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    """Several headers, several challenges in one, quoted commas and quotes, any case."""
    assert [(c.scheme, c.params) for c in parse_challenges(headers)] == expected


@given(st.lists(st.text(), max_size=3))
def test_never_fails(headers: list[str]) -> None:
    """Whatever a server sends is read without an error."""
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


_WORDS = st.text("abcXYZ019-_", min_size=1, max_size=8)


@given(
    st.lists(
        st.tuples(
            _WORDS,
            st.dictionaries(
                _WORDS.map(str.lower),
                st.text(st.characters(codec="ascii", exclude_categories=["C"])),
                min_size=1,
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_round_trip(challenges: list[tuple[str, dict[str, str]]]) -> None:
    """What is written as the RFC says is read back."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in params.items())
        for scheme, params in challenges
    )

    assert [(c.scheme, c.params) for c in parse_challenges([header])] == [
        (scheme.lower(), params) for scheme, params in challenges
    ]


def test_find() -> None:
    """The first challenge of a scheme, or none."""
    found = parse_challenges(['Basic realm="c"', 'Bearer realm="a"', 'Bearer realm="b"'])

    assert find(found, "bearer") == Challenge(scheme="bearer", params={"realm": "a"})
    assert find(found, "negotiate") is None


def test_scopes() -> None:
    """Several scopes of one parameter are several scopes (container-libs#1130)."""
    challenge = Challenge(
        scheme="bearer", params={"scope": "repository:a:pull  repository:b:pull,push"}
    )

    assert challenge.scopes == ("repository:a:pull", "repository:b:pull,push")
    assert Challenge(scheme="bearer").scopes == ()


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        (["repository:a:pull,push"], ["repository:a:pull"], True),
        (["repository:a:pull"], ["repository:a:pull,push"], False),
        (["repository:a:pull"], ["repository:b:pull"], False),
        (["repository:a:pull", "repository:a:push"], ["repository:a:push,pull"], True),
        (["repository:a:pull"], [], True),
    ],
)
def test_covers(have: list[str], want: list[str], expected: bool) -> None:
    """A scope with more actions serves one with fewer, of the same repository."""
    assert covers(have, want) is expected
