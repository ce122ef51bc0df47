"""Logins: every flow, every refusal, and never a credential to somebody else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping

import anyio
import pytest
from aiohttp import web

from copycat.errors import (
    Denied,
    HostNotAllowed,
    NotFound,
    RegistryError,
    Throttled,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from copycat.registry.auth import CACHE_SIZE
from copycat.registry.hosts import HostPolicy
from copycat.registry.keychain import Access, ChainKeychain, Credentials
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, Seen, World, scripted, sent, world
from tests.registry.support import blob as described

RIGHT = Credentials(username="u", password="right", source="registryCredentials[0]")
WRONG = Credentials(username="u", password="wrong-one", source="registryCredentials[1]")


async def look(here: World, registry: Registry, name: str = "team/app") -> None:
    """One request that needs a login to read."""
    assert await here.source(registry.address, name).head_manifest("1.0") is not None


def guarded(auth: str = "token", *, profile: str = "distribution", **options: object) -> Registry:
    """A registry with one image that user `u` may read."""
    registry = Registry(auth=auth, profile=profile, username="u", password="right", **options)  # type: ignore[arg-type] # passed on
    registry.add_image("team/app", "1.0")
    return registry


@pytest.mark.parametrize(
    ("auth", "tokens"), [pytest.param("basic", 0, id="basic"), pytest.param("token", 1, id="token")]
)
async def test_flow(auth: str, tokens: int) -> None:
    """After the one ping the login goes with the first request already; nothing is answered 401."""
    async with guarded(auth) as a, world(a.address, keys=Keys(RIGHT)) as here:
        await look(here, a)
        await look(here, a)

        assert a.ledger.count(Phase.PING) == 1
        assert a.ledger.count(Phase.TOKEN) == tokens
        assert [r.status for r in a.ledger.select(Phase.HEAD_MANIFEST)] == [200, 200]
        assert a.violations == []


@pytest.mark.parametrize(
    "profile", ["distribution", "hub", "quay", "ghcr", "gar", "acr", "artifactory-old"]
)
async def test_anonymous(profile: str) -> None:
    """A public image needs no credentials, where needed an anonymous token."""
    async with guarded("token", profile=profile, anonymous=True) as a, world(a.address) as here:
        await look(here, a)

        assert a.ledger.count(Phase.TOKEN) == 1


async def test_one_token_for_all() -> None:
    """Fifty requests at once: one ping, one token; fifty that find it expired: one refresh."""
    async with guarded() as a, world(a.address, keys=Keys(RIGHT)) as here:
        for expected in (1, 2):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(look, here, a)
            assert a.ledger.count(Phase.TOKEN) == expected
            a.authority.expire_tokens()

        assert a.ledger.count(Phase.PING) == 1


async def test_one_token_per_repository() -> None:
    """A token is for one repository and one set of actions (several scopes break GitLab, ACR and others)."""
    async with guarded() as a:
        a.add_image("team/other", "1.0")
        async with world(a.address, keys=Keys(RIGHT)) as here:
            await look(here, a)
            await look(here, a, "team/other")
            assert not await here.target(a.address, "team/app").has_blob(described(b"").digest)

        queries = [r.query for r in a.ledger.select(Phase.TOKEN)]
        assert queries == [
            "service=sandbox&scope=repository:team/app:pull",
            "service=sandbox&scope=repository:team/other:pull",
            "service=sandbox&scope=repository:team/app:pull,push",
        ]


@pytest.mark.parametrize("status", ["401", "403", "400"])
async def test_expired_token(status: str) -> None:
    """An expired token is renewed once, in whatever way the registry says so (ECR: 403, ECR Public: 400)."""
    profile = next(
        p.name
        for p in PROFILES.values()
        if p.expired == status and (p.auth != "basic" or p.name == "ecr")
    )
    async with guarded("token", profile=profile) as a, world(a.address, keys=Keys(RIGHT)) as here:
        source = here.source(a.address)
        await source.get_manifest("1.0")
        a.authority.expire_tokens()
        await source.get_manifest("1.0")

        assert a.ledger.count(Phase.TOKEN) == 2
        assert a.ledger.count(Phase.GET_MANIFEST) == 1 + 2


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_refused_for_good(auth: str) -> None:
    """A registry that never accepts: one refresh at most, then an error that names registry and remedy."""
    async with guarded(auth) as a, world(a.address, keys=Keys(RIGHT)) as here:
        a.fail(Phase.GET_MANIFEST, status=401, times=None)
        with pytest.raises(
            Unauthorized, match=r"missing or we have no access.*registryCredentials"
        ) as caught:
            await here.source(a.address).get_manifest("1.0")

        assert a.ledger.count(Phase.GET_MANIFEST) <= 2
        assert a.ledger.count(Phase.TOKEN) <= 2
        assert not caught.value.temporary
        assert here.metric("k8s_copycat_registry_auth_failures_total", registry=a.address) == 1


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_next_candidate(auth: str) -> None:
    """Refused credentials are followed by the next; the one that was accepted begins the next time."""
    async with guarded(auth) as a, world(a.address, keys=Keys(WRONG, RIGHT)) as here:
        source = here.source(a.address)
        await source.head_manifest("1.0")
        before = len(a.requests)
        await source.head_manifest("1.0")

        assert len(a.requests) == before + 1


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_next_candidate_after_403(auth: str) -> None:
    """Credentials that are known and have no right are followed by the next."""
    nobody = Credentials(username="nobody", password="pw")
    async with guarded(auth, allow=lambda user, *_: user == "u") as a:
        a.authority.set_password("nobody", "pw")
        async with world(a.address, keys=Keys(nobody, RIGHT)) as here:
            await here.source(a.address).get_manifest("1.0")


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_a_candidate_that_is_good_again(auth: str) -> None:
    """Where the second was accepted once and is not any more, the first has its turn, and begins from then on."""
    async with guarded(auth) as a, world(a.address, keys=Keys(WRONG, RIGHT)) as here:
        source = here.source(a.address)
        await source.get_manifest("1.0")
        a.authority.expire_tokens()
        a.authority.set_password("u", WRONG.password)
        await source.get_manifest("1.0")
        before = len(a.requests)
        await source.get_manifest("1.0")

        assert len(a.requests) == before + 1


async def test_all_candidates_refused() -> None:
    """When nothing is left, the error says which credentials were refused and by whom."""
    async with guarded() as a, world(a.address, keys=Keys(WRONG)) as here:
        with pytest.raises(
            Unauthorized, match=r"refused the credentials registryCredentials\[1\]"
        ) as caught:
            await here.source(a.address).get_manifest("1.0")

        assert "wrong-one" not in str(caught.value)
        assert a.ledger.count(Phase.GET_MANIFEST) == 0


async def test_denied() -> None:
    """403 without a next candidate is final."""
    async with (
        guarded("basic", allow=lambda *_: False) as a,
        world(a.address, keys=Keys(RIGHT)) as here,
    ):
        with pytest.raises(Denied, match="missing or we have no access"):
            await here.source(a.address).get_manifest("1.0")


async def test_challenge_on_the_repository_alone() -> None:
    """A ping without a challenge: the repository's own is answered, and remembered."""
    challenged = {"WWW-Authenticate": 'Basic realm="x"'}

    def answer(seen: Seen) -> web.Response:
        if "Authorization" not in seen.headers:
            return web.Response(status=401, headers=challenged)
        return web.Response(body=b"{}")

    async with scripted(answer) as script, world(script.address, keys=Keys(RIGHT)) as here:
        for name in ("a", "b"):
            await here.source(script.address, name).get_blob(described(b"{}"))

        assert ["Authorization" in s.headers for s in script.seen] == [False, False, True, True]


