"""Servers that repeat logins."""

from __future__ import annotations

import base64
from urllib.parse import quote, urlencode

import pytest

from copycat.errors import RegistryError
from copycat.registry.echoes import without_echo
from copycat.registry.keychain import Credentials
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, world

CANARY = "canary/9a7c+x=="


def basic(password: str) -> str:
    """A header."""
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "form", "body", "expected"),
    [
        pytest.param("", b"", b"as it is", b"as it is", id="nothing sent"),
        pytest.param(f"Bearer {CANARY}", b"", f"no {CANARY}!".encode(), b"no ***!", id="bearer"),
        pytest.param(
            f"Bearer {CANARY}", b"", f"no {CANARY.rstrip('=')}".encode(), b"no ***", id="cut"
        ),
        pytest.param(basic(CANARY), b"", f"{CANARY} is wrong".encode(), b"*** is wrong", id="password"),
        pytest.param(basic("pw12"), b"", basic("pw12").encode(), b"Basic ***", id="header"),
        pytest.param(basic("no"), b"", b"no such name", b"no such name", id="a word"),
        pytest.param(
            "",
            urlencode({"refresh_token": CANARY, "service": "registry"}).encode(),
            f"registry: {CANARY}, {urlencode({'x': CANARY})}".encode(),
            b"registry: ***, x=***",
            id="form",
        ),
        pytest.param(
            basic(CANARY), b"", f"u={quote(CANARY)} v={quote(CANARY, safe='')}".encode(), b"u=*** v=***", id="in URLs"
        ),
        pytest.param(
            basic('a"b/ü'), b"", rb'["a\"b/\u00fc", "a\"b\/\u00fc"]', b'["***", "***"]', id="in JSON"
        ),
    ],
)  # fmt: skip
def test_without_echo(authorization: str, form: bytes, body: bytes, expected: bytes) -> None:
    """What was sent is taken out, in every spelling in which it went; everything else stays."""
    assert without_echo(body, authorization=authorization, form=form) == expected


@pytest.mark.parametrize("auth", ["basic", "token"])
@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_an_error_in_prose(auth: str, status: int) -> None:
    """Whatever the status, and from registry and token service alike."""
    credentials = Credentials(username="me", password=CANARY)
    phase = Phase.TOKEN if auth == "token" else Phase.GET_MANIFEST
    async with (
        Registry(auth=auth, username="me", password=CANARY) as registry,  # type: ignore[arg-type] # one of its words
        world(registry.address, keys=Keys(credentials)) as here,
    ):
        body = f"what should {CANARY} mean".encode()
        registry.fail(phase, status=status, body=body, times=None)
        with pytest.raises(RegistryError) as caught:
            await here.source(registry.address).get_manifest("1")

        assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param(Credentials(username="me", password=CANARY), id="password"),
        pytest.param(Credentials(identity_token=CANARY), id="identity token"),
    ],
)
async def test_no_token_but_the_login(credentials: Credentials) -> None:
    """A token service that answers 200 without a token is quoted, less what it was sent."""
    async with (
        Registry(auth="token", profile="acr") as registry,
        world(registry.address, keys=Keys(credentials)) as here,
    ):
        registry.fail(Phase.TOKEN, status=200, body=f"hi {CANARY}".encode(), times=None)
        with pytest.raises(RegistryError, match=r"without a token: hi \*\*\*"):
            await here.source(registry.address).get_manifest("1")


async def test_a_warning_with_the_login(capsys: pytest.CaptureFixture[str]) -> None:
    """A Warning header is logged, less what the registry was sent."""
    async with (
        Registry(auth="basic", username="me", password=CANARY) as registry,
        world(registry.address, keys=Keys(Credentials(username="me", password=CANARY))) as here,
    ):
        headers = {"Warning": f'299 - "{CANARY} is old"'}
        registry.fail(Phase.GET_MANIFEST, status=404, headers=headers, times=None)
        with pytest.raises(RegistryError):
            await here.source(registry.address).get_manifest("1")

    out = capsys.readouterr().out
    assert "*** is old" in out
    assert CANARY not in out


async def test_an_identity_token_in_prose() -> None:
    """The form of a token request is a login too."""
    credentials = Credentials(identity_token=CANARY)
    async with (
        Registry(auth="token", profile="acr") as registry,
        world(registry.address, keys=Keys(credentials)) as here,
    ):
        registry.fail(Phase.TOKEN, status=418, body=f"{CANARY} tea".encode(), times=None)
        with pytest.raises(RegistryError, match=r"\*\*\* tea"):
            await here.source(registry.address).get_manifest("1")
