"""Who may do what: Basic accounts and a token service of the sandbox registry's own, with the quirks that its profile names."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from multidict import MultiMapping

from copycat.sandbox.profiles import ECR_EXPIRED, Auth, Profile
from copycat.sandbox.reply import Reply, refusal

__all__ = ["ANONYMOUS", "Allow", "Authority", "Scope", "Token", "basic_of"]

#: The user name of a client without credentials.
ANONYMOUS = ""

#: (user, repository, action) → may it. Actions are pull, push, delete.
Allow = Callable[[str, str, str], bool]
#: A repository and an action that a request needs.
Scope = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Token:
    """An access token: for whom, for what, until when (by the authority's clock)."""

    user: str
    scopes: frozenset[Scope]
    expires_at: float


def basic_of(header: str) -> tuple[str, str] | None:
    """User and password of a Basic header; None if it is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def parse_scopes(texts: Sequence[str]) -> list[Scope]:
    """`repository:<name>:<action>,…` (several in one text are divided by spaces) as pairs."""
    scopes: list[Scope] = []
    for text in " ".join(texts).split():
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and name:
            scopes += [(name, action) for action in actions.split(",")]
    return scopes


@dataclass(slots=True, kw_only=True)
class Authority:
    """Accounts, tokens and decisions."""

    mode: Auth
    profile: Profile
    clock: Callable[[], float]
    service: str = "sandbox"
    realm: str = ""
    """In place of the server's own token endpoint."""
    anonymous: bool = False
    """Anybody may pull."""
    allow: Allow = lambda _user, _repository, _action: True
    expires_in: float | None = 300
    """Lifetime of tokens in seconds; None leaves the field out (they live 60 s then)."""
    token_field: str = "token"  # noqa: S105 - a JSON key
    """"token", "access_token" or "both"."""
    extra: dict[str, object] = field(default_factory=dict)
    """Further fields of the token answer, over the usual ones (`issued_at`, …)."""
    passwords: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)
    """User → (password, end of life)."""
    identity_tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """Refresh token → user."""
    static_tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """Token that is accepted as Bearer as it is → user."""
    tokens: dict[str, Token] = field(default_factory=dict, repr=False)

    def set_password(self, user: str, password: str, *, lifetime: float | None = None) -> None:
        """Lets the user in, for `lifetime` seconds (the profile's by default); an older password ends."""
        lifetime = self.profile.password_lifetime if lifetime is None else lifetime
        until = float("inf") if lifetime is None else self.clock() + lifetime
        self.passwords[user] = (password, until)

    def expire(self) -> None:
        """All tokens and passwords are over from now on."""
        for token in self.tokens.values():
            token.expires_at = self.clock()
        self.passwords = {user: (pw, self.clock()) for user, (pw, _) in self.passwords.items()}

    def expire_tokens(self) -> None:
        """All tokens given out are over from now on."""
        for token in self.tokens.values():
            token.expires_at = self.clock()

    def issue(self, user: str, *scopes: Scope, lifetime: float | None = None) -> str:
        """A token for exactly these scopes."""
        text = f"tok.{secrets.token_urlsafe(24)}"
        seconds = max(self.expires_in or 60, 0) if lifetime is None else lifetime
        self.tokens[text] = Token(
            user=user, scopes=frozenset(scopes), expires_at=self.clock() + seconds
        )
        return text

    # Decisions about requests to the registry

    def decide(
        self, header: str, needed: Sequence[Scope], origin: str, *, ping: bool
    ) -> Reply | None:
        """None if the request may go on, else the refusal. `origin` is the server as the client names it."""
        if self.mode == "none":
            return None
        if self.mode == "basic":
            return self._decide_basic(header, needed, origin)
        return self._decide_bearer(header, needed, origin, ping=ping)

    def may_push(self, header: str, repository: str) -> bool:
        """Whether the header's account, in a token made for it, may write there."""
        if self.mode == "token":
            token = self.tokens.get(header.partition(" ")[2])
            return token is not None and (repository, "push") in token.scopes
        pair = basic_of(header)
        return pair is not None and self.allow(pair[0], repository, "push")

    def challenge(self, origin: str, needed: Sequence[Scope] = (), error: str = "") -> str:
        """The WWW-Authenticate value."""
        if self.mode == "basic":
            return f'Basic realm="{origin}/",service="{self.service}"'
        realm = self.realm or f"{origin}/token"
        parts = [f'realm="{realm}"', f'service="{self.service}"']
        if needed:
            parts.append(f'scope="{_scope_text(needed)}"')
        if error:
            parts.append(f'error="{error}"')
        return "Bearer " + ",".join(parts)

    def _decide_basic(self, header: str, needed: Sequence[Scope], origin: str) -> Reply | None:
        user = ANONYMOUS
        if header:
            pair = basic_of(header)
            state = self._password_state(*pair) if pair else "wrong"
            if state != "good" or pair is None:
                return (
                    self._expired(origin)
                    if state == "expired"
                    else self._unauthorized(origin, needed)
                )
            user = pair[0]
        return self._decide_access(user, needed, origin)

    def _decide_access(self, user: str, needed: Sequence[Scope], origin: str) -> Reply | None:
        if user == ANONYMOUS and not (self.anonymous and needed and _reads(needed)):
            return self._unauthorized(origin, needed)
        if not all(self.allow(user, *scope) for scope in needed):
            return refusal(403, "DENIED", "requested access to the resource is denied")
        return None

    def _decide_bearer(
        self, header: str, needed: Sequence[Scope], origin: str, *, ping: bool
    ) -> Reply | None:
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer":
            return self._unauthorized(origin, needed)
        if text in self.static_tokens:
            return self._decide_access(self.static_tokens[text], needed, origin)
        token = self.tokens.get(text)
        if token is None:
            return self._unauthorized(origin, needed, "invalid_token")
        if token.expires_at <= self.clock():
            return self._expired(origin, needed)
        if not ping and not token.scopes.issuperset(needed):
            return self._unauthorized(origin, needed, "insufficient_scope")
        return None

    def _password_state(self, user: str, password: str) -> str:
        known, until = self.passwords.get(user, ("", 0.0))
        if not known or not secrets.compare_digest(known.encode(), password.encode()):
            return "wrong"
        return "expired" if until <= self.clock() else "good"

    def _unauthorized(self, origin: str, needed: Sequence[Scope], error: str = "") -> Reply:
        reply = refusal(401, "UNAUTHORIZED", "authentication required")
        if self.profile.challenge or not needed:
            reply.headers["WWW-Authenticate"] = self.challenge(origin, needed, error)
        return reply

    def _expired(self, origin: str, needed: Sequence[Scope] = ()) -> Reply:
        if self.profile.expired == "403":
            return refusal(403, "DENIED", ECR_EXPIRED)
        if self.profile.expired == "400":
            return refusal(400, "DENIED", ECR_EXPIRED)
        return self._unauthorized(origin, needed, "invalid_token")

    # The token endpoint

    def get_token(self, header: str, query: MultiMapping[str]) -> Reply:
        """`GET /token?service=…&scope=…`, with Basic credentials or without."""
        user = ANONYMOUS
        if header:
            pair = basic_of(header)
            if pair is None or self._password_state(*pair) != "good":
                return refusal(401, "UNAUTHORIZED", "incorrect username or password")
            user = pair[0]
        offline = query.get("offline_token") == "true"
        return self._grant(user, parse_scopes(query.getall("scope", [])), offline=offline)

    def post_token(self, form: Mapping[str, str]) -> Reply:
        """`POST /token` with `grant_type=refresh_token` or `password`."""
        if self.profile.token_post != 200:
            return refusal(self.profile.token_post)
        match form.get("grant_type"):
            case "refresh_token":
                user = self.identity_tokens.get(form.get("refresh_token", ""))
            case "password":
                name = form.get("username", "")
                state = self._password_state(name, form.get("password", ""))
                user = name if state == "good" else None
            case _:
                return refusal(400, "UNSUPPORTED", "unsupported grant_type")
        if user is None:
            return refusal(401, "UNAUTHORIZED", "the credential is not accepted")
        offline = form.get("access_type") == "offline"
        return self._grant(user, parse_scopes([form.get("scope", "")]), offline=offline)

    def _grant(self, user: str, asked: list[Scope], *, offline: bool) -> Reply:
        if user == ANONYMOUS and not self.anonymous:
            return refusal(401, "UNAUTHORIZED", "authentication required")
        token = self.issue(user, *(scope for scope in self._kept(asked) if self._may(user, scope)))
        answer: dict[str, object] = {}
        if self.token_field in ("token", "both"):
            answer["token"] = token
        if self.token_field in ("access_token", "both"):
            answer["access_token"] = token
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        if offline:
            refresh = f"idt.{secrets.token_urlsafe(24)}"
            self.identity_tokens[refresh] = user
            answer["refresh_token"] = refresh
        body = json.dumps({**answer, **self.extra}).encode()
        return Reply(headers={"Content-Type": "application/json"}, body=body)

    def _kept(self, asked: list[Scope]) -> list[Scope]:
        """Some servers look at one scope alone: at the first or the last."""
        if not asked or self.profile.scopes == "all":
            return asked
        repository = asked[0 if self.profile.scopes == "first" else -1][0]
        return [scope for scope in asked if scope[0] == repository]

    def _may(self, user: str, scope: Scope) -> bool:
        repository, action = scope
        if user == ANONYMOUS:
            return action == "pull" and self.allow(user, repository, action)
        return self.allow(user, repository, action)


def _reads(needed: Sequence[Scope]) -> bool:
    return all(action == "pull" for _, action in needed)


def _scope_text(needed: Sequence[Scope]) -> str:
    actions: dict[str, list[str]] = {}
    for repository, action in needed:
        actions.setdefault(repository, []).append(action)
    return " ".join(f"repository:{name}:{','.join(what)}" for name, what in actions.items())