async def test_basic_user_and_password() -> None:
    """Basic is user, colon, password in base64 of UTF-8."""
    keys = Keys(Credentials(username="rö", password="pä:ss"))
    challenged = {"WWW-Authenticate": "Basic"}

    def answer(seen: Seen) -> web.Response:
        return (
            web.Response(status=401, headers=challenged)
            if seen.target == "/v2/"
            else web.Response(body=b"{}")
        )

    async with scripted(answer, pings=True) as script, world(script.address, keys=keys) as here:
        await here.source(script.address).get_blob(described(b"{}"))

        scheme, value = script.seen[-1].headers["Authorization"].split()
        assert (scheme, base64.b64decode(value).decode()) == ("Basic", "rö:pä:ss")


async def test_unknown_scheme() -> None:
    """Negotiate and its like are an error that says so."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Negotiate"})

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(Unsupported, match="negotiate"):
            await here.source(script.address).get_blob(described(b"{}"))


async def test_401_without_any_challenge() -> None:
    """Nothing to answer: unauthorised."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=401)

    async with scripted(answer) as script, world(script.address, keys=Keys(RIGHT)) as here:
        with pytest.raises(Unauthorized):
            await here.source(script.address).get_blob(described(b"{}"))

        assert len(script.targets()) == 1


# Other credentials than passwords


