"""Go's and YAML's spellings of values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.config import values


@pytest.mark.parametrize(
    "word", ["1", "t", "T", "TRUE", "true", "True", "yes", "Yes", "on", "ON", 1, True], ids=repr
)
def test_true(word: object) -> None:
    """Every spelling of true, in any case."""
    assert values.boolean(word) is True


@pytest.mark.parametrize(
    "word", ["0", "f", "F", "FALSE", "false", "no", "No", "off", "OFF", 0, False], ids=repr
)
def test_false(word: object) -> None:
    """Every spelling of false, in any case."""
    assert values.boolean(word) is False


@pytest.mark.parametrize(
    "word", ["", "y", "n", "maybe", "2", 2, -1, 1.0, None, [], "enabled"], ids=repr
)
def test_neither(word: object) -> None:
    """Anything else is an error, not false."""
    with pytest.raises(ValueError, match="expected true or false"):
        values.boolean(word)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (120, 120),
        (0.5, 0.5),
        ("120", 120),
        ("1.5", 1.5),
        ("0", 0),
        ("2m", 120),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+1m", 60),
        ("1m0.5s", 60.5),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("9ns", 9e-9),
        (" 2m ", 120),
    ],
    ids=repr,
)
def test_durations(written: object, seconds: float) -> None:
    """Seconds and Go durations mean seconds."""
    assert values.duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", "-1", -1, "2 m", "m", "1d", "2m5", "inf", float("nan"), float("inf"), True, None, [1]],
    ids=repr,
)
def test_no_durations(written: object) -> None:
    """What Go would refuse, and what is negative, is refused."""
    with pytest.raises(ValueError, match="Go duration"):
        values.duration(written)


@pytest.mark.parametrize("written", [3, "3", "+3", " 3 ", 3.0], ids=repr)
def test_whole_numbers(written: object) -> None:
    """Numbers and their texts."""
    assert values.whole(0)(written) == 3


@pytest.mark.parametrize(
    "written",
    ["", "x", "-1", -1, 1.5, "1.5", True, None, [], float("nan"), float("inf"), "9" * 30],
    ids=repr,
)
def test_no_whole_numbers(written: object) -> None:
    """Fractions, negative numbers and booleans are no counts."""
    with pytest.raises(ValueError, match="whole number, at least 0"):
        values.whole(0)(written)


def test_the_minimum_is_said() -> None:
    """The message names the least that is accepted."""
    with pytest.raises(ValueError, match="at least 1"):
        values.whole(1)(0)


@pytest.mark.parametrize(
    ("written", "minutes"),
    [(None, None), ("growing", None), ("Growing", None), (0, 0), ("60", 60)],
    ids=repr,
)
def test_cooldown(written: object, minutes: int | None) -> None:
    """A number is flat; nothing and `growing` grow."""
    assert values.cooldown(written) == minutes


def test_no_cooldown() -> None:
    """The message knows `growing`."""
    with pytest.raises(ValueError, match='0 for none, or "growing"'):
        values.cooldown("soon")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (1000, 1000),
        ("50Mi", 50 * 2**20),
        ("50MiB", 50 * 2**20),
        ("1G", 10**9),
        ("1.5Ki", 1536),
        ("2k", 2000),
        ("2K", 2000),
        ("1Ti", 2**40),
        (2.0, 2),
    ],
    ids=repr,
)
def test_sizes(written: object, size: int) -> None:
    """Bytes and Kubernetes quantities mean bytes."""
    assert values.size(written) == size


@pytest.mark.parametrize("written", ["", "-1", -1, "50Mb/s", "Mi", "50m", True, None, []], ids=repr)
def test_no_sizes(written: object) -> None:
    """Other units, and milli-bytes, are refused."""
    with pytest.raises(ValueError, match="expected a number of bytes"):
        values.size(written)


@pytest.mark.parametrize(
    ("written", "share"),
    [("50%", 0.5), (0.5, 0.5), ("0.2", 0.2), (0, 0), ("0", 0), (1, 1), ("100 %", 1)],
    ids=repr,
)
def test_shares(written: object, share: float) -> None:
    """Percentages and fractions mean a part of one."""
    assert values.share(written) == pytest.approx(share)


@pytest.mark.parametrize("written", ["", "50", 50, "101%", "-1%", True, None, [], "half"], ids=repr)
def test_no_shares(written: object) -> None:
    """More than all, and whole numbers that are percentages in disguise, are refused."""
    with pytest.raises(ValueError, match="expected a share"):
        values.share(written)


@pytest.mark.parametrize(
    "written",
    [":8080", "127.0.0.1:8080", "[::1]:8080", "localhost:0", "0.0.0.0:65535", "0", 0, " :1 "],
    ids=repr,
)
def test_addresses(written: object) -> None:
    """Go's listen addresses, and `0` for none."""
    assert values.address(written) == str(written).strip()


