"""The probes."""

from __future__ import annotations

from copycat.admin.health import Check
from tests.admin.stubs import Controller, serve


async def test_ok() -> None:
    """A healthy program answers 200 and `ok`, with HEAD too, without a token, whatever the admin settings."""
    async with serve(token_file="/nowhere") as served:
        for path in ("/healthz", "/readyz"):
            status, body, _ = await served.call(path, on="health")
            assert (status, body) == (200, "ok")
            assert (await served.call(path, on="health", method="HEAD"))[0] == 200
        assert (await served.call("/readyz", on="health", method="POST"))[0] == 405


async def test_verbose() -> None:
    """`?verbose` lists the checks as the Kubernetes API server does."""
    async with serve() as served:
        _, body, _ = await served.call("/healthz?verbose", on="health")
        assert body == "[+]ping ok\nhealthz check passed\n"


async def test_failing() -> None:
    """A failing check makes the probe fail and says why, without secrets; the other probe is its own."""
    checks = [Check(name="ping"), Check(name="informers", error="no answer: Bearer Canary9secret")]
    async with serve(Controller(checks=checks)) as served:
        status, body, _ = await served.call("/readyz", on="health")
        assert status == 500
        assert (
            body == "[+]ping ok\n[-]informers failed: no answer: Bearer ***\nreadyz check failed\n"
        )
        assert (await served.call("/healthz", on="health"))[0] == 200


async def test_nothing_else() -> None:
    """The health listener serves nothing else."""
    async with serve() as served:
        for path in ("/metrics", "/", "/force-reconcile", "/api/v1/images"):
            assert (await served.call(path, on="health"))[0] == 404