@pytest.mark.parametrize(("status", "posts"), [(200, 1), (400, 1), (401, 1), (404, 1), (405, 1)])
async def test_identity_token(status: int, posts: int) -> None:
    """An identity token goes by POST; where the realm knows none, by GET with the token as password."""
    keys = Keys(Credentials(username="<token>", password="idt"))
    seen: list[Seen] = []

    def answer(request: Seen) -> web.Response:
        seen.append(request)
        if not request.target.startswith("/token"):
            ok = request.headers.get("Authorization") == "Bearer good"
            challenge = {
                "WWW-Authenticate": f'Bearer realm="http://{request.headers["Host"]}/token",service="s v"'
            }
            return web.Response(body=b"{}") if ok else web.Response(status=401, headers=challenge)
        if request.method == "POST" and status != 200:
            return web.Response(status=status)
        return web.json_response({"access_token": "good"})

    async with scripted(answer, pings=True) as script, world(script.address, keys=keys) as here:
        await here.source(script.address).get_blob(described(b"{}"))

        tokens = [s for s in script.seen if s.target.startswith("/token")]
        assert [s.method for s in tokens] == ["POST", "GET"][: 1 if status == 200 else 2]
        assert tokens[0].body == (
            b"grant_type=refresh_token&refresh_token=idt&service=s+v&client_id=k8s-copycat"
            b"&scope=repository%3Ateam%2Fapp%3Apull"
        )
        if status != 200:
            value = tokens[1].headers["Authorization"].split()[1]
            assert base64.b64decode(value) == b"<token>:idt"
            assert tokens[1].target == "/token?service=s%20v&scope=repository:team/app:pull"
        assert posts == 1


async def test_static_token_accepted() -> None:
    """A static token is sent as Bearer as it is."""
    async with guarded() as a:
        a.authority.static_tokens["pat"] = "u"
        async with world(a.address, keys=Keys(Credentials(token="pat"))) as here:
            await look(here, a)

        assert a.ledger.count(Phase.TOKEN) == 0


async def test_static_token_exchanged() -> None:
    """A static token that is refused with a Bearer challenge is exchanged there; from then on at once."""
    async with guarded() as a:
        a.authority.set_password("k8s-copycat", "pat")
        async with world(a.address, keys=Keys(Credentials(token="pat"))) as here:
            source = here.source(a.address)
            await source.get_manifest("1.0")
            await source.get_manifest("1.0")

        assert a.ledger.count(Phase.TOKEN) == 1
        assert [r.status for r in a.ledger.select(Phase.GET_MANIFEST)] == [401, 200, 200]