@pytest.mark.parametrize(
    "written", ["", "8080", 8080, ":x", ":65536", "::1:8080", "http://x:1", False, None], ids=repr
)
def test_no_addresses(written: object) -> None:
    """A bare port, a name for a port, and a URL are refused."""
    with pytest.raises(ValueError, match="expected an address"):
        values.address(written)


@pytest.mark.parametrize(
    ("written", "entries"),
    [
        ("a, b,,c ", ["a", "b", "c"]),
        ("", []),
        ([], []),
        (["a", "", None, 1], ["a", 1]),
        (("a",), ["a"]),
        ([{"a": 1}], [{"a": 1}]),
    ],
    ids=repr,
)
def test_lists(written: object, entries: list[object]) -> None:
    """Lists, and text with commas; empty entries vanish."""
    assert values.entries(written) == entries


@pytest.mark.parametrize("written", [1, True, None, {"a": 1}], ids=repr)
def test_no_lists(written: object) -> None:
    """A single number is no list."""
    with pytest.raises(ValueError, match="expected a list"):
        values.entries(written)


@pytest.mark.parametrize(
    "written", ["web", "team-*", "shop/web", "*", "?", "a.b", "*/web", 123], ids=repr
)
def test_names(written: object) -> None:
    """Names of Kubernetes objects with wildcards, with and without a namespace."""
    assert values.name(written) == str(written)


@pytest.mark.parametrize(
    "written", ["", "Web", "a/b/c", "a b", "[ab]", "-a", "/a", "a/", True], ids=repr
)
def test_no_names(written: object) -> None:
    """What can never match is refused, not ignored."""
    with pytest.raises(ValueError, match="expected"):
        values.name(written)


def test_namespaces_have_no_slash() -> None:
    """A namespace is a single name."""
    assert values.namespace("team-*") == "team-*"
    with pytest.raises(ValueError, match="no /"):
        values.namespace("a/b")


def test_images() -> None:
    """Images are checked as they will be parsed, and kept as written."""
    assert values.image("nginx:1.27") == "nginx:1.27"
    with pytest.raises(ValueError, match="expected the name of an image"):
        values.image("UPPER/Case")


def test_platforms() -> None:
    """Platforms get their normal spelling."""
    assert values.platform("linux/aarch64") == "linux/arm64"
    with pytest.raises(ValueError, match="os/arch"):
        values.platform("arm64")


@pytest.mark.parametrize(
    ("written", "text"), [("", ""), ('{"a": 1}', '{"a": 1}'), ({"a": [1]}, '{"a": [1]}')], ids=repr
)
def test_json_texts(written: object, text: str) -> None:
    """JSON text stays as it is; YAML becomes JSON."""
    assert values.json_text(written) == text


@pytest.mark.parametrize("written", ["{", "[1]", "x", 1, True, None], ids=repr)
def test_no_json_texts(written: object) -> None:
    """Only objects are policies."""
    with pytest.raises(ValueError, match="JSON text of an object"):
        values.json_text(written)


def test_choices() -> None:
    """A word in any case, a further spelling, a near miss, and nonsense."""
    read: Callable[..., Any] = values.choice(
        "none", "all", also={False: "none", "off": "none"}
    ).func
    assert [read(w) for w in ("ALL", False, "off", "OFF", " none ")] == [
        "all",
        "none",
        "none",
        "none",
        "none",
    ]
    with pytest.raises(ValueError, match='did you mean "none"'):
        read("nome")
    with pytest.raises(ValueError, match=r"expected one of none, all$"):
        read(3)
    with pytest.raises(ValueError, match="expected one of"):
        read(True)


@given(
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()))
)
def test_readers_accept_or_raise_value_error(value: object) -> None:
    """No value whatsoever makes a reader fail in another way."""
    readers: list[Callable[[object], object]] = [
        values.boolean,
        values.duration,
        values.whole(0),
        values.cooldown,
        values.size,
        values.share,
        values.address,
        values.text,
        values.entries,
        values.name,
        values.namespace,
        values.platform,
        values.json_text,
    ]
    for read in readers:
        with contextlib.suppress(ValueError):
            read(value)
