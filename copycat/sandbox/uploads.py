"""The writing half for blobs: sessions that are as strict about offsets, states and lengths as the strictest real registry."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from copycat.sandbox.exchange import Exchange
from copycat.sandbox.ledger import Phase
from copycat.sandbox.pulls import missing
from copycat.sandbox.reply import Reply, refusal

__all__ = ["Session", "Uploads"]

_RANGE = re.compile(r"(\d+)-(\d+)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def _state() -> str:
    """Hostile to clients that parse and rebuild a Location: escapes, a plus and padding must survive."""
    return f"_state={secrets.token_hex(6)}%2Fa%3D%3D+b%40c"


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """An open upload."""

    repository: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = field(default_factory=_state)
    stale: set[str] = field(default_factory=set)
    """States of earlier answers."""
    chunks: list[bytes] = field(default_factory=list)
    received: int = 0
    broken: bool = False
    """A body ended early, and the client has not asked since how much is here."""
    short: bool = False
    """A chunk below the minimum came, so it must have been the last."""
    patched: bool = False
    _hasher: object = field(default_factory=hashlib.sha256, repr=False)

    def feed(self, chunk: bytes) -> None:
        """Stores and hashes."""
        self.chunks.append(chunk)
        self.received += len(chunk)
        self._hasher.update(chunk)  # type: ignore[attr-defined] # hashlib's class has no public name

    def digest(self, algorithm: str) -> str:
        """Of what was received; sha256 costs nothing more."""
        hasher = self._hasher
        if algorithm != "sha256":
            hasher = hashlib.new(algorithm)
            for chunk in self.chunks:
                hasher.update(chunk)
        return f"{algorithm}:{hasher.hexdigest()}"  # type: ignore[attr-defined] # as above

    def turn(self) -> None:
        """A new state: the Locations given out so far are stale."""
        self.stale.add(self.state)
        self.state = _state()

    @property
    def range(self) -> str:
        """As distribution says it: the last byte, 0 also when there is none."""
        return f"0-{max(self.received - 1, 0)}"


class Uploads:
    """The handlers of POST, PATCH, PUT, GET and DELETE under blobs/uploads/."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}

    # POST

    async def start(self, x: Exchange) -> Reply:
        """Opens a session, mounts, or takes a whole blob at once."""
        check_upload_headers(x)
        await x.enter(Phase.START_UPLOAD)
        refused = await self._refuse_repository(x)
        if refused is not None:
            return refused
        if "mount" in x.query:
            return self._mount(x)
        session = self._open(x.repository)
        if "digest" not in x.query or Phase.COMMIT not in x.entry.phases:
            return self._continue(x, session, 202)
        return await self._single(x, session)

    async def _refuse_repository(self, x: Exchange) -> Reply | None:
        if x.core.profile.create_on_push or await x.core.repository_exists(x.repository):
            x.core.store.repositories.add(x.repository)
            return None
        return await missing(x, "NAME_UNKNOWN", "repository name not known to registry")

    def _open(self, repository: str) -> Session:
        session = Session(repository=repository)
        self.sessions[session.id] = session
        return session

    async def _single(self, x: Exchange, session: Session) -> Reply:
        await x.enter(Phase.UPLOAD_BODY)
        if x.core.profile.single_post == 202:
            await x.read_body(lambda _chunk: None)
            return self._continue(x, session, 202)
        refused = await self._receive(x, session)
        return refused or await self._commit(x, session)

    def _mount(self, x: Exchange) -> Reply:
        profile, digest, source = x.core.profile, x.query["mount"], x.query.get("from")
        if profile.mount == "202":
            return self._continue(x, self._open(x.repository), 202)
        if profile.mount != "yes":
            return refusal(int(profile.mount))
        if source is None:
            x.violation("mount without from")
            if profile.mount_without_from != 202:
                return refusal(profile.mount_without_from)
            return self._continue(x, self._open(x.repository), 202)
        header = x.request.headers.get("Authorization", "")
        seen = x.core.authority.decide(header, [(source, "pull")], x.origin, ping=False) is None
        data = x.core.store.blob(source, digest) if seen else None
        if data is None:
            return self._mount_unseen(x, source)
        x.core.store.put_blob(x.repository, data, digest)
        return self._created(x, digest)

    def _mount_unseen(self, x: Exchange, source: str) -> Reply:
        match x.core.profile.mount_unseen:
            case "202":
                return self._continue(x, self._open(x.repository), 202)
            case "401":
                reply = refusal(401, "UNAUTHORIZED", f"unauthorized to access repository: {source}")
                scopes = [(x.repository, "pull"), (x.repository, "push"), (source, "pull")]
                reply.headers["WWW-Authenticate"] = x.core.authority.challenge(x.origin, scopes)
                return reply
            case "404":
                return refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")

    # PATCH and PUT

    async def patch(self, x: Exchange) -> Reply:
        """One chunk, or the whole blob as a stream."""
        check_upload_headers(x)
        await x.enter(Phase.UPLOAD_BODY)
        profile = x.core.profile
        if profile.patch >= 400:
            x.violation("PATCH to a registry that has none")
            return refusal(profile.patch)
        session = self._find(x)
        if isinstance(session, Reply):
            return session
        before = session.range
        refused = await self._receive(x, session)
        if refused is not None:
            return refused
        session.patched = True
        session.turn()
        reply = self._continue(x, session, profile.patch)
        if profile.stale_range:
            reply.headers["Range"] = before
        return reply

    async def put(self, x: Exchange) -> Reply:
        """The end of an upload, with the whole blob, the last chunk or nothing."""
        check_upload_headers(x)
        carries = Phase.UPLOAD_BODY in x.entry.phases
        if carries:
            await x.enter(Phase.UPLOAD_BODY)
        session = self._find(x)
        if isinstance(session, Reply):
            return session
        if carries:
            if x.core.profile.put_body >= 400 and not session.patched:
                return refusal(x.core.profile.put_body)
            refused = await self._receive(x, session)
            if refused is not None:
                return refused
        return await self._commit(x, session)

    def _find(self, x: Exchange) -> Session | Reply:
        """The session, if the client used its newest Location as it was given."""
        session = self.sessions.get(x.reference)
        if session is None or session.repository != x.repository:
            return refusal(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if x.entry.query.startswith(session.state):
            return session
        if any(x.entry.query.startswith(state) for state in session.stale):
            if x.method != "GET":  # who asks may not have seen the answer with the newest
                x.violation("a stale Location")
            return self._out_of_range(x, session)
        x.violation("the Location was altered")
        return refusal(404, "BLOB_UPLOAD_INVALID", "blob upload invalid")

    async def _receive(self, x: Exchange, session: Session) -> Reply | None:
        """Reads the body into the session; the refusal if it does not fit."""
        refused = self._refuse_body(x, session)
        if refused is not None:
            return refused
        minimum = x.core.profile.chunk_minimum
        session.broken = True
        before = session.received
        try:
            await x.read_body(session.feed)
        except BaseException:
            if x.core.profile.sessions_die:
                self.sessions.pop(session.id, None)
            raise
        session.broken = False
        session.short = minimum is not None and session.received - before < minimum
        return None

    def _refuse_body(self, x: Exchange, session: Session) -> Reply | None:
        profile, length = x.core.profile, x.request.content_length or 0
        if profile.body_limit is not None and length > profile.body_limit:
            page = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
            return Reply(status=413, headers={"Content-Type": "text/html"}, body=page)
        if session.broken:
            x.violation("a body into a used session")
            return refusal(416, "BLOB_UPLOAD_INVALID", "the session has bytes of another request")
        if session.short:
            x.violation("a chunk below OCI-Chunk-Min-Length that was not the last")
            return refusal(416, "BLOB_UPLOAD_INVALID", "chunk too small")
        span = x.request.headers.get("Content-Range")
        if span is not None:
            return self._refuse_range(x, session, span, length)
        if session.received:
            x.violation("a chunk without Content-Range")
        return None

    def _refuse_range(self, x: Exchange, session: Session, span: str, length: int) -> Reply | None:
        if x.method != "PATCH" and not session.received:
            x.violation("Content-Range with a whole blob")
        found = _RANGE.fullmatch(span)
        if found is None:
            x.violation(f"Content-Range {span!r} is not <start>-<end>")
            return refusal(400, "UNSUPPORTED", "malformed Content-Range")
        cap = x.core.profile.content_range_cap
        if cap is not None and length > cap:
            text = f"range of {length} bytes exceeds the limit of {cap}"
            return refusal(416, "REQUESTED_RANGE_NOT_SATISFIABLE", text)
        first, last = int(found[1]), int(found[2])
        if last - first + 1 != length:
            x.violation(f"Content-Range {span!r} does not fit Content-Length {length}")
            return refusal(400, "SIZE_INVALID", "Content-Range and Content-Length differ")
        if first != session.received:
            return self._out_of_range(x, session)
        return None

    def _out_of_range(self, x: Exchange, session: Session) -> Reply:
        reply = refusal(416, "RANGE_INVALID", "invalid content range")
        reply.headers |= {"Range": session.range, "Location": self._location(x, session)}
        return reply

    async def _commit(self, x: Exchange, session: Session) -> Reply:
        await x.enter(Phase.COMMIT)
        digest, profile, store = x.query.get("digest", ""), x.core.profile, x.core.store
        if not _DIGEST.fullmatch(digest):
            x.violation("commit without a digest")
            return refusal(400, "DIGEST_INVALID", "digest missing or malformed")
        if session.received == 0 and profile.zero_byte_blob >= 400:
            return refusal(profile.zero_byte_blob, "BLOB_UPLOAD_INVALID", "does not have any parts")
        self.sessions.pop(session.id, None)
        if session.digest(digest.partition(":")[0]) != digest:
            x.violation("the bytes do not hash to the digest")
            return refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        if profile.duplicate_commit >= 400 and store.blob(session.repository, digest) is not None:
            return refusal(profile.duplicate_commit, "BLOB_UPLOAD_INVALID", "cannot be updated")
        store.put_blob(session.repository, b"".join(session.chunks), digest)
        return self._created(x, digest)

    # GET and DELETE

    async def status(self, x: Exchange) -> Reply:
        """How much is here; after this the client may go on from there."""
        if x.core.profile.upload_status >= 400:
            return refusal(x.core.profile.upload_status)
        session = self._find(x)
        if isinstance(session, Reply):
            return session
        session.broken = False
        return self._continue(x, session, 204)

    async def cancel(self, x: Exchange) -> Reply:
        """Forgets the session."""
        if x.core.profile.cancel >= 400:
            return refusal(x.core.profile.cancel)
        session = self._find(x)
        if isinstance(session, Reply):
            return session
        del self.sessions[session.id]
        return Reply(status=204)

    # Answers

    def _continue(self, x: Exchange, session: Session, status: int) -> Reply:
        headers = {
            "Location": self._location(x, session),
            "Range": session.range,
            "Docker-Upload-UUID": session.id,
        }
        if x.core.profile.chunk_minimum is not None:
            headers["OCI-Chunk-Min-Length"] = str(x.core.profile.chunk_minimum)
        return Reply(status=status, headers=headers)

    def _created(self, x: Exchange, digest: str) -> Reply:
        location = f"/v2/{x.repository}/blobs/{digest}"
        return Reply(status=201, headers={"Location": location, "Docker-Content-Digest": digest})

    def _location(self, x: Exchange, session: Session) -> str:
        path = f"/v2/{session.repository}/blobs/uploads/{session.id}?{session.state}"
        host = x.request.host
        match x.core.location_style:
            case "relative":
                return path
            case "lost-scheme":
                return f"http://{host}{path}"
            case "lost-port":
                return f"{x.core.scheme}://{host.rpartition(':')[0]}{path}"
            case "other-host":
                return f"{x.core.cdn}{path}"
            case "absolute":
                return f"{x.origin}{path}"


def check_upload_headers(x: Exchange) -> None:
    """The rules for every request of an upload."""
    headers = x.request.headers
    if "Transfer-Encoding" in headers:
        x.violation("chunked transfer-encoding on an upload")
    elif x.method in ("PATCH", "PUT") and "Content-Length" not in headers:
        x.violation("no Content-Length on an upload")
    if "manifest" in headers.get("Accept", "") or "image.index" in headers.get("Accept", ""):
        x.violation("Accept of manifests on an upload")
    if Phase.UPLOAD_BODY in x.entry.phases:
        kind = headers.get("Content-Type", "")
        if kind != "application/octet-stream":
            x.violation(f"Content-Type {kind!r} on an upload")
    if "Expect" in headers:
        x.violation("Expect on an upload")