async def test_static_token_as_refresh_token() -> None:
    """The last way to exchange it is as a refresh token."""
    async with guarded() as a:
        a.authority.identity_tokens["pat"] = "u"
        async with world(a.address, keys=Keys(Credentials(token="pat"))) as here:
            await look(here, a)

        assert [r.method for r in a.ledger.select(Phase.TOKEN)] == ["GET", "GET", "POST"]


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_static_token_refused(auth: str) -> None:
    """A token that nobody accepts is followed by the next candidate."""
    keys = Keys(Credentials(token="pat"), RIGHT)
    async with guarded(auth) as a, world(a.address, keys=keys) as here:
        await look(here, a)


async def test_static_token_exchanged_in_vain() -> None:
    """A token that its realm takes, for one that the registry does not: that ends, too."""
    handler = tokens(lambda _: web.json_response({"token": "of-no-use"}))
    keys = Keys(Credentials(token="static"))
    async with scripted(handler) as script, world(script.address, keys=keys) as here:
        with pytest.raises(Unauthorized), anyio.fail_after(5):
            await here.source(script.address).get_blob(described(b"{}"))

        assert sum("/blobs/" in t for t in script.targets()) <= 3


class Renewed(Keys):
    """A keychain whose second credentials are the right ones (ECR's)."""

    calls = 0

    def expired(self, registry: str, credentials: Credentials) -> None:
        """What the registry calls too old is replaced."""
        self.calls += 1
        self.credentials = [RIGHT]


@pytest.mark.parametrize("expired", ["401", "403"])
async def test_credentials_are_made_anew(expired: str) -> None:
    """A password that ran out is asked for anew, once; ECR says so with 403."""
    keys = Renewed(WRONG)
    body = json.dumps(
        {
            "errors": [
                {
                    "code": "DENIED",
                    "message": "Your authorization token has expired. Reauthenticate and try again.",
                }
            ]
        }
    )
    good = "Basic " + base64.b64encode(b"u:right").decode()

    def answer(seen: Seen) -> web.Response:
        if seen.headers.get("Authorization") == good:
            return web.Response(body=b"{}")
        if seen.target == "/v2/" or expired == "401":
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(status=403, text=body)

    async with scripted(answer, pings=True) as script, world(script.address, keys=keys) as here:
        await here.source(script.address).get_blob(described(b"{}"))

        assert keys.calls == 1
        assert len(script.targets()) == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_made_anew_in_vain(status: int) -> None:
    """Fresh credentials that are refused, too, end it."""
    keys = Renewed(WRONG)

    def answer(_seen: Seen) -> web.Response:
        headers = {"WWW-Authenticate": "Basic realm=x"}
        return web.Response(status=status, headers=headers, text="token has expired")

    async with scripted(answer, pings=True) as script, world(script.address, keys=keys) as here:
        with pytest.raises((Unauthorized, Denied)):
            await here.source(script.address).get_blob(described(b"{}"))

        assert keys.calls == 1
        assert len(script.targets()) == 2


async def test_a_realm_that_refuses_whatever_is_made() -> None:
    """A keychain that always has something new is asked once, not for ever."""

    class Endless(Keys):
        made = 0

        def expired(self, registry: str, credentials: Credentials) -> None:
            self.made += 1
            self.credentials = [Credentials(username="u", password=f"no-{self.made}")]

    keys = Endless(WRONG)
    handler = tokens(lambda _: web.Response(status=401))
    async with scripted(handler) as script, world(script.address, keys=keys) as here:
        with pytest.raises(Unauthorized), anyio.fail_after(5):
            await here.source(script.address).get_blob(described(b"{}"))

        assert keys.made == 1
        assert sum("/token" in t for t in script.targets()) == 2


