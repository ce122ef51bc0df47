"""Redaction: nothing that looks like a secret survives, what people need to read does."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.redact import BLOT, redact, redact_text

SECRET = st.text(string.ascii_letters + string.digits + "+=_-.", min_size=8, max_size=40).map(
    lambda s: "Canary9" + s
)

CARRIERS = [
    "Authorization: Bearer {}",
    "Authorization: Basic {}",
    "Proxy-Authorization: {}",
    "{{'Authorization': 'Bearer {}', 'Accept': '*/*'}}",
    "headers: authorization=[Bearer {}]",
    "sent bearer {} to the realm",
    "Basic {}",
    '{{"auths":{{"ghcr.io":{{"auth":"{}"}}}}}}',
    '{{\\"auth\\": \\"{}\\"}}',
    '"access_token": "{}"',
    "refresh_token={}&grant_type=refresh_token",
    "TARGET_PASSWORD={}",
    "password: {}",
    "password={}",
    "passwd='{} with blanks'",
    "Credentials(username='u', password='{}')",
    "https://user:{}@registry.example.com/v2/",
    "redis://:{}@host",
    "https://s3.example.com/blob?X-Amz-Algorithm=A&X-Amz-Signature={}",
    "https://acct.blob.core.windows.net/c/b?sv=1&sig={}&se=2",
    "/v2/a/blobs/uploads/1?_state={}",
    "/blob?X-Amz-Signature={}&x=1",
    "identitytoken: {}",
    "set-cookie: {}",
    "client_secret={}",
    "ghp_{}",
    "eyJhbGciOiJSUzI1NiJ9.{}.c2ln",
]


@pytest.mark.parametrize("carrier", CARRIERS)
@given(secret=SECRET)
def test_canaries(carrier: str, secret: str) -> None:
    """A secret in any dress that it is known to wear is blotted out of a text."""
    assert secret not in redact_text(f"before {carrier.format(secret)} after")


def _nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["a", "password", "Authorization", "image"]), inner, max_size=3
    )


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), _nest
    )
)
def test_anything_becomes_json(data: object) -> None:
    """Whatever is logged becomes one line of strict JSON that ASCII and UTF-8 streams can take."""
    line = json.dumps(redact(data), allow_nan=False, ensure_ascii=False)

    assert line.encode()


@given(secret=SECRET, carrier=st.sampled_from(CARRIERS))
def test_nested(secret: str, carrier: str) -> None:
    """Secrets are found in nested values, in keys, in exceptions, and under names that give them away."""
    text = carrier.format(secret)
    data = {
        "a": [{"b": (text,)}, {text}],
        text: 1,
        "error": ValueError(text),
        "registry_password": secret,
        "headers": {"Authorization": secret, "Cookie": [secret]},
        "raw": secret.encode(),
    }

    assert secret not in json.dumps(redact(data))


@pytest.mark.parametrize(
    "text",
    [
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"',
        "the registry wants Basic authentication",
        "no bearer token was given",
        "copied docker.io/library/alpine:3.19@sha256:" + "a" * 64,
        "https://registry.example.com:5000/v2/a/manifests/sha256:" + "b" * 64,
        "image_state=failed config=/config/config.yaml",
        "unauthorized: authentication required",
        "registryCredentials[0]",
        "ü→…",
    ],
    ids=range(9),
)
def test_prose_stays(text: str) -> None:
    """Messages that only speak of credentials stay readable."""
    assert text == redact_text(text)


def test_structures_that_contain_themselves() -> None:
    """A value that contains itself ends at a fixed depth."""
    loop: dict[str, object] = {}
    loop["again"] = loop

    assert "…" in json.dumps(redact(loop), ensure_ascii=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ("hunter2", BLOT),
        (1234, BLOT),
        (["hunter2"], BLOT),
    ],
    ids=["none", "bool", "text", "number", "list"],
)
def test_names(value: object, expected: object) -> None:
    """A field with a secret's name shows at most whether there is one."""
    assert expected == redact(value, "password")


def test_long_texts_are_quick() -> None:
    """A megabyte of one word does not make the patterns slow (they are linear)."""
    assert redact_text("a" * 1_000_000).startswith("aaa")
