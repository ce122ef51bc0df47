"""Docker's config.json and .dockercfg: which login is for which image."""

from __future__ import annotations

import base64
import json

import pytest

from copycat.registry.credentials import Credentials
from copycat.registry.dockerconfig import DockerAuth, DockerConfig, matching, parse_docker_config

CANARY = "canary-7f3a"


def encoded(text: str) -> str:
    """The `auth` of an entry."""
    return base64.b64encode(text.encode()).decode()


def parsed(auths: object) -> DockerConfig:
    """The logins of a config.json with these `auths`."""
    return parse_docker_config(json.dumps({"auths": auths}).encode(), source="the file")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param({"auth": encoded("u:p:q")}, ("u", "p:q", "", ""), id="auth"),
        pytest.param({"auth": encoded("u:pw").rstrip("=")}, ("u", "pw", "", ""), id="no padding"),
        pytest.param(
            {"auth": base64.encodebytes(b"u:" + b"p" * 90).decode().replace("\n", "\r\n")},
            ("u", "p" * 90, "", ""),
            id="in lines",
        ),
        pytest.param({"auth": encoded("u:p\0\0")}, ("u", "p", "", ""), id="padded with NUL"),
        pytest.param({"username": "u", "password": "p"}, ("u", "p", "", ""), id="in clear"),
        pytest.param(
            {"username": "a", "password": "b", "auth": encoded("u:p")},
            ("u", "p", "", ""),
            id="both",
        ),
        pytest.param(
            {"auth": encoded("u:"), "identitytoken": "t"}, ("u", "", "", "t"), id="identity token"
        ),
        pytest.param({"registrytoken": "t"}, ("", "", "t", ""), id="registry token"),
        pytest.param(
            {"username": "u", "password": None, "email": "e"}, ("u", "", "", ""), id="null"
        ),
    ],
)
def test_logins(entry: object, expected: tuple[str, str, str, str]) -> None:
    """Every spelling of a login that docker writes or a kubelet reads."""
    [auth] = parsed({"reg.example.com": entry}).auths

    found = auth.credentials
    assert (found.username, found.password, found.token, found.identity_token) == expected
    assert found.source == "the file"


def test_older_form() -> None:
    """A .dockercfg is the same without `auths` around it."""
    raw = json.dumps({"https://reg.example.com/v1/": {"auth": encoded("u:p")}}).encode()

    [auth] = parse_docker_config(raw, source="s", legacy=True).auths

    assert (auth.host, auth.path, auth.credentials.password) == ("reg.example.com", "", "p")


@pytest.mark.parametrize(
    "auths",
    [None, {}, {"a.io": {}}, {"a.io": {"email": "x"}}],
    ids=["null", "none", "empty", "mail"],
)
def test_nothing_in_it(auths: object) -> None:
    """No login is no problem: credential helpers leave empty entries."""
    assert parsed(auths) == DockerConfig()


@pytest.mark.parametrize(
    ("raw", "legacy"),
    [
        (b"", False),
        (CANARY.encode(), False),
        (b"\xff{}", False),
        (b"[]", False),
        (b'{"auths": "' + CANARY.encode() + b'"}', False),
        (b'{"a.io": 1', True),
        (b"[]", True),
        (b'{"auths": {"a.io": ' + b"[" * 100_000, False),
    ],
    ids=["empty", "text", "not utf-8", "list", "auths a text", "cut", "list, older form", "deep"],
)
def test_not_of_the_form(raw: bytes, legacy: bool) -> None:
    """What is no config.json is refused in words that tell nothing of it."""
    with pytest.raises(ValueError, match="it is not JSON of the form") as caught:
        parse_docker_config(raw, source="s", legacy=legacy)

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "entry", "problem"),
    [
        ("bad.io", CANARY, "is not an object of strings"),
        ("bad.io", {"username": 1}, "is not an object of strings"),
        ("bad.io", {"auth": CANARY + "!"}, "has an auth that is not base64 text"),
        (
            "bad.io",
            {"auth": base64.b64encode(b"\xff\xfe").decode()},
            "has an auth that is not base64",
        ),
        ("bad.io", {"auth": encoded(CANARY)}, "has an auth without a colon"),
        ("", {"auth": encoded(CANARY + ":p")}, "names no registry"),
        ("ftp://bad.io", {"auth": encoded(CANARY + ":p")}, "names no registry"),
        ("[a.bad.io", {"auth": encoded(CANARY + ":p")}, "has a malformed pattern"),
    ],
)
def test_a_broken_entry_costs_itself(key: str, entry: object, problem: str) -> None:
    """The other entries are used, and the broken one is told without its content."""
    found = parsed({key: entry, "good.io": {"auth": encoded("u:p")}})

    assert [a.host for a in found.auths] == ["good.io"]
    [told] = found.problems
    assert told.startswith(f"the entry {key!r}")
    assert problem in told
    assert CANARY not in told