@pytest.mark.parametrize("auth", ["basic", "token"])
@pytest.mark.parametrize("status", [401, 403])
async def test_several_candidates_and_a_chain(auth: str, status: int) -> None:
    """A keychain that could renew, and has nothing new, does not send us in circles."""
    keys = ChainKeychain(Keys(WRONG, RIGHT), Renewed(WRONG))
    async with guarded(auth) as a:
        a.fail(Phase.GET_MANIFEST, status=status, times=None, body=b"token has expired")
        async with world(a.address, keys=keys) as here:
            with pytest.raises((Unauthorized, Denied)):
                await here.source(a.address).get_manifest("1.0")

        assert a.ledger.count(Phase.GET_MANIFEST) <= 6


@pytest.mark.parametrize(
    "useless",
    [
        pytest.param(Credentials(identity_token="t"), id="identity token"),
        pytest.param(Credentials(password="right"), id="no user"),
        pytest.param(Credentials(token="t"), id="token"),
    ],
)
async def test_a_candidate_that_has_no_answer(useless: Credentials) -> None:
    """What cannot be sent to a registry that wants Basic gives way to the next, without asking again and again."""
    async with guarded("basic") as a, world(a.address, keys=Keys(useless, RIGHT)) as here:
        await look(here, a)

        assert a.ledger.count(Phase.HEAD_MANIFEST) <= 3

    async with guarded("basic") as a, world(a.address, keys=Keys(useless)) as here:
        with pytest.raises(Unauthorized), anyio.fail_after(5):
            await here.source(a.address).get_manifest("1.0")

        assert a.ledger.count(Phase.GET_MANIFEST) <= 2


async def test_fewer_candidates_than_before() -> None:
    """Credentials that vanish are not renewed."""

    class Vanishing(Keys):
        def expired(self, registry: str, credentials: Credentials) -> None:
            self.credentials = []

    async with guarded("basic") as a, world(a.address, keys=Vanishing(WRONG)) as here:
        with pytest.raises(Unauthorized):
            await here.source(a.address).get_manifest("1.0")


# What token services answer


def tokens(
    answers: Callable[[Seen], web.Response],
    *,
    challenge: str = 'Bearer realm="{url}/token",service="s"',
) -> Callable[[Seen], web.Response]:
    """A registry that wants `Bearer good` and whose realm gives these answers."""

    def answer(seen: Seen) -> web.Response:
        if seen.target.startswith("/token"):
            return answers(seen)
        if seen.headers.get("Authorization") == "Bearer good":
            return web.Response(body=b"{}")
        text = challenge.replace("{url}", f"http://{seen.headers['Host']}")
        return web.Response(status=401, headers={"WWW-Authenticate": text})

    return answer


def ok(**more: object) -> web.Response:
    """A token."""
    return web.json_response({"token": "good", **more})


@pytest.mark.parametrize(
    ("extra", "lifetime"),
    [
        pytest.param({}, 60, id="missing"),
        pytest.param({"expires_in": 0}, 60, id="zero"),
        pytest.param({"expires_in": 5}, 60, id="too-short"),
        pytest.param({"expires_in": "300"}, 60, id="text"),
        pytest.param({"expires_in": True}, 60, id="no-number"),
        pytest.param({"expires_in": 300}, 300, id="said"),
        pytest.param(
            {"expires_in": 300, "issued_at": "2001-01-01T00:00:00Z"}, 300, id="clock-skew"
        ),
    ],
)
async def test_lifetime(extra: Mapping[str, object], lifetime: int) -> None:
    """A token is used for its lifetime from when it came, at least 60 s, less the last seconds."""
    now = 1000.0
    async with (
        scripted(tokens(lambda _: ok(**extra)), pings=True) as script,
        world(script.address, clock=lambda: now) as here,
    ):
        source = here.source(script.address)

        async def asked() -> int:
            await source.get_blob(described(b"{}"))
            return sum("/token" in t for t in script.targets())

        assert await asked() == 1
        now += lifetime - 6
        assert await asked() == 1
        now += 2
        assert await asked() == 2


