"""Logging in at the sandbox registry: Basic, its own token service, and what each profile makes of an expired credential."""

from __future__ import annotations

import base64

import pytest

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from copycat.sandbox.tokens import basic_of
from tests.sandbox.driver import Answer, Driver, driving


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def token_of(driver: Driver, *scopes: str, authorization: str = "") -> Answer:
    query = "&".join(["service=sandbox", *(f"scope={scope}" for scope in scopes)])
    headers = {"Authorization": authorization} if authorization else {}
    return await driver.call("GET", f"/token?{query}", headers)


async def ask(driver: Driver, token: str, path: str = "/v2/a/tags/list") -> Answer:
    return await driver.call("GET", path, {"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic dTpwOnE=", ("u", "p:q")),
        ("basic dTo=", ("u", "")),
        ("Bearer x", None),
        ("Basic !", None),
        ("Basic /w==", None),
        ("Basic dQ==", None),
    ],
    ids=["good", "lower-case", "bearer", "no-base64", "no-text", "no-colon"],
)
def test_basic_of(header: str, expected: tuple[str, str] | None) -> None:
    """A Basic header is user and password, the latter with its colons; anything else is nothing."""
    assert expected == basic_of(header)


async def test_basic() -> None:
    """Without or with wrong credentials 401 and a challenge; with the right ones everything."""
    registry = Registry(auth="basic", username="u", password="p")
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        refused = [
            await driver.call("GET", "/v2/"),
            await driver.call("GET", "/v2/", {"Authorization": basic("u", "q")}),
            await driver.call("GET", "/v2/", {"Authorization": basic("v", "p")}),
            await driver.call("GET", "/v2/", {"Authorization": "Bearer x"}),
        ]
        taken = await driver.call("GET", "/v2/", {"Authorization": basic("u", "p")})

        assert [found.status for found in refused] == [401] * 4
        assert refused[0].headers["WWW-Authenticate"].startswith('Basic realm="http://127.0.0.1:')
        assert taken.status == 200
        assert [r.authorized for r in registry.requests] == [False, True, True, True, True]


async def test_basic_anonymous_may_only_pull() -> None:
    """Where anybody may pull, a push still needs an account."""
    registry = Registry(auth="basic", username="u", password="p", anonymous=True)
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        assert (await driver.call("GET", "/v2/a/tags/list")).status == 200
        assert (await driver.start("a")).status == 401
        assert (await driver.call("GET", "/v2/")).status == 401


async def test_rights() -> None:
    """A user who is known and may not is answered 403."""
    registry = Registry(
        auth="basic",
        username="u",
        password="p",
        allow=lambda _u, name, what: name == "a" and what == "pull",
    )
    registry.add("a", images.image(), tag="1")
    async with driving(registry, basic("u", "p")) as driver:
        assert (await driver.call("GET", "/v2/a/tags/list")).status == 200
        for found in (await driver.start("a"), await driver.call("GET", "/v2/b/tags/list")):
            assert (found.status, found.code) == (403, "DENIED")


async def test_token_flow() -> None:
    """Challenge with realm, service and scope; a token for it; then the request."""
    registry = Registry(auth="token", username="u", password="p")
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        ping = await driver.call("GET", "/v2/")
        first = await driver.call("GET", "/v2/a/tags/list")
        granted = await token_of(driver, "repository:a:pull", authorization=basic("u", "p"))

        realm = f'Bearer realm="{registry.url}/token",service="sandbox"'
        assert (401, realm) == (ping.status, ping.headers["WWW-Authenticate"])
        assert f'{realm},scope="repository:a:pull"' == first.headers["WWW-Authenticate"]
        assert granted.json["expires_in"] == 300
        assert (await ask(driver, granted.json["token"])).status == 200
        assert (await ask(driver, granted.json["token"], "/v2/")).status == 200
        assert registry.ledger.count(Phase.TOKEN) == 1


