"""Identities of Google and Azure, against small imitations of their services on loopback."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from copycat.errors import RegistryError, Unauthorized, Unavailable
from copycat.registry.cloud import AzureKeychain, GoogleKeychain
from copycat.registry.keychain import ANONYMOUS, Credentials, Keychain
from copycat.registry.renewable import Asker

GAR = "europe-docker.pkg.dev"
ACR = "team.azurecr.io"
ASKER = Asker(key="registries[3].auth")


def jwt(end: float) -> str:
    """A token that says when it ends."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": end}).encode()).decode().rstrip("=")
    return f"head.{claims}.signature"


class Clouds:
    """The services of both clouds on one port, in clear and under TLS; answers can be replaced."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, web.Response | dict[str, object]] = {}
        self.port = self.tls_port = 0

    async def answer(self, request: web.Request) -> web.Response:
        form = dict(request.query) | {k: str(v) for k, v in (await request.post()).items()}
        self.asked.append((request.path, form))
        known = self.answers.get(request.path)
        if isinstance(known, web.Response):
            return known

        return web.json_response(known if known is not None else await self.usual(request))

    async def usual(self, request: web.Request) -> dict[str, object]:
        number = len(self.asked)
        match request.path:
            case "/computeMetadata/v1/instance/service-accounts/default/token":
                assert request.headers["Metadata-Flavor"] == "Google"
                return {"access_token": f"google-{number}", "expires_in": 3600}
            case "/metadata/identity/oauth2/token":
                assert request.headers["Metadata"] == "true"
                return {"access_token": "entra", "expires_in": "3600"}
            case "/tenant/oauth2/v2.0/token":
                return {"access_token": "entra", "expires_in": 3600}
            case _:
                return {"refresh_token": jwt(self.now + 3 * 3600)}

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class Loopback(AbstractResolver):
    """Every name is this machine, at the port under TLS."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self.port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
async def clouds() -> AsyncIterator[Clouds]:
    """The services, running."""
    clouds = Clouds()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", clouds.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(ACR).configure_cert(context)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    clouds.port, clouds.tls_port = (address[1] for address in runner.addresses)
    yield clouds
    await runner.cleanup()


authority = trustme.CA()


@pytest.fixture
async def session(clouds: Clouds) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that trusts the imitation and finds it under every name."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connector = aiohttp.TCPConnector(resolver=Loopback(clouds.tls_port), ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


@pytest.fixture
def google(clouds: Clouds, session: aiohttp.ClientSession) -> GoogleKeychain:
    """The keychain of a Pod on GKE."""
    environ = {"GCE_METADATA_HOST": f"127.0.0.1:{clouds.port}"}
    return GoogleKeychain(session, hosts={GAR: ASKER}, environ=environ, clock=lambda: clouds.now)


@pytest.fixture
def azure_environ(tmp_path: Path) -> dict[str, str]:
    """What AKS puts into a Pod with workload identity."""
    file = tmp_path / "federated"
    file.write_text("federated\n")
    return {
        "AZURE_CLIENT_ID": "client",
        "AZURE_TENANT_ID": "tenant",
        "AZURE_FEDERATED_TOKEN_FILE": str(file),
    }


@pytest.fixture
def azure(
    clouds: Clouds, session: aiohttp.ClientSession, azure_environ: dict[str, str]
) -> AzureKeychain:
    """The keychain of a Pod on AKS."""
    return made(clouds, session, azure_environ)


def made(clouds: Clouds, session: aiohttp.ClientSession, environ: dict[str, str]) -> AzureKeychain:
    """An Azure keychain whose cloud is the imitation."""
    here = f"http://127.0.0.1:{clouds.port}"
    return AzureKeychain(
        session,
        hosts={ACR: ASKER},
        environ={
            "AZURE_AUTHORITY_HOST": here,
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": here,
            **environ,
        },
        clock=lambda: clouds.now,
    )


async def login(keychain: Keychain, registry: str) -> Credentials:
    """The one candidate."""
    (credentials,) = await keychain.resolve(registry, "a/b", ANONYMOUS)
    return credentials


async def test_google(google: GoogleKeychain, clouds: Clouds) -> None:
    """The service account's token is the password of a fixed user, fetched once."""
    first = await login(google, GAR)

    assert (first.username, first.password) == ("oauth2accesstoken", "google-1")
    assert await login(google, GAR) == first
    assert len(clouds.asked) == 1


async def test_google_renewal(google: GoogleKeychain, clouds: Clouds) -> None:
    """The token is renewed before it ends, and when the registry calls it expired."""
    first = await login(google, GAR)
    clouds.now += 1800
    second = await login(google, GAR)
    clouds.now += 60
    google.expired(GAR, second)
    google.expired("docker.io", second)

    assert second != first
    assert await login(google, GAR) not in (first, second)
    assert len(clouds.asked) == 3