async def test_long_bodies_want_long_tokens() -> None:
    """Before an upload a token must last another minute (half its life, if it is short)."""
    now = 1000.0
    keys = Keys(RIGHT)
    async with Registry(auth="token", username="u", password="right") as b:
        async with world(b.address, keys=keys, clock=lambda: now) as here:
            target = here.target(b.address)
            assert not await target.has_blob(described(b"1").digest)
            now += 250
            assert not await target.has_blob(described(b"1").digest)
            assert b.ledger.count(Phase.TOKEN) == 1
            await target.upload_blob(described(b"1"), sent(b"1"))

        assert b.ledger.count(Phase.TOKEN) == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(web.Response, id="empty"),
        pytest.param(lambda: web.Response(text="<html>log in</html>"), id="html"),
        pytest.param(lambda: web.json_response([]), id="list"),
        pytest.param(lambda: web.Response(body=b"[" * 60_000), id="brackets-without-end"),
        pytest.param(lambda: web.json_response({"token": ""}), id="empty-token"),
        pytest.param(lambda: web.json_response({"token": 5}), id="number"),
        pytest.param(lambda: web.json_response({"token": "a\nb"}), id="line-break"),
    ],
)
async def test_no_token_in_it(answer: Callable[[], web.Response]) -> None:
    """A realm that answers without a token is named, with what it said."""
    async with (
        scripted(tokens(lambda _: answer()), pings=True) as script,
        world(script.address) as here,
    ):
        with pytest.raises(Unavailable, match="answered without a token"):
            await here.source(script.address).get_blob(described(b"{}"))


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (500, {}, Unavailable),
        (503, {}, Unavailable),
        (408, {}, Unavailable),
        (425, {}, Unavailable),
        (499, {}, Unavailable),
        (429, {"Retry-After": "77"}, Throttled),
        (400, {}, Unauthorized),
        (403, {}, Unauthorized),
        (404, {}, Unauthorized),
        (302, {"Location": "http://127.0.0.1:1/"}, Unauthorized),
    ],
)
async def test_token_service_fails(
    status: int, headers: dict[str, str], error: type[RegistryError]
) -> None:
    """A realm's trouble is temporary, its refusal is not; it is never followed elsewhere."""

    def answers(_seen: Seen) -> web.Response:
        return web.Response(status=status, headers=headers)

    async with scripted(tokens(answers), pings=True) as script, world(script.address) as here:
        with pytest.raises(error) as caught:
            await here.source(script.address).get_blob(described(b"{}"))

    assert caught.value.temporary is (error is not Unauthorized)
    assert caught.value.retry_after == (77 if status == 429 else None)


async def test_token_service_recovers() -> None:
    """One 503 of the realm is retried and goes unnoticed."""
    answers = iter([web.Response(status=503), ok()])
    async with (
        scripted(tokens(lambda _: next(answers)), pings=True) as script,
        world(script.address) as here,
    ):
        await here.source(script.address).get_blob(described(b"{}"))


@pytest.mark.parametrize(
    ("realm", "error"),
    [
        pytest.param("", Unsupported, id="empty"),
        pytest.param("/token", Unsupported, id="relative"),
        pytest.param("ftp://x/token", Unsupported, id="ftp"),
        pytest.param("http://[::1", Unsupported, id="no-url"),
        pytest.param("http://a.example:99999/token", Unsupported, id="no-port"),
        pytest.param("http://a.default\u3002svc/token", Unsupported, id="no-name-of-dns"),
        pytest.param("http://\uff11\uff10.0.0.1/token", Unsupported, id="wide-digits"),
        pytest.param("http://169.254.169.254/latest", HostNotAllowed, id="metadata"),
        pytest.param("https://10.0.0.1/token", HostNotAllowed, id="literal"),
        pytest.param("https://auth/token", HostNotAllowed, id="single-label"),
        pytest.param("https://auth.kube-system.svc/token", HostNotAllowed, id="cluster"),
    ],
)
async def test_realm_refused(realm: str, error: type[Exception]) -> None:
    """A realm that is no place for credentials gets none."""
    challenge = f'Bearer realm="{realm}",service="s"'
    handler = tokens(lambda _: ok(), challenge=challenge)
    async with (
        scripted(handler, pings=True) as script,
        world(script.address, keys=Keys(RIGHT)) as here,
    ):
        with pytest.raises(error):
            await here.source(script.address).get_blob(described(b"{}"))

        assert all("Authorization" not in s.headers for s in script.seen)


