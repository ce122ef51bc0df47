"""A server that repeats a login in its error must not make us repeat it too.

Errors end in logs, in the Kubernetes API and on pages, where others read them than those who may know the
login. What has the looks of a secret is blotted out there anyway; this removes what was sent with this very
request, in whatever prose it comes back.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qsl, quote, quote_plus

__all__ = ["without_echo"]

_BLOT = b"***"
#: Shorter ones are words that an error may need, and no secrets worth the name.
_SHORTEST = 4
#: Fields of a token request's form that hold a login.
_FIELDS = frozenset({"refresh_token", "password"})


def without_echo(body: bytes, *, authorization: str, form: bytes = b"") -> bytes:
    """An error's body without the secrets of the request that it answers.

    Args: the request's Authorization header and form, empty if there was none.
    """
    plain = {*_of_header(authorization), *_of_form(form)}
    secrets = {spelling for secret in plain for spelling in _spellings(secret)}
    # the longest first: one may hold another
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            body = body.replace(secret.encode(), _BLOT)
    return body


def _spellings(secret: str) -> list[str]:
    """As it is, in URLs, and in JSON, of which the last is Ruby's and PHP's."""
    text = json.dumps(secret)[1:-1]
    return [
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        text,
        text.replace("/", "\\/"),
    ]


def _of_header(authorization: str) -> list[str]:
    scheme, _, value = authorization.partition(" ")
    found = [value, value.rstrip("=")]
    if scheme.lower() == "basic":
        # our own header: it can be decoded
        found.append(base64.b64decode(value).decode().partition(":")[2])
    return found


def _of_form(form: bytes) -> list[str]:
    if not form:
        return []
    return [value for name, value in parse_qsl(form.decode("latin-1")) if name in _FIELDS]