@pytest.mark.parametrize(
    ("key", "image", "expected"),
    [
        ("reg.example.com", "reg.example.com/a/b", True),
        ("https://reg.example.com", "reg.example.com/a/b", True),
        ("http://reg.example.com/v2/", "reg.example.com/a/b", True),
        ("https://user@Reg.Example.com/", "reg.example.com/a/b", True),
        ("reg.example.com.evil.org", "reg.example.com/a", False),
        ("reg.example.com", "reg.example.com.evil.org/a", False),
        ("reg.example.com:5000", "reg.example.com:5000/a", True),
        ("reg.example.com", "reg.example.com:5000/a", False),
        ("reg.example.com:5000", "reg.example.com/a", False),
        ("*.example.com", "reg.example.com/a", True),
        ("*.example.com", "a.reg.example.com/a", False),
        ("*.example.com", "example.com/a", False),
        ("*.example.com:5000", "reg.example.com:5000/a", True),
        ("*.example.com:5000", "reg.example.com:5001/a", False),
        ("re?.*.com", "reg.example.com/a", True),
        ("*.example.com/team", "reg.example.com/team/app", True),
        ("*.example.com/team", "reg.example.com/other", False),
        ("reg.example.com/team", "reg.example.com/team", True),
        ("reg.example.com/team/", "reg.example.com/team/app", True),
        ("reg.example.com/team", "reg.example.com/team-b/app", False),
        ("reg.example.com/v1/team", "reg.example.com/team/app", True),
        ("https://index.docker.io/v1/", "docker.io/library/alpine", True),
        ("docker.io", "docker.io/library/alpine", True),
        ("registry-1.docker.io", "docker.io/library/alpine", True),
        ("docker.io/library", "docker.io/library/alpine", True),
        ("docker.io/other", "docker.io/library/alpine", False),
        ("[::1]:5000", "[::1]:5000/a", True),
        ("[::1]:5000", "[::1]:5001/a", False),
    ],
)
def test_matching(key: str, image: str, expected: bool) -> None:
    """What a kubelet matches: host, port, one label per wildcard, and a path at a segment's end."""
    registry, _, repository = image.partition("/")

    found = matching(parsed({key: {"username": "u"}}).auths, registry, repository)

    assert bool(found) is expected


def test_order() -> None:
    """All that match, the longest path first, a host before a pattern, each login once."""
    auths = parsed(
        {
            "*.io": {"username": "pattern"},
            "reg.io": {"username": "host"},
            "https://reg.io/v2/": {"username": "host"},
            "*.io/team/deep": {"username": "deep"},
            "reg.io/team": {"username": "team"},
            "other.io": {"username": "other"},
        }
    ).auths

    found = matching(auths, "reg.io", "team/deep/app")

    assert [c.username for c in found] == ["deep", "team", "host", "pattern"]


def test_more_logins_than_anybody_needs() -> None:
    """Whoever may write a Secret cannot keep the program busy with it."""
    found = parsed({f"{n}.io": {"username": "u"} for n in range(2000)})

    assert len(found.auths) == 1000
    assert found.problems == ("of 2000 entries the first 1000 are used",)


def test_repr_says_no_secret() -> None:
    """An entry can be logged."""
    [auth] = parsed({"a.io": {"auth": encoded(f"u:{CANARY}"), "identitytoken": CANARY}}).auths

    assert CANARY not in repr(auth)
    assert auth == DockerAuth(
        host="a.io",
        credentials=Credentials(
            username="u", password=CANARY, identity_token=CANARY, source="the file"
        ),
    )
