"""The sandbox's Kubernetes API, spoken to as any HTTP client would: it must be as strict as the real one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from copycat.sandbox.kube_api import Fault, KubeApi, Rule, ServeOptions, serve

PODS = "/api/v1/namespaces/shop/pods"
MERGE = {"Content-Type": "application/merge-patch+json"}


class Session:
    """An HTTP client of one server."""

    def __init__(self, http: aiohttp.ClientSession, api: KubeApi) -> None:
        self._http = http
        self._api = api

    async def send(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        data = json.dumps(body) if body is not None else options.pop("data", None)
        request = self._http.request(method, self._api.url + path, data=data, **options)
        async with request as response:
            return response.status, await response.json(content_type=None)

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open watch."""
        params = {"watch": "true", **query}
        async with self._http.get(self._api.url + path, params=params) as response:
            yield response


async def _event(response: aiohttp.ClientResponse) -> tuple[str, Any]:
    event = json.loads(await response.content.readline())
    return event["type"], event["object"]


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - the state of a server, which sets no event
            await anyio.sleep(0.005)


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    """An empty server."""
    async with KubeApi() as server:
        yield server


@pytest.fixture
async def http(api: KubeApi) -> AsyncIterator[Session]:
    """A client of it that gives up soon."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Session(session, api)


def pod(name: str, namespace: str = "shop", phase: str = "Running") -> dict[str, Any]:
    """A Pod."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase},
    }


async def test_life_of_an_object(http: Session) -> None:
    """Create, read, replace, patch, delete: each with a new version, and what the server adds kept."""
    status, made = await http.send("POST", PODS, pod("p"))
    assert (status, made["kind"], made["apiVersion"]) == (201, "Pod", "v1")
    metadata = made["metadata"]
    assert metadata["uid"]
    assert metadata["creationTimestamp"]
    body = {**made, "metadata": {**metadata, "uid": "other", "labels": {"a": "b"}}}
    status, put = await http.send("PUT", f"{PODS}/p", body)
    assert (status, put["metadata"]["uid"]) == (200, metadata["uid"])
    assert int(put["metadata"]["resourceVersion"]) > int(metadata["resourceVersion"])
    patch = {"metadata": {"labels": {"a": None, "c": "d"}}, "spec": {"x": {"y": None, "z": 1}}}
    status, patched = await http.send("PATCH", f"{PODS}/p", patch, headers=MERGE)
    assert patched["metadata"]["labels"] == {"c": "d"}
    assert patched["spec"] == {"nodeName": "n1", "x": {"z": 1}}
    status, ready = await http.send(
        "PATCH", f"{PODS}/p/status", {"status": {"phase": "Failed"}}, headers=MERGE
    )
    assert ready["status"] == {"phase": "Failed"}
    assert (await http.send("GET", f"{PODS}/p"))[1] == ready
    assert (await http.send("DELETE", f"{PODS}/p"))[0] == 200
    assert (await http.send("GET", f"{PODS}/p"))[0] == 404


