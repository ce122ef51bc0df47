"""The client against the sandbox API: requests, streams, errors, and the identity that goes with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import anyio
import pytest

from copycat.errors import (
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeUnavailable,
)
from copycat.kube.client import MERGE_PATCH, KubeClient, open_api
from copycat.sandbox.kube_api import Fault, KubeApi
from tests.kube.support import client_for, pod, until

PODS = "/api/v1/namespaces/shop/pods"
WATCH = {"watch": "true", "resourceVersion": "1000"}


async def test_requests(api: KubeApi, client: KubeClient) -> None:
    """Each method reaches the server with parameters and body, and brings back the answer's bytes."""
    made = json.loads(await client.request("POST", PODS, body=pod("p")))
    assert made["metadata"]["uid"]
    patch = {"status": {"message": "m"}}
    await client.request("PATCH", f"{PODS}/p", body=patch, content_type=MERGE_PATCH)
    read = json.loads(await client.request("GET", f"{PODS}/p"))
    assert read["status"]["message"] == "m"
    await client.request("PUT", f"{PODS}/p", body=json.dumps(read).encode())
    await client.request("DELETE", f"{PODS}/p")
    listed = json.loads(await client.request("GET", PODS, params={"limit": "1"}))
    assert listed["items"] == []
    verbs = [request.verb for request in api.requests]
    assert verbs == ["create", "patch", "get", "update", "delete", "list"]
    assert api.requests[-1].query == {"limit": "1"}


async def test_nothing_is_sent_at_the_opening(api: KubeApi, client: KubeClient) -> None:
    """Opening a client asks the server for nothing, not even for its version."""
    assert client.namespace == "default"
    assert not client.in_cluster
    assert api.requests == []


@pytest.mark.parametrize(
    ("request_line", "body", "kind", "status"),
    [
        (f"GET {PODS}/missing", None, KubeNotFound, 404),
        (f"POST {PODS}", pod("p"), KubeConflict, 409),
        (f"GET {PODS}?continue=MTox", None, KubeExpired, 410),
        (f"PUT {PODS}/p", {}, KubeError, 422),
        ("GET /api/v1/secrets", None, KubeDenied, 403),
    ],
    ids=["404", "409", "410", "422", "403"],
)
async def test_refusals(
    client: KubeClient,
    api: KubeApi,
    request_line: str,
    body: object,
    kind: type[KubeError],
    *,
    status: int,
) -> None:
    """A refusal is an error of its own class, with the status and the server's words."""
    api.create("pods", pod("p"))
    api.forbid("secrets")
    method, _, target = request_line.partition(" ")
    path, _, query = target.partition("?")
    params = dict([query.split("=")]) if query else {}
    with pytest.raises(kind) as caught:
        await client.request(method, path, params=params, body=body)
    assert caught.value.status == status
    assert caught.value.side == "cluster"
    assert f"{method} {path}" in str(caught.value)


async def test_throttled(api: KubeApi, client: KubeClient) -> None:
    """429 is temporary and says when to come back."""
    api.fail(Fault.LIST_429)
    with pytest.raises(KubeUnavailable) as caught:
        await client.request("GET", PODS)
    assert (caught.value.temporary, caught.value.retry_after) == (True, 1.0)


async def test_forbidden_costs_one_request(api: KubeApi, client: KubeClient) -> None:
    """A 403 is asked once, and no open stream notices it."""
    api.forbid("secrets")
    async with client.stream(PODS, params=WATCH, silence=5) as chunks:
        with pytest.raises(KubeDenied, match="secrets"):
            await client.request("GET", "/api/v1/namespaces/shop/secrets/s")
        assert api.count("get", "secrets") == 1
        api.create("pods", pod("p"))
        assert b'"ADDED"' in await anext(chunks)