async def test_token_for_too_little() -> None:
    """A token for another action or repository is `insufficient_scope`; an invented one `invalid_token`."""
    registry = Registry(auth="token", username="u", password="p")
    async with driving(registry) as driver:
        granted = await token_of(driver, "repository:a:pull", authorization=basic("u", "p"))
        bearer = {"Authorization": f"Bearer {granted.json['token']}"}
        push = await driver.call("POST", "/v2/a/blobs/uploads/", bearer)
        delete = await driver.call("DELETE", "/v2/a/manifests/1", bearer)
        invented = await ask(driver, "x")

        assert (push.status, delete.status, invented.status) == (401, 401, 401)
        challenge = push.headers["WWW-Authenticate"]
        assert 'scope="repository:a:pull,push",error="insufficient_scope"' in challenge
        assert 'scope="repository:a:delete"' in delete.headers["WWW-Authenticate"]
        assert 'error="invalid_token"' in invented.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("authorization", "anonymous", "status"),
    [
        ("", False, 401),
        ("", True, 200),
        (basic("u", "wrong"), True, 401),
        ("Bearer x", True, 401),
    ],
    ids=["nobody", "anonymous", "wrong-password", "no-basic"],
)
async def test_who_gets_a_token(authorization: str, anonymous: bool, status: int) -> None:
    """Anonymous tokens where allowed; never one for wrong credentials."""
    registry = Registry(auth="token", username="u", password="p", anonymous=anonymous)
    async with driving(registry) as driver:
        found = await token_of(driver, "repository:a:pull,push", authorization=authorization)

        assert status == found.status


async def test_partial_grant() -> None:
    """An anonymous token for pull and push lets pull only; that shows when it is used."""
    registry = Registry(auth="token", anonymous=True)
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        token = (await token_of(driver, "repository:a:pull,push")).json["token"]

        assert (await ask(driver, token)).status == 200
        pushed = await driver.call(
            "POST", "/v2/a/blobs/uploads/", {"Authorization": f"Bearer {token}"}
        )
        assert pushed.status == 401


@pytest.mark.parametrize(
    ("profile", "good", "bad"),
    [("distribution", ["a", "b"], []), ("gitlab", ["b"], ["a"])],
)
async def test_several_scopes(profile: str, good: list[str], bad: list[str]) -> None:
    """Some servers look at the last scope alone."""
    registry = Registry(profile=profile, auth="token", anonymous=True)
    for name in ("a", "b"):
        registry.add(name, images.image(), tag="1")
    async with driving(registry) as driver:
        token = (await token_of(driver, "repository:a:pull", "repository:b:pull")).json["token"]

        for name in good:
            assert (await ask(driver, token, f"/v2/{name}/tags/list")).status == 200
        for name in bad:
            assert (await ask(driver, token, f"/v2/{name}/tags/list")).status == 401


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ("token", {"token"}),
        ("access_token", {"access_token"}),
        ("both", {"token", "access_token"}),
    ],
)
async def test_form_of_the_token_answer(field: str, keys: set[str]) -> None:
    """The fields of the answer, and whether it says when the token ends, can be chosen."""
    registry = Registry(auth="token", anonymous=True, token_expires_in=None)
    registry.authority.token_field = field
    registry.authority.extra = {"issued_at": "2001-01-01T00:00:00Z"}
    async with driving(registry) as driver:
        found = (await token_of(driver, "repository:a:pull")).json

        assert keys | {"issued_at"} == set(found)
        assert len({found[key] for key in keys}) == 1


async def test_identity_tokens_by_post() -> None:
    """`offline_token=true` gives a refresh token, which the POST form takes; so does a password."""
    registry = Registry(auth="token", username="u", password="p")
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:

        async def post(form: str) -> Answer:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            return await driver.call("POST", "/token", kind, form.encode())

        path = "/token?service=sandbox&offline_token=true"
        got = await driver.call("GET", path, {"Authorization": basic("u", "p")})
        refresh = got.json["refresh_token"]
        scope = "service=sandbox&scope=repository:a:pull"
        by_token = await post(f"grant_type=refresh_token&refresh_token={refresh}&{scope}")
        by_name = await post(
            f"grant_type=password&username=u&password=p&access_type=offline&{scope}"
        )

        for found in (by_token, by_name):
            assert (await ask(driver, found.json["token"])).status == 200
        assert "refresh_token" not in by_token.json
        assert by_name.json["refresh_token"] in registry.authority.identity_tokens
        assert (await post("grant_type=refresh_token&refresh_token=x")).status == 401
        assert (await post("grant_type=password&username=u&password=x")).status == 401
        assert (await post("grant_type=other")).status == 400
        assert (await driver.call("PUT", "/token")).status == 405


