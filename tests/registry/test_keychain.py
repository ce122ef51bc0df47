"""Which credentials belong to which registry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from copycat.errors import Unauthorized, Unavailable
from copycat.registry.dockerconfig import DockerAuth
from copycat.registry.keychain import (
    ANONYMOUS,
    Access,
    AccessKeychain,
    ChainKeychain,
    CredentialRule,
    Credentials,
    StaticKeychain,
    go_match,
)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*.docker.io", "registry-1.docker.io", True),
        ("*.docker.io", "docker.io", False),
        ("*", "a/b", False),
        ("*", "", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        (r"[\]]", "]", True),
        (r"[\-a]", "-", True),
        (r"\*", "*", True),
        (r"\*", "a", False),
        ("a.b", "axb", False),
        ("GHCR.io", "ghcr.io", False),
    ],
)
def test_go_match(pattern: str, name: str, expected: bool) -> None:
    """As Go's filepath.Match."""
    assert go_match(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "a\\", "[z-a]"])
def test_bad_pattern(pattern: str) -> None:
    """What Go calls ErrBadPattern is a ValueError, also at construction."""
    with pytest.raises(ValueError, match="pattern"):
        go_match(pattern, "a")
    with pytest.raises(ValueError, match="pattern"):
        StaticKeychain([CredentialRule(registry="x.io", aliases=(pattern,))])


def rule(
    registry: str,
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    namespaces: frozenset[str] = frozenset(),
) -> CredentialRule:
    """A rule whose user tells which one it was."""
    return CredentialRule(
        registry=registry, aliases=aliases, username=name, password="pw", namespaces=namespaces
    )


RULES = [
    rule("ghcr.io", "host"),
    rule("ghcr.io/team", "path"),
    rule("ghcr.io/team/app", "deeper"),
    rule("https://index.docker.io/v1/", "hub"),
    rule("quay.io", "alias", aliases=("*.Example.com", "index.docker.io", "[g]hcr.io")),
    rule("private.io", "of-a-namespace", namespaces=frozenset({"prod"})),
]


@pytest.mark.parametrize(
    ("registry", "repository", "expected"),
    [
        ("ghcr.io", "other", ["host", "alias"]),
        ("ghcr.io", "team/app", ["deeper", "path", "host", "alias"]),
        ("ghcr.io", "team", ["path", "host", "alias"]),
        ("ghcr.io", "teams/app", ["host", "alias"]),
        ("docker.io", "library/alpine", ["hub", "alias"]),
        ("registry.example.com", "x", ["alias"]),
        ("private.io", "x", []),
        ("ghcr.io.evil.com", "x", []),
        ("evil-ghcr.io", "x", []),
    ],
)
async def test_most_specific_first(registry: str, repository: str, expected: list[str]) -> None:
    """Longer paths first, hosts before aliases; a path ends at a segment, a host is the whole host."""
    found = await StaticKeychain(RULES).resolve(registry, repository, ANONYMOUS)

    assert [c.username for c in found] == expected


async def test_namespaces() -> None:
    """A rule for namespaces is for workloads there."""
    keychain = StaticKeychain(RULES)

    allowed = await keychain.resolve(
        "private.io", "x", Access(namespaces=frozenset({"prod", "dev"}))
    )
    others = await keychain.resolve("private.io", "x", Access(namespaces=frozenset({"dev"})))

    assert [c.username for c in allowed] == ["of-a-namespace"]
    assert others == []


async def test_environment_wins(tmp_path: Path) -> None:
    """A variable wins over a file, a file over the plain value; an empty variable does not count."""
    (tmp_path / "pw").write_text("from-file\n")
    row = CredentialRule(
        registry="x.io",
        username="plain",
        username_env="USER_NAME",
        password="plain",
        password_file=str(tmp_path / "pw"),
        password_env="EMPTY",
    )
    keychain = StaticKeychain([row], environ={"USER_NAME": "from-env", "EMPTY": ""})

    (found,) = await keychain.resolve("x.io", "a", ANONYMOUS)

    assert (found.username, found.password) == ("from-env", "from-file")
    assert found.source == "registryCredentials for x.io"


async def test_nothing_configured() -> None:
    """A rule whose variables are not set is no candidate."""
    keychain = StaticKeychain([CredentialRule(registry="x.io", token_env="T")], environ={})

    assert await keychain.resolve("x.io", "a", ANONYMOUS) == []