@pytest.mark.parametrize("life", [3599.5, 3600.0, "3599", "3600.5"])
async def test_google_life(google: GoogleKeychain, clouds: Clouds, life: float | str) -> None:
    """A life is a number however it is written: the token serves for half of it."""
    clouds.answers[GOOGLE_PATH] = {"access_token": "g", "expires_in": life}
    await login(google, GAR)
    clouds.now += 1700
    await login(google, GAR)

    assert len(clouds.asked) == 1


@pytest.mark.parametrize("life", [None, 0, -5, "soon", "nan"])
async def test_google_without_a_life(
    google: GoogleKeychain, clouds: Clouds, life: float | str | None
) -> None:
    """A token that does not say how long it lives is a token all the same, for less than a minute."""
    clouds.answers[GOOGLE_PATH] = {"access_token": "g", "expires_in": life}

    assert (await login(google, GAR)).password == "g"

    clouds.now += 40
    await login(google, GAR)

    assert len(clouds.asked) == 2


async def test_short_lives(google: GoogleKeychain, azure: AzureKeychain, clouds: Clouds) -> None:
    """A token that has half a minute left is renewed within it, and never used after its end."""
    clouds.answers[GOOGLE_PATH] = {"access_token": "g", "expires_in": 30}
    clouds.answers["/oauth2/exchange"] = {"refresh_token": jwt(clouds.now + 30)}
    await login(google, GAR)
    await login(azure, ACR)
    clouds.now += 20
    for path in (GOOGLE_PATH, "/oauth2/exchange"):
        clouds.answers[path] = web.Response(status=503)
    for keychain, registry in ((google, GAR), (azure, ACR)):
        with pytest.raises(Unavailable):
            await login(keychain, registry)


@pytest.mark.parametrize("registry", ["docker.io", "gcr.io", ACR, "us-docker.pkg.dev"])
async def test_google_other_hosts(google: GoogleKeychain, clouds: Clouds, registry: str) -> None:
    """A host that the configuration does not name for it gets no token, not even one of the cloud's own."""
    assert await google.resolve(registry, "a", ANONYMOUS) == ()
    assert not clouds.asked


async def test_azure_workload_identity(azure: AzureKeychain, clouds: Clouds) -> None:
    """The federated token becomes an access token, and that the registry's refresh token."""
    credentials = await login(azure, ACR)

    assert credentials.refresh_token == jwt(clouds.now + 3 * 3600)
    assert clouds.paths() == ["/tenant/oauth2/v2.0/token", "/oauth2/exchange"]
    assert clouds.asked[0][1]["client_assertion"] == "federated"
    assert clouds.asked[1][1] == {
        "grant_type": "access_token",
        "service": ACR,
        "tenant": "tenant",
        "access_token": "entra",
    }


async def test_azure_renewal(azure: AzureKeychain, clouds: Clouds) -> None:
    """The token is renewed at half its life, and when the registry calls it expired."""
    first = await login(azure, ACR)
    clouds.now += 2 * 3600
    second = await login(azure, ACR)
    clouds.now += 60
    azure.expired(ACR, second)
    azure.expired("docker.io", second)

    assert second != first
    assert await login(azure, ACR) not in (first, second)


async def test_azure_other_hosts(azure: AzureKeychain, clouds: Clouds) -> None:
    """Another registry gets no token."""
    assert await azure.resolve("other.azurecr.io", "a", ANONYMOUS) == ()
    assert not clouds.asked


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="system-assigned"),
        pytest.param({"AZURE_CLIENT_ID": "c"}, id="by-client"),
    ],
)
async def test_azure_managed_identity(
    clouds: Clouds, session: aiohttp.ClientSession, environ: dict[str, str]
) -> None:
    """Without a federated token the node's managed identity is asked for."""
    await login(made(clouds, session, environ), ACR)
    path, params = clouds.asked[0]

    assert path == "/metadata/identity/oauth2/token"
    assert params.get("client_id") == environ.get("AZURE_CLIENT_ID")
    assert "tenant" not in clouds.asked[1][1]


async def test_proxy(
    clouds: Clouds, session: aiohttp.ClientSession, azure_environ: dict[str, str]
) -> None:
    """Entra is asked through the proxy, if there is one; a metadata service never is."""
    proxy = {"HTTP_PROXY": f"http://127.0.0.1:{clouds.port}"}
    entra = azure_environ | proxy | {"AZURE_AUTHORITY_HOST": "http://login.example"}
    await login(made(clouds, session, entra), ACR)

    assert clouds.paths()[0] == "/tenant/oauth2/v2.0/token"

    await login(made(clouds, session, {"HTTP_PROXY": "http://127.0.0.1:9"}), ACR)


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.e30.c"])
async def test_azure_token_without_end(azure: AzureKeychain, clouds: Clouds, token: str) -> None:
    """A refresh token that does not say its end counts as one of three hours."""
    clouds.answers["/oauth2/exchange"] = {"refresh_token": token}
    await login(azure, ACR)
    clouds.now += 3600
    await login(azure, ACR)

    assert clouds.paths().count("/oauth2/exchange") == 1

    clouds.now += 3600
    await login(azure, ACR)

    assert clouds.paths().count("/oauth2/exchange") == 2