async def test_cluster_scope(http: Session, api: KubeApi) -> None:
    """Namespaces and Nodes have no namespace; generateName makes a name; Events have two groups."""
    status, made = await http.send("POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
    assert (status, "namespace" in made["metadata"]) == (201, False)
    assert (await http.send("GET", "/api/v1/namespaces/shop"))[0] == 200
    api.create("nodes", {"metadata": {"name": "n1", "namespace": "x"}})
    api.update("nodes", {"metadata": {"name": "n1"}, "spec": {"a": 1}})
    node = api.get("nodes", "", "n1")
    assert node is not None
    assert node["spec"] == {"a": 1}
    events = "/apis/events.k8s.io/v1/namespaces/shop/events"
    status, event = await http.send("POST", events, {"metadata": {"generateName": "e-"}})
    assert (status, event["metadata"]["name"][:2]) == (201, "e-")
    assert len(api.objects("events")) == 1


@pytest.mark.parametrize(
    ("line", "body", "status", "reason"),
    [
        ("GET /api/v1/widgets", None, 404, "NotFound"),
        ("GET /apis/apps/v1/pods", None, 404, "NotFound"),
        ("GET /nothing", None, 404, "NotFound"),
        (f"GET {PODS}/missing", None, 404, "NotFound"),
        (f"POST {PODS}", {"metadata": {"name": "p"}}, 409, "AlreadyExists"),
        (f"POST {PODS}", {}, 422, "Invalid"),
        pytest.param(f"POST {PODS}", [], 400, "BadRequest", id="no object"),
        (f"POST {PODS}", {"metadata": {"name": "q", "namespace": "x"}}, 400, "BadRequest"),
        (f"POST {PODS}/p", {}, 405, "MethodNotAllowed"),
        (f"PUT {PODS}", {}, 405, "MethodNotAllowed"),
        (f"OPTIONS {PODS}", None, 405, "MethodNotAllowed"),
        (f"PUT {PODS}/p", {"metadata": {"name": "q"}}, 400, "BadRequest"),
        (
            f"PUT {PODS}/p",
            {"metadata": {"name": "p", "resourceVersion": "1"}},
            409,
            "Conflict",
        ),
        (f"PATCH {PODS}/p", {"metadata": {"resourceVersion": "1"}}, 415, "UnsupportedMediaType"),
        (f"GET {PODS}?labelSelector=a", None, 400, "BadRequest"),
        (f"GET {PODS}?fieldSelector=spec.x=1", None, 400, "BadRequest"),
        (f"GET {PODS}?continue=!", None, 400, "BadRequest"),
        (f"GET {PODS}?continue=MTox&resourceVersion=5", None, 400, "BadRequest"),
        (f"GET {PODS}?continue=MTox", None, 410, "Expired"),
        (f"GET {PODS}?watch=1&resourceVersion=x", None, 400, "BadRequest"),
        (
            f"GET {PODS}?resourceVersion=99999&resourceVersionMatch=NotOlderThan",
            None,
            504,
            "Timeout",
        ),
        (f"GET {PODS}?watch=1&sendInitialEvents=true", None, 422, "Invalid"),
        (f"GET {PODS}?watch=1&resourceVersionMatch=NotOlderThan", None, 422, "Invalid"),
    ],
    ids=lambda value: value.replace(PODS, "pods") if isinstance(value, str) else "",
)
async def test_refusals(
    http: Session, api: KubeApi, line: str, body: Any, status: int, *, reason: str
) -> None:
    """What the real server refuses is refused, with its status and reason."""
    api.create("pods", pod("p"))
    method, _, path = line.partition(" ")
    answer, refusal = await http.send(method, path, body)
    assert (answer, refusal["reason"]) == (status, reason)
    assert refusal["kind"] == "Status"
    assert refusal["code"] == status


async def test_broken_body(http: Session) -> None:
    """A body that is no JSON is refused."""
    assert (await http.send("POST", PODS, data=b"{"))[0] == 400


async def test_pages(http: Session, api: KubeApi) -> None:
    """A list in pages is one snapshot: its version and content are those of the first page."""
    for number in range(5):
        api.create("pods", pod(f"p{number}"))
    version = str(api.store.version)
    names: list[str] = []
    token, left = "", []
    while True:
        status, page = await http.send(
            "GET", "/api/v1/pods", params={"limit": "2", "continue": token}
        )
        assert (status, page["kind"]) == (200, "PodList")
        assert page["metadata"]["resourceVersion"] == version
        assert all("kind" not in item for item in page["items"])
        names += [item["metadata"]["name"] for item in page["items"]]
        left.append(page["metadata"].get("remainingItemCount"))
        api.create("pods", pod(f"late{len(left)}"))
        token = page["metadata"].get("continue", "")
        if not token:
            break
    assert names == [f"p{number}" for number in range(5)]
    assert left == [3, 1, None]


async def test_compacted_pages(http: Session, api: KubeApi) -> None:
    """A continue token does not survive a compaction."""
    for number in range(3):
        api.create("pods", pod(f"p{number}"))
    _, page = await http.send("GET", PODS, params={"limit": "2"})
    api.compact()
    query = {"limit": "2", "continue": page["metadata"]["continue"]}
    assert (await http.send("GET", PODS, params=query))[0] == 410


async def test_selectors(http: Session, api: KubeApi) -> None:
    """Namespace and field selectors choose what is listed."""
    api.create("pods", pod("a"))
    api.create("pods", pod("b", phase="Failed"))
    api.create("pods", pod("a", "other"))

    async def names(path: str, selector: str = "") -> list[str]:
        _, page = await http.send("GET", path, params={"fieldSelector": selector})
        return [f"{i['metadata']['namespace']}/{i['metadata']['name']}" for i in page["items"]]

    assert await names("/api/v1/pods") == ["other/a", "shop/a", "shop/b"]
    assert await names("/api/v1/pods", "metadata.name=a") == ["other/a", "shop/a"]
    assert await names(PODS, "status.phase!=Failed") == ["shop/a"]
    assert await names(PODS, "status.phase==Failed,spec.nodeName=n1") == ["shop/b"]


async def test_watch(http: Session, api: KubeApi) -> None:
    """A watch begins after its version, in its namespace, and gives each change with its version."""
    api.create("pods", pod("old"))
    version = str(api.store.version)
    api.create("pods", pod("p"))
    api.create("pods", pod("p", "other"))
    async with http.watch(PODS, resourceVersion=version) as response:
        kind, item = await _event(response)
        assert (kind, item["metadata"]["name"], item["kind"]) == ("ADDED", "p", "Pod")
        api.patch("pods", "shop", "p", {"status": {"a": 1}})
        assert (await _event(response))[0] == "MODIFIED"
        api.delete("pods", "shop", "p")
        kind, item = await _event(response)
        assert (kind, item["metadata"]["resourceVersion"]) == ("DELETED", str(api.store.version))


async def test_watch_one_object(http: Session, api: KubeApi) -> None:
    """A watch of a named object shows that one alone."""
    async with http.watch(f"{PODS}/b", resourceVersion=str(api.store.version)) as response:
        api.create("pods", pod("a"))
        api.create("pods", pod("b"))
        assert (await _event(response))[1]["metadata"]["name"] == "b"


async def test_selector_and_watch(http: Session, api: KubeApi) -> None:
    """Entering a selector is ADDED; leaving it is DELETED, with the last state that was in it; the rest is unseen."""
    selector = "status.phase!=Failed"
    version = str(api.store.version)
    async with http.watch(PODS, resourceVersion=version, fieldSelector=selector) as response:
        api.create("pods", pod("p", phase="Failed"))
        api.patch("pods", "shop", "p", {"status": {"phase": "Pending"}})
        assert (await _event(response))[0] == "ADDED"
        api.patch("pods", "shop", "p", {"status": {"phase": "Failed"}})
        kind, item = await _event(response)
        assert (kind, item["status"]["phase"]) == ("DELETED", "Pending")
        assert item["metadata"]["resourceVersion"] == str(api.store.version)


async def test_initial_events(http: Session, api: KubeApi) -> None:
    """A watch without a version begins with what there is; sendInitialEvents ends that with a marked bookmark."""
    api.create("pods", pod("p"))
    async with http.watch(PODS) as response:
        assert (await _event(response))[0] == "ADDED"
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with http.watch(PODS, **query) as response:
        assert (await _event(response))[0] == "ADDED"
        kind, item = await _event(response)
        assert (kind, item["kind"]) == ("BOOKMARK", "Pod")
        assert item["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert item["metadata"]["resourceVersion"] == str(api.store.version)
        api.create("pods", pod("q"))
        assert (await _event(response))[0] == "ADDED"
    api.watch_settings.watch_list = False
    status, refusal = await http.send("GET", PODS, params={"watch": "true", **query})
    assert (status, "WatchList" in refusal["message"]) == (422, True)


async def test_bookmarks_and_timeout(http: Session, api: KubeApi) -> None:
    """Bookmarks come when they are due and before the end, if they are wanted; timeoutSeconds is kept."""
    api.watch_settings.bookmark_every = 0.3
    version = str(api.store.version)
    begin = anyio.current_time()
    query = {"resourceVersion": version, "timeoutSeconds": "1"}
    async with http.watch(PODS, **query, allowWatchBookmarks="true") as response:
        api.create("nodes", {"metadata": {"name": "n"}})
        kind, item = await _event(response)
        assert (kind, item["metadata"]["resourceVersion"]) == ("BOOKMARK", str(api.store.version))
        lines = (await response.read()).splitlines()
        assert len(lines) == 3
    assert 0.9 < anyio.current_time() - begin < 2.0
    async with http.watch(PODS, **query) as response:
        assert await response.read() == b""


async def test_compaction(http: Session, api: KubeApi) -> None:
    """A watch from before the compaction is told 410; an open one that missed nothing goes on."""
    api.create("pods", pod("p"))
    version = str(api.store.version)
    async with http.watch(PODS, resourceVersion=version) as response:
        api.create("nodes", {"metadata": {"name": "n"}})
        api.compact()
        async with http.watch(PODS, resourceVersion=version) as late:
            kind, item = await _event(late)
            assert (kind, item["code"], item["reason"]) == ("ERROR", 410, "Expired")
            assert await late.read() == b""
        api.create("pods", pod("q"))
        assert (await _event(response))[0] == "ADDED"
        api.create("pods", pod("r"))
        api.compact()
        kind, item = await _event(response)
        assert (kind, item["code"]) == ("ERROR", 410)


async def test_short_history() -> None:
    """A watch from before the history that is kept is told 410."""
    async with KubeApi(history=3) as api, aiohttp.ClientSession() as session:
        http = Session(session, api)
        for number in range(7):
            api.create("pods", pod(f"p{number}"))
        async with http.watch(PODS, resourceVersion="1001") as response:
            assert (await _event(response))[0] == "ERROR"
        async with http.watch(PODS, resourceVersion="1005") as response:
            assert (await _event(response))[1]["metadata"]["name"] == "p5"


async def test_permissions(http: Session, api: KubeApi) -> None:
    """Rules and denials decide, in the words of the real server; an access review tells the same."""

    async def reviewed(verb: str, namespace: str = "") -> bool:
        asked = {"verb": verb, "resource": "pods", "namespace": namespace}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        status, answer = await http.send("POST", path, {"spec": {"resourceAttributes": asked}})
        assert status == 201
        return bool(answer["status"]["allowed"])

    assert await reviewed("list")
    rule = api.forbid("pods", verbs=["list"])
    status, refusal = await http.send("GET", "/api/v1/pods")
    assert status == 403
    assert refusal["message"] == (
        'pods is forbidden: User "sandbox" cannot list resource "pods" in API group ""'
        " at the cluster scope"
    )
    assert not await reviewed("list")
    assert await reviewed("watch")
    api.permit(rule)
    api.access.rules = [
        Rule.of(["pods"], ["list"], "shop"),
        Rule.of(["secrets"], ["get"], names=["s"]),
    ]
    assert (await http.send("GET", PODS))[0] == 200
    assert (await http.send("GET", "/api/v1/pods"))[0] == 403
    assert (await http.send("GET", "/api/v1/namespaces/a/secrets/s"))[0] == 404
    status, refusal = await http.send("GET", "/api/v1/namespaces/a/secrets/t")
    assert 'secrets "t" is forbidden' in refusal["message"]
    assert not await reviewed("list")
    assert await reviewed("list", "shop")


async def test_tokens(http: Session, api: KubeApi) -> None:
    """Unknown tokens are 401; health needs none; the ledger says who asked what, and never the token."""
    api.access.tokens = {"right"}
    assert (await http.send("GET", PODS))[0] == 401
    headers = {"Authorization": "Bearer right"}
    assert (await http.send("GET", "/version", headers=headers))[1]["gitVersion"]
    assert (await http.send("GET", PODS, headers=headers))[0] == 200
    first, *_, last = api.requests
    assert (first.status, first.authorized) == (401, False)
    assert (last.verb, last.resource, last.namespace, last.authorized) == (
        "list",
        "pods",
        "shop",
        True,
    )
    assert "right" not in repr(last)


async def test_health(api: KubeApi) -> None:
    """/readyz answers without a token."""
    api.access.tokens = set()
    async with aiohttp.ClientSession() as session, session.get(f"{api.url}/readyz") as response:
        assert (response.status, await response.text()) == (200, "ok")


async def test_hang(http: Session, api: KubeApi) -> None:
    """Requests wait while the server hangs, and are answered when it goes on."""
    api.hang()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(http.send, "GET", PODS)
        await _until(lambda: bool(api.requests))
        assert api.requests[0].status == 0
        api.resume()
    assert api.requests[0].status == 200
    api.resume()  # does no harm


async def test_faults_for_one_kind(http: Session, api: KubeApi) -> None:
    """A fault that is meant for one kind waits for it, and happens as often as asked."""
    api.fail(Fault.LIST_500, resource="nodes", times=2)
    assert (await http.send("GET", PODS))[0] == 200
    statuses = [(await http.send("GET", "/api/v1/nodes"))[0] for _ in range(3)]
    assert statuses == [500, 500, 200]


async def test_disconnected_watch(http: Session, api: KubeApi) -> None:
    """A watch whose client leaves is closed."""
    async with http.watch(PODS) as _:
        assert api.watching("pods") == 1
    await _until(lambda: not api.watching("pods"))


async def test_restart(http: Session, api: KubeApi) -> None:
    """After a stop the server comes back at its address with everything that it knew."""
    api.create("pods", pod("p"))
    url = api.url
    await api.stop()
    await api.stop()
    with pytest.raises(aiohttp.ClientError):
        await http.send("GET", PODS)
    await api.start()
    assert api.url == url
    assert len((await http.send("GET", PODS))[1]["items"]) == 1


async def test_helpers(api: KubeApi) -> None:
    """The methods for tests do what the requests do."""
    api.create("pods", {"metadata": {"name": "p"}})
    api.update("pods", {"metadata": {"name": "p"}, "spec": {"a": 1}})
    item = api.get("pods", "default", "p")
    assert item is not None
    assert item["spec"] == {"a": 1}
    assert api.versions("pods") == {("default", "p"): api.store.version}
    assert api.get("pods", "default", "q") is None


async def test_serve(tmp_path: Path) -> None:
    """A server of its own has as many Pods of as many images as wanted, all of them complete, and changes them."""
    path = tmp_path / "kubeconfig"
    options = ServeOptions(pods=1200, images=7, events=200.0, kubeconfig=path)
    running: list[KubeApi] = []
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        tasks.start_soon(lambda: serve(options, started=running.append))
        await _until(lambda: bool(running))
        (api,) = running
        assert json.loads(path.read_text())["clusters"][0]["cluster"]["server"] == api.url
        http = Session(session, api)
        _, page = await http.send("GET", "/api/v1/pods")
        assert len(page["items"]) == 1200
        assert len({i["spec"]["containers"][0]["image"] for i in page["items"]}) == 7
        assert len({i["metadata"]["namespace"] for i in page["items"]}) == 3
        first = page["items"][0]
        assert first["status"]["containerStatuses"][0]["imageID"].startswith(
            "registry.example/library/image-0@sha256:"
        )
        assert 6000 < len(json.dumps(first)) < 10000
        version = page["metadata"]["resourceVersion"]
        async with http.watch("/api/v1/pods", resourceVersion=version) as response:
            assert (await _event(response))[0] == "MODIFIED"
        tasks.cancel_scope.cancel()


async def test_serve_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a callback the address is printed; without Pods there are none."""
    with anyio.move_on_after(0.1):
        await serve(ServeOptions())
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


async def test_a_watch_from_a_version_to_come(http: Session, api: KubeApi) -> None:
    """It is accepted and silent until that version is reached, as the real server's is: not even bookmarks come."""
    api.watch_settings.bookmark_every = 0.05
    api.create("pods", pod("p"))
    ahead = api.store.version + 2
    query = {"allowWatchBookmarks": "true", "timeoutSeconds": "5", "resourceVersion": str(ahead)}
    async with http.watch(PODS, **query) as answer:
        assert answer.status == 200
        for name in ("a", "b", "c"):
            api.create("pods", pod(name))
            await anyio.sleep(0.1)
        kind, item = await _event(answer)
        while kind == "BOOKMARK":
            assert int(item["metadata"]["resourceVersion"]) >= ahead
            kind, item = await _event(answer)
    assert (kind, item["metadata"]["name"]) == ("ADDED", "c")


async def test_rewinding(api: KubeApi) -> None:
    """Everything is as it was, and versions are counted on from there."""
    for name in ("kept", "changed", "deleted"):
        api.create("pods", pod(name))
    before, version = api.versions("pods"), api.store.version
    api.patch("pods", "shop", "changed", {"status": {"message": "later"}})
    api.patch("pods", "shop", "changed", {"status": {"message": "still later"}})
    api.delete("pods", "shop", "deleted")
    api.create("pods", pod("new"))
    api.rewind(version)
    assert {name for _, name in api.versions("pods")} == {name for _, name in before}
    changed = api.get("pods", "shop", "changed")
    assert changed is not None
    assert changed["status"] == {"phase": "Running"}
    api.create("pods", pod("next"))
    assert api.versions("pods")["shop", "next"] == version + 1