@pytest.mark.parametrize("status", [302, 307])
async def test_realm_that_sends_us_on(status: int) -> None:
    """A token service is asked where the registry says that it is, and nowhere else."""
    async with scripted(lambda _: ok()) as other:
        handler = tokens(
            lambda _: web.Response(status=status, headers={"Location": f"{other.url}/token"})
        )
        async with scripted(handler) as script, world(script.address, keys=Keys(RIGHT)) as here:
            with pytest.raises(RegistryError):
                await here.source(script.address).get_blob(described(b"{}"))

        assert other.targets() == []


async def test_realm_with_a_query() -> None:
    """A realm's own query stays, ours follows."""
    handler = tokens(lambda _: ok(), challenge='Bearer realm="{url}/token?a=%2F"')
    async with scripted(handler, pings=True) as script, world(script.address) as here:
        await here.source(script.address).get_blob(described(b"{}"))

        assert "GET /token?a=%2F&scope=repository:team/app:pull" in script.targets()


async def test_tokens_that_run_out_before_a_store() -> None:
    """A registry that sends us to a store for every blob takes the next token, too, each time one has run out."""
    issued: list[str] = []

    async with scripted(lambda _: web.Response(body=b"{}")) as store:

        def answer(seen: Seen) -> web.Response:
            if seen.target.startswith("/token"):
                issued.append(f"t{len(issued)}")
                return web.json_response({"token": issued[-1], "expires_in": 3600})
            if issued and seen.headers.get("Authorization") == f"Bearer {issued[-1]}":
                return web.Response(status=307, headers={"Location": f"{store.url}/x"})
            realm = f'Bearer realm="http://{seen.headers["Host"]}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})

        async with scripted(answer, pings=True) as script, world(script.address) as here:
            source = here.source(script.address)
            for times in range(1, 4):
                assert await source.get_blob(described(b"{}")) == b"{}"
                assert len(issued) == times
                issued[-1] = f"gone{times}"


async def test_the_registry_knows_its_scope() -> None:
    """A repository's own challenge names another scope than ours: that one is asked for."""
    scopes: list[str] = []

    def answer(seen: Seen) -> web.Response:
        if seen.target.startswith("/token"):
            scopes.append(seen.target.partition("scope=")[2])
            return web.json_response({"token": scopes[-1]})
        if seen.headers.get("Authorization") == "Bearer repository:proxy/team/app:pull":
            return web.Response(body=b"{}")
        scope = "" if seen.target == "/v2/" else ',scope="repository:proxy/team/app:pull"'
        realm = f'Bearer realm="http://{seen.headers["Host"]}/token"{scope}'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        source = here.source(script.address)
        await source.get_blob(described(b"{}"))
        await source.get_blob(described(b"{}"))

    assert scopes == ["repository:team/app:pull", "repository:proxy/team/app:pull"]


@pytest.mark.parametrize("wants", ["pull,metadata", "nobody-has-this"])
async def test_too_small_a_scope(wants: str) -> None:
    """A 403 that names the scope it misses (RFC 6750) gets a token for that one, once."""
    scopes: list[str] = []

    def answer(seen: Seen) -> web.Response:
        realm = f'Bearer realm="http://{seen.headers["Host"]}/token"'
        if seen.target.startswith("/token"):
            scopes.append(seen.target.partition("scope=")[2])
            return web.json_response({"token": scopes[-1]})
        if seen.target == "/v2/":
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        if seen.headers.get("Authorization", "").endswith(":pull,metadata"):
            return web.Response(body=b"{}")
        more = f'{realm},scope="repository:team/app:{wants}",error="insufficient_scope"'
        return web.Response(status=403, headers={"WWW-Authenticate": more})

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        source = here.source(script.address)
        if wants == "pull,metadata":
            await source.get_blob(described(b"{}"))
        else:
            with pytest.raises(Denied):
                await source.get_blob(described(b"{}"))

    assert scopes == ["repository:team/app:pull", f"repository:team/app:{wants}"]