async def test_azure_without_its_file(
    clouds: Clouds, session: aiohttp.ClientSession, azure_environ: dict[str, str]
) -> None:
    """A federated token that cannot be read is named, with the remedy."""
    azure_environ["AZURE_FEDERATED_TOKEN_FILE"] += "-elsewhere"
    with pytest.raises(
        Unauthorized, match=r"federated-elsewhere cannot be read.*workload\.identity"
    ):
        await login(made(clouds, session, azure_environ), ACR)


async def test_empty_variables(clouds: Clouds, azure_environ: dict[str, str]) -> None:
    """A variable that a chart leaves empty means the cloud's own address."""
    connector = aiohttp.TCPConnector(resolver=Loopback(clouds.port))
    async with aiohttp.ClientSession(connector=connector) as session:
        google = GoogleKeychain(session, hosts={GAR: ASKER}, environ={"GCE_METADATA_HOST": ""})
        assert (await login(google, GAR)).password == "google-1"
        azure = made(clouds, session, azure_environ | {"AZURE_AUTHORITY_HOST": ""})
        # no certificate of this test is good for that host
        with pytest.raises(Unavailable, match=r"login\.microsoftonline\.com"):
            await login(azure, ACR)


GOOGLE_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        pytest.param(
            lambda: web.Response(status=404), Unauthorized, "Workload Identity", id="none"
        ),
        pytest.param(lambda: web.Response(status=503), Unavailable, "answers 503", id="trouble"),
        pytest.param(lambda: web.Response(status=429), Unavailable, "answers 429", id="rate"),
        pytest.param(
            lambda: web.Response(status=302, headers={"Location": "http://evil.example/"}),
            Unauthorized,
            "302",
            id="redirect",
        ),
        pytest.param(
            lambda: web.Response(text="<html>"), Unavailable, "without a token", id="html"
        ),
        pytest.param(
            lambda: web.Response(body=b'{"access_token":"\xff"}'),
            Unavailable,
            "without a token",
            id="no-text",
        ),
        pytest.param(
            lambda: web.Response(text='{"x":' + "[" * 60_000),
            Unavailable,
            "without a token",
            id="nested",
        ),
        pytest.param(
            lambda: web.Response(text="x" * 100_000), Unavailable, "without a token", id="endless"
        ),
        pytest.param(
            lambda: web.json_response({"expires_in": 1}), Unavailable, "without a token", id="empty"
        ),
    ],
)
async def test_google_refuses(
    google: GoogleKeychain,
    clouds: Clouds,
    answer: Callable[[], web.Response],
    kind: type[Exception],
    text: str,
) -> None:
    """What the metadata server says instead of a token becomes an error with a remedy; its text is not shown."""
    clouds.answers[GOOGLE_PATH] = answer()
    with pytest.raises(kind, match=text) as caught:
        await login(google, GAR)

    assert isinstance(caught.value, RegistryError)
    assert (caught.value.side, caught.value.registry) == ("source", GAR)


async def test_nobody_there(session: aiohttp.ClientSession, free_tcp_port: int) -> None:
    """Outside of the cloud nothing answers, and the message says what that means."""
    environ = {"GCE_METADATA_HOST": f"127.0.0.1:{free_tcp_port}"}
    with pytest.raises(Unavailable, match=r"metadata server does not answer.*Workload Identity"):
        await login(GoogleKeychain(session, hosts={GAR: ASKER}, environ=environ), GAR)


async def test_a_service_that_is_no_host(
    clouds: Clouds, session: aiohttp.ClientSession, azure_environ: dict[str, str]
) -> None:
    """A variable that names no host at all is an error like one that names nobody."""
    environ = azure_environ | {"AZURE_AUTHORITY_HOST": "http://[::1/"}
    with pytest.raises(Unavailable, match="Entra ID does not answer"):
        await login(made(clouds, session, environ), ACR)


@pytest.mark.parametrize("path", ["/tenant/oauth2/v2.0/token", "/oauth2/exchange"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(lambda: web.Response(status=401), Unauthorized, id="refused"),
        pytest.param(lambda: web.json_response({}), Unavailable, id="empty"),
    ],
)
async def test_azure_refuses(
    azure: AzureKeychain,
    clouds: Clouds,
    path: str,
    answer: Callable[[], web.Response],
    kind: type[Exception],
) -> None:
    """A refusal at either step is an error that says who refused."""
    clouds.answers[path] = answer()
    with pytest.raises(kind, match=r"Azure|Entra|azurecr"):
        await login(azure, ACR)