@pytest.mark.parametrize(
    ("profile", "status"), [("gar", 404), ("artifactory-old", 401), ("quay", 405), ("acr", 400)]
)
async def test_products_without_the_post_form(profile: str, status: int) -> None:
    """Where there is no POST form, each product says so in its own way (ACR has it, and dislikes an unknown grant)."""
    async with driving(Registry(profile=profile, anonymous=True)) as driver:
        assert status == (await driver.call("POST", "/token", {}, b"grant_type=x")).status


async def test_static_token() -> None:
    """A token that was handed out otherwise is accepted as Bearer."""
    registry = Registry(auth="token", allow=lambda user, _name, _what: user == "robot")
    registry.authority.static_tokens |= {"pat": "robot", "other": "human"}
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        assert (await ask(driver, "pat")).status == 200
        assert (await ask(driver, "other")).status == 403


@pytest.mark.parametrize(
    ("profile", "status", "challenged"),
    [("distribution", 401, True), ("ecr-public", 400, False), ("gar", 401, False)],
)
async def test_expired_token(profile: str, status: int, challenged: bool) -> None:
    """A token ends by the clock; how it is refused is the profile's."""
    now = [0.0]
    registry = Registry(profile=profile, auth="token", anonymous=True, clock=lambda: now[0])
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        token = (await token_of(driver, "repository:a:pull")).json["token"]
        now[0] = 299.0
        assert (await ask(driver, token)).status == 200
        now[0] = 300.0
        found = await ask(driver, token)

        assert status == found.status
        assert challenged == ("WWW-Authenticate" in found.headers)


async def test_expired_password_at_ecr() -> None:
    """After twelve hours ECR's password is refused with 403 and the text that clients look for; a new one works."""
    now = [0.0]
    registry = Registry(profile="ecr", password="pw", clock=lambda: now[0])
    registry.add("a", images.image(), tag="1")
    async with driving(registry, basic("AWS", "pw")) as driver:
        assert (await driver.call("GET", "/v2/a/tags/list")).status == 200
        now[0] = 12 * 3600.0
        found = await driver.call("GET", "/v2/a/tags/list")
        assert (found.status, found.code) == (403, "DENIED")
        assert b"authorization token has expired" in found.body

        registry.authority.set_password("AWS", "new")
        fresh = {"Authorization": basic("AWS", "new")}
        assert (await driver.call("GET", "/v2/", fresh)).status == 200
        registry.authority.expire()
        assert (await driver.call("GET", "/v2/", fresh)).status == 403


async def test_expiring_by_hand() -> None:
    """A test may end all tokens at once, or all credentials."""
    registry = Registry(auth="token", username="u", password="p")
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        credentials = basic("u", "p")
        token = registry.authority.issue("u", ("a", "pull"), lifetime=1000)
        assert (await ask(driver, token)).status == 200
        registry.authority.expire_tokens()
        assert (await ask(driver, token)).status == 401
        assert (await token_of(driver, authorization=credentials)).status == 200
        registry.authority.expire()
        assert (await token_of(driver, authorization=credentials)).status == 401


async def test_realm_elsewhere() -> None:
    """The challenge may name another token service."""
    registry = Registry(auth="token")
    registry.authority.realm = "https://auth.example/token"
    async with driving(registry) as driver:
        found = await driver.call("GET", "/v2/")

        assert 'realm="https://auth.example/token"' in found.headers["WWW-Authenticate"]
