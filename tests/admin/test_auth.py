"""Who is let in where."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from copycat.admin.auth import Guard
from tests.admin.stubs import TOKEN, Controller, serve

ACTIONS = ["/reset-cooldown", "/force-reconcile"]
READS = ["/api/v1/images", "/api/v1/status", "/api/v1/transfers", "/"]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A token file with one token."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def bearer(token: str) -> dict[str, str]:
    """The header."""
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", ACTIONS + READS)
async def test_loopback_is_trusted(path: str, tokens: Path) -> None:
    """A loopback listener asks for nothing, also where a token file is configured."""
    async with serve(token_file=str(tokens)) as served:
        assert (await served.call(path))[0] == 200


@pytest.mark.parametrize("path", ACTIONS + READS)
async def test_no_token_file(path: str) -> None:
    """Elsewhere, without a token file, nobody is let in, though the peer is on loopback; the answer says what to do."""
    async with serve() as served:
        status, body, _ = await served.call(path, on="metrics", headers=bearer(TOKEN))

    assert status == 403
    assert "adminTokenFile" in body["message"]
    assert "port-forward" in body["message"]
    assert served.controller.resets == served.controller.passes == 0


@pytest.mark.parametrize("path", ACTIONS + READS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong-token-wrong-token"),
        {"Authorization": f"Basic {TOKEN}"},
        bearer(TOKEN + "x"),
        bearer(""),
    ],
    ids=["none", "wrong", "scheme", "longer", "empty"],
)
async def test_wrong_token(path: str, headers: dict[str, str], tokens: Path) -> None:
    """A missing or wrong token is 401 with a challenge; nothing is done."""
    async with serve(token_file=str(tokens)) as served:
        status, body, answered = await served.call(path, on="metrics", headers=headers)

    assert status == 401
    assert answered["WWW-Authenticate"].startswith("Bearer")
    assert "alpine" not in str(body)
    assert served.controller.resets == served.controller.passes == 0


@pytest.mark.parametrize("path", ACTIONS + READS)
async def test_right_token(path: str, tokens: Path) -> None:
    """The right token opens everything; the scheme's case does not matter."""
    async with serve(token_file=str(tokens)) as served:
        for headers in (bearer(TOKEN), {"Authorization": f"bearer {TOKEN}"}):
            assert (await served.call(path, on="metrics", headers=headers))[0] == 200


async def test_rotation(tokens: Path) -> None:
    """The file is read again when it changes; several lines are several tokens; short lines are none."""
    new = "another-token-of-some-length"
    file = anyio.Path(tokens)
    async with serve(token_file=str(tokens)) as served:

        async def status(token: str) -> int:
            return (await served.call("/api/v1/status", on="metrics", headers=bearer(token)))[0]

        assert [await status(TOKEN), await status(new)] == [200, 401]
        await file.write_text(f"{TOKEN}\n{new}\nshort\n\n")
        assert [await status(TOKEN), await status(new), await status("short")] == [200, 200, 401]
        await file.write_text(f"  {new}  \r\n")
        assert [await status(TOKEN), await status(new)] == [401, 200]
        await file.write_text("short\n")
        assert await status("short") == 403
        await file.unlink()
        assert await status(new) == 403


async def test_metrics_are_open(tokens: Path) -> None:
    """`/metrics` is open everywhere."""
    async with serve(token_file=str(tokens)) as served:
        for on in ("metrics", "admin"):
            assert (await served.call("/metrics", on=on))[0] == 200


@pytest.mark.parametrize("path", ACTIONS + READS)
async def test_open(path: str) -> None:
    """`adminAuth: open` opens the other listeners without a token."""
    async with serve(auth_mode="open") as served:
        assert (await served.call(path, on="metrics"))[0] == 200


async def test_loopback_metrics_listener() -> None:
    """METRICS_ADDR on loopback is trusted like ADMIN_ADDR; ADMIN_ADDR elsewhere is not."""
    async with serve(metrics_address="127.0.0.1:0", admin_address="0.0.0.0:0") as served:
        assert (await served.call("/reset-cooldown", on="metrics"))[0] == 200
        assert (await served.call("/reset-cooldown", on="admin"))[0] == 403


FOREIGN = [
    {"Origin": "https://evil.example.com"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ACTIONS)
async def test_foreign_pages(path: str, headers: dict[str, str], tokens: Path) -> None:
    """Another site's page cannot make a browser act, on any listener, in any mode."""
    async with serve(token_file=str(tokens)) as served:
        for on in ("admin", "metrics"):
            for method in ("GET", "POST"):
                status, _, _ = await served.call(
                    path, on=on, method=method, headers=headers | bearer(TOKEN)
                )
                assert status == 403
    assert served.controller.resets == served.controller.passes == 0


@pytest.mark.parametrize("path", ACTIONS)
async def test_own_page(path: str) -> None:
    """Our own page may act, and so may somebody who types the address."""
    async with serve() as served:
        own = {"Origin": f"http://{served.addresses['admin']}", "Sec-Fetch-Site": "same-origin"}
        assert (await served.call(path, method="POST", headers=own))[0] == 200
        assert (await served.call(path, headers={"Sec-Fetch-Site": "none"}))[0] == 200


@pytest.mark.parametrize("path", ACTIONS + READS)
@pytest.mark.parametrize("host", ["evil.example.com", "evil.example.com:8082", "127.0.0.1.nip.io"])
async def test_rebound_names(path: str, host: str) -> None:
    """A public name that was pointed at loopback (DNS rebinding) gets nothing."""
    async with serve() as served:
        assert (await served.call(path, headers={"Host": host}))[0] == 403
        assert (await served.call(path, headers={"Host": "localhost:9999"}))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example.com", 403),
        ("copycat", 200),
        ("copycat.ns.svc:8080", 200),
        ("copycat.ns.svc.cluster.local", 200),
        ("10.1.2.3:8080", 200),
        ("[fd00::1]:8080", 200),
    ],
)
async def test_open_and_public_names(host: str, status: int) -> None:
    """`adminAuth: open` acts for addresses and for names of a cluster; reading is for all."""
    async with serve(auth_mode="open") as served:
        answer, _, _ = await served.call("/reset-cooldown", on="metrics", headers={"Host": host})
        assert answer == status
        assert (await served.call("/api/v1/images", on="metrics", headers={"Host": host}))[0] == 200


async def test_without_host() -> None:
    """A client that sends no Host (HTTP/1.0) is no browser."""
    guard = Guard(loopback=True, mode="auto", token_file="")

    assert await guard.refuse({}, action=True) is None


async def test_the_token_is_no_secret_told(
    tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refusals and logs never repeat a token that was offered."""
    async with serve(Controller(), token_file=str(tokens)) as served:
        wrong = "Canary9-wrong-token-wrong"
        _, body, _ = await served.call("/reset-cooldown", on="metrics", headers=bearer(wrong))

    assert wrong not in str(body) + "".join(capsys.readouterr())