async def test_files_are_read_again(tmp_path: Path) -> None:
    """A changed file is noticed after the interval, an unchanged one is not read again."""
    now = 0.0
    file = tmp_path / "token"
    file.write_text("one")
    row = CredentialRule(registry="x.io", token_file=str(file))
    keychain = StaticKeychain([row], clock=lambda: now)

    async def token() -> str:
        (found,) = await keychain.resolve("x.io", "a", ANONYMOUS)
        return found.token

    assert await token() == "one"
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert await token() == "one"
    now = 10.0
    assert await token() == "two"
    now = 20.0
    assert await token() == "two"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_unreadable_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that cannot be read is an error that names rule and file, and not an anonymous request."""
    file = tmp_path / "pw"
    if content is not None:
        file.write_bytes(content)
    row = CredentialRule(
        registry="x.io", username="u", password_file=str(file), source="registryCredentials[3]"
    )

    with pytest.raises(Unauthorized, match=r"password file .* of registryCredentials\[3\]"):
        await StaticKeychain([row]).resolve("x.io", "a", ANONYMOUS)


def test_secrets_stay_secret() -> None:
    """Neither repr nor key shows a secret; the key tells credentials apart."""
    one = Credentials(username="u", password="hunter2", token="hunter2", identity_token="hunter2")

    assert "hunter2" not in repr(one) + one.key
    assert (
        one.key
        == Credentials(
            username="u", password="hunter2", token="hunter2", identity_token="hunter2"
        ).key
    )
    assert one.key != Credentials(username="u", password="hunter3").key


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (Credentials(identity_token="t"), "t"),
        (Credentials(username="<token>", password="t"), "t"),
        (Credentials(username="u", password="t"), ""),
    ],
)
def test_refresh_token(credentials: Credentials, expected: str) -> None:
    """An identity token has two spellings."""
    assert credentials.refresh_token == expected


async def test_chain() -> None:
    """Keychains one after the other, each secret once."""
    secrets = (
        DockerAuth(host="ghcr.io", credentials=Credentials(username="host", password="pw")),
        DockerAuth(host="ghcr.io", credentials=Credentials(token="t")),
    )
    chain = ChainKeychain(StaticKeychain(RULES), AccessKeychain())

    found = await chain.resolve("ghcr.io", "x", Access(secrets=secrets))

    assert [c.username for c in found] == ["host", "alias", ""]


async def test_pull_secrets_stay_with_their_registry() -> None:
    """Whoever asks for another registry's credentials gets none of a pull secret's."""
    auth = DockerAuth(host="ghcr.io", path="team", credentials=Credentials(username="u"))
    access = Access(secrets=(auth,))

    assert await AccessKeychain().resolve("ghcr.io", "team/app", access) == [auth.credentials]
    assert await AccessKeychain().resolve("ghcr.io", "other/app", access) == []
    assert await AccessKeychain().resolve("target.example.com", "team/app", access) == []


class Broken:
    """A keychain that is in trouble."""

    async def resolve(self, registry: str, repository: str, access: Access) -> list[Credentials]:
        """Nothing but an error."""
        raise Unavailable(f"no login for {registry}")


async def test_one_keychain_in_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    """If one keychain fails, the candidates of the others are used and the trouble is told once."""
    chain = ChainKeychain(Broken(), StaticKeychain(RULES))
    for _ in range(3):
        found = await chain.resolve("ghcr.io", "x", ANONYMOUS)
        assert [c.username for c in found] == ["host", "alias"]

    assert capsys.readouterr().out.count("no login for ghcr.io") == 1


async def test_nothing_but_trouble() -> None:
    """If no other has anything, the trouble is the answer, and not an anonymous request."""
    with pytest.raises(Unavailable, match=r"no login for x\.io"):
        await ChainKeychain(Broken(), StaticKeychain(RULES)).resolve("x.io", "a", ANONYMOUS)


async def test_one_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row whose file cannot be read does not stop the next row."""
    rows = [
        CredentialRule(registry="x.io", token_file=str(tmp_path / "absent"), source="row 0"),
        rule("x.io", "second"),
    ]

    (found,) = await StaticKeychain(rows).resolve("x.io", "a", ANONYMOUS)

    assert found.username == "second"
    assert "token file" in capsys.readouterr().out