async def test_server_is_down(api: KubeApi, client: KubeClient) -> None:
    """No connection is KubeUnavailable, for requests and for streams."""
    await api.stop()
    with pytest.raises(KubeUnavailable, match="could not be reached") as caught:
        await client.request("GET", PODS)
    assert caught.value.reason == "connection"
    with pytest.raises(KubeUnavailable):
        async with client.stream(PODS, params=WATCH, silence=5):
            pytest.fail("a stream of a server that is down")


async def test_broken_answer(api: KubeApi, client: KubeClient) -> None:
    """A connection that breaks before the answer is KubeUnavailable."""
    api.fail(Fault.LIST_ABORT)
    with pytest.raises(KubeUnavailable) as caught:
        await client.request("GET", PODS)
    assert caught.value.reason == "connection"


async def test_no_answer(api: KubeApi, client: KubeClient) -> None:
    """A server that accepts and says nothing is given up after the timeout, for requests and streams."""
    api.hang()
    with pytest.raises(KubeUnavailable) as caught:
        await client.request("GET", PODS, timeout=0.1)
    assert caught.value.reason == "timeout"
    with pytest.raises(KubeUnavailable) as caught:
        async with client.stream(PODS, params=WATCH, silence=0.1):
            pytest.fail("a stream without an answer")
    assert caught.value.reason == "timeout"


async def test_stream_falls_silent(api: KubeApi, client: KubeClient) -> None:
    """A stream without a byte for too long ends with the reason `silence`."""
    async with client.stream(PODS, params=WATCH, silence=0.1) as chunks:
        with pytest.raises(KubeUnavailable) as caught:
            await anext(chunks)
    assert caught.value.reason == "silence"
    await until(lambda: api.watching("pods") == 0)


async def test_stream_is_refused(api: KubeApi, client: KubeClient) -> None:
    """A refused stream is an error with the server's words; other streams go on."""
    rule = api.forbid("pods")
    with pytest.raises(KubeDenied, match="cannot watch"):
        async with client.stream(PODS, params=WATCH, silence=5):
            pytest.fail("a forbidden stream")
    api.permit(rule)
    api.fail(Fault.WATCH_429)
    with pytest.raises(KubeUnavailable) as caught:
        async with client.stream(PODS, params=WATCH, silence=5):
            pytest.fail("a throttled stream")
    assert caught.value.retry_after == 1.0


async def test_stream_passes_errors_of_its_user(api: KubeApi, client: KubeClient) -> None:
    """What fails in the block that reads a stream is not taken for the network's fault."""
    with pytest.raises(RuntimeError, match="mine"):
        async with client.stream(PODS, params=WATCH, silence=5):
            raise RuntimeError("mine")
    await until(lambda: api.watching("pods") == 0)


async def test_cancelled_stream(api: KubeApi, client: KubeClient) -> None:
    """A reader that is cancelled leaves no connection behind, and the client works on."""
    async with client.stream(PODS, params=WATCH, silence=5) as chunks:
        with anyio.move_on_after(0.05) as scope:
            await anext(chunks)
        assert scope.cancelled_caught
    await until(lambda: api.watching("pods") == 0)
    await client.request("GET", PODS)


async def test_closed(api: KubeApi, tmp_path: Path) -> None:
    """After its block a client refuses to send anything."""
    async with client_for(api, tmp_path) as client:
        await client.request("GET", PODS)
    with pytest.raises(KubeUnavailable, match="closed"):
        await client.request("GET", PODS)


@pytest.mark.usefixtures("client")
async def test_quiet_libraries() -> None:
    """The HTTP library does not log each request."""
    assert logging.getLogger("httpx").getEffectiveLevel() >= logging.WARNING
    assert logging.getLogger("httpcore").getEffectiveLevel() >= logging.WARNING


async def test_error_without_status(api: KubeApi, client: KubeClient) -> None:
    """An error whose body is no Status, as a proxy in between sends it, is told in its own words."""
    api.faults.add(Fault.LIST_HTML, "pods", 1)
    with pytest.raises(KubeUnavailable, match=r"502.*Bad gateway"):
        await client.request("GET", PODS)


# Identity