async def test_the_scope_of_a_ping_is_not_ours() -> None:
    """What the ping's challenge names (a catalog) says nothing about a repository whose 401 names nothing."""
    scopes: list[str] = []

    def answer(seen: Seen) -> web.Response:
        if seen.target.startswith("/token"):
            scopes.append(seen.target.partition("scope=")[2])
            return ok()
        if seen.headers.get("Authorization") == "Bearer good":
            return web.Response(body=b"{}")
        realm = f'Bearer realm="http://{seen.headers["Host"]}/token",scope="registry:catalog:*"'
        return web.Response(
            status=401, headers={"WWW-Authenticate": realm} if seen.target == "/v2/" else {}
        )

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        await here.source(script.address).get_blob(described(b"{}"))

    assert scopes == ["repository:team/app:pull"]


async def test_403_of_another_kind() -> None:
    """A 403 with a challenge that says nothing of a scope is final: no other token is asked for."""
    handler = tokens(lambda _: ok())

    def answer(seen: Seen) -> web.Response:
        if seen.headers.get("Authorization") != "Bearer good":
            return handler(seen)
        realm = f'Bearer realm="http://{seen.headers["Host"]}/token",scope="repository:x:pull"'
        return web.Response(status=403, headers={"WWW-Authenticate": realm})

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        with pytest.raises(Denied):
            await here.source(script.address).get_blob(described(b"{}"))

        assert sum("/token" in t for t in script.targets()) == 1


async def test_400_of_another_kind() -> None:
    """A 400 that speaks of no token is not a question of the login."""
    handler = tokens(lambda _: ok())

    def answer(seen: Seen) -> web.Response:
        if seen.headers.get("Authorization") == "Bearer good":
            return web.Response(status=400, text="bad")
        return handler(seen)

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        with pytest.raises(RegistryError, match="bad"):
            await here.source(script.address).get_blob(described(b"{}"))

        assert sum("/token" in t for t in script.targets()) == 1


async def test_cache_is_bounded() -> None:
    """A controller that runs for months does not keep every token that it ever had."""
    now = 0.0
    async with (
        scripted(tokens(lambda _: ok()), pings=True) as script,
        world(script.address, clock=lambda: now) as here,
    ):
        for number in range(CACHE_SIZE + 3):
            now += 30 if number == CACHE_SIZE // 2 else 0
            await here.source(script.address, f"r{number}").get_blob(described(b"{}"))
        before = len(script.seen)
        now += 20
        await here.source(script.address, "r0").get_blob(described(b"{}"))
        await here.source(script.address, f"r{CACHE_SIZE}").get_blob(described(b"{}"))

        assert len(script.seen) == before + 3


async def test_access_is_passed_on() -> None:
    """The keychain hears for whom it is asked."""
    asked: list[Access] = []

    class Asked(Keys):
        async def resolve(
            self, registry: str, repository: str, access: Access
        ) -> list[Credentials]:
            asked.append(access)
            return []

    access = Access(namespaces=frozenset({"prod"}))
    async with Registry() as a, world(a.address, keys=Asked()) as here:
        with pytest.raises(NotFound):
            await here.source(a.address, access=access).get_manifest("1.0")

    assert asked == [access]


async def test_private_realm_needs_a_name() -> None:
    """A named realm may be anywhere."""
    async with guarded() as a:
        policy = HostPolicy(named=frozenset({a.address}))
        async with world(a.address, keys=Keys(RIGHT), policy=policy) as here:
            await look(here, a)