async def test_token_rotation(api: KubeApi, tmp_path: Path) -> None:
    """A revoked token is replaced by the file's new one: each request goes once more, no stream breaks."""
    token = tmp_path / "token"
    token.write_text("old")
    api.access.tokens = {"old"}
    async with client_for(api, tmp_path, user={"tokenFile": "token"}) as client:
        async with client.stream(PODS, params=WATCH, silence=5) as chunks:
            await client.request("GET", PODS)
            token.write_text("new\n")
            api.access.tokens = {"new"}
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(client.request, "GET", PODS)
            api.create("pods", pod("p"))
            assert b'"ADDED"' in await anext(chunks)
        async with client.stream(PODS, params=WATCH, silence=5):
            pass
    assert 22 <= api.count("list", "pods") + sum(r.status == 401 for r in api.requests) <= 42
    assert api.count("watch", "pods") == 2


async def test_stream_with_revoked_token(api: KubeApi, tmp_path: Path) -> None:
    """The opening of a stream, too, tries the file's new token after a 401."""
    token = tmp_path / "token"
    token.write_text("old")
    api.access.tokens = {"old"}
    async with client_for(api, tmp_path, user={"tokenFile": "token"}) as client:
        await client.request("GET", PODS)
        token.write_text("new")
        api.access.tokens = {"new"}
        async with client.stream(PODS, params=WATCH, silence=5):
            assert api.watching("pods") == 1
        api.access.tokens = set()
        with pytest.raises(KubeDenied):
            async with client.stream(PODS, params=WATCH, silence=5):
                pytest.fail("a stream without a valid token")


async def test_token_is_read_every_minute(api: KubeApi, tmp_path: Path) -> None:
    """The file is read again after a minute, without a 401; one that cannot be read leaves the old token."""
    now = 0.0
    token = tmp_path / "token"
    token.write_text("one")
    path = api.kubeconfig(tmp_path / "kubeconfig", user={"tokenFile": str(token)})
    async with open_api(str(path), environ={}, clock=lambda: now) as client:
        api.access.tokens = {"one"}
        await client.request("GET", PODS)
        token.write_text("two")
        now = 59.0
        await client.request("GET", PODS)
        now = 60.0
        api.access.tokens = {"two"}
        await client.request("GET", PODS)
        for broken in (lambda: token.write_text(""), token.unlink):
            broken()
            now += 60.0
            await client.request("GET", PODS)
    assert [r.status for r in api.requests] == [200] * 5


async def test_refused_token(api: KubeApi, tmp_path: Path) -> None:
    """A token that is refused and has no successor is refused once per request, and never told."""
    api.access.tokens = {"right"}
    async with client_for(api, tmp_path, token="wrong-token") as client:
        with pytest.raises(KubeDenied) as caught:
            await client.request("GET", PODS)
    assert caught.value.status == 401
    assert len(api.requests) == 1
    assert "wrong-token" not in str(caught.value)


async def test_new_login(api: KubeApi, tmp_path: Path) -> None:
    """A 401 reads the kubeconfig again, as somebody may have logged in; one that is broken changes nothing."""
    api.access.tokens = {"first"}
    async with client_for(api, tmp_path, token="first") as client:
        await client.request("GET", PODS)
        api.access.tokens = {"second"}
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text("{")
        with pytest.raises(KubeDenied):
            await client.request("GET", PODS)
        api.kubeconfig(kubeconfig, token="second")
        await client.request("GET", PODS)


@pytest.mark.parametrize("content", [None, " \n"], ids=["missing", "empty"])
async def test_no_token(api: KubeApi, tmp_path: Path, content: str | None) -> None:
    """A token file that cannot be used from the start is an error that names it; nothing is sent."""
    if content is not None:
        (tmp_path / "token").write_text(content)
    async with client_for(api, tmp_path, user={"tokenFile": "token"}) as client:
        with pytest.raises(KubeDenied, match=str(tmp_path / "token")) as caught:
            await client.request("GET", PODS)
    assert caught.value.status == 0
    assert api.requests == []
