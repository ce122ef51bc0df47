"""The fault matrix (registry notes, 8.2): what goes wrong, at which steps, and what must come of it.

This table was written before the tests. A test of row 18 is called `test_18_…`, and the ids of its
parameters begin with the letter of the step that they spoil; `test_documented.py` holds both to the
table, and makes docs/faults.md of it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LETTERS", "ROWS", "Row"]

#: The steps of a copy.
LETTERS = {
    "P": "ping",
    "T": "token",
    "Hm": "HEAD manifest",
    "Gm": "GET manifest",
    "Hb": "HEAD blob",
    "Gb": "GET blob",
    "Rd": "redirect target",
    "I": "POST of an upload",
    "U": "its body",
    "C": "its commit",
    "M": "PUT manifest",
    "R": "referrers",
}
ALL = tuple(LETTERS)


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    number: int
    fault: str
    steps: tuple[str, ...]
    outcome: str


ROWS = (
    Row(1, "The host refuses connections; its name does not resolve; TLS is never answered", ALL,
        "the tries of the configuration and no more, then failed and temporary, naming the host; the breaker counts; no tag; a later attempt succeeds"),
    Row(2, "The connection is reset before an answer", ALL,
        "protected: tried again unseen; a body that streams goes into a new session"),
    Row(3, "500, 502, 503, 504 once", ALL,
        "protected: one request more for the step (a body costs a new session), after a back-off"),
    Row(4, "5xx for ever", ALL,
        "failed, `unavailable`, temporary, after exactly the tries of the configuration (3 sessions for a body); no tag"),
    Row(5, "429 with Retry-After in seconds, as a date, without, of a day", ALL,
        "protected: no request to that host for that long; of a day: failed, `throttled`, temporary, at once, with when to come back"),
    Row(6, "401: the token ran out", ("Gm", "Gb", "I", "U", "C", "M"),
        "50 at once: exactly one token request, all succeed"),
    Row(7, "401 for ever; 403", ALL,
        "failed, `unauthorized` or `denied`, permanent; at most one fresh token, no step more than twice"),
    Row(8, "ECR's 403 and ECR Public's 400 for an expired login", ("Gm", "I", "U", "M"),
        "one refresh, success"),
    Row(9, "The token service: 5xx, HTML with 200, no expires_in, expires_in 0, only access_token, a clock that is off by an hour", ("T",),
        "5xx: tried again; HTML: failed, temporary, says what came; the others: a token that lasts 60 s or as said"),
    Row(10, "A realm without TLS under TLS, at 169.254.169.254, at another address", ("T",),
        "denied, `host_not_allowed`; not one byte of credentials, no connection"),
    Row(11, "Token services that honour only the first or only the last scope", ("T", "I"),
        "success: one scope in every token; a mount that needs two is given up for a plain upload"),
    Row(12, "HEAD: 405; 200 without a digest; 200 for what is not there; 404 for what is", ("Hm", "Hb"),
        "GET in its place; what is missing is found out at the manifest's PUT and sent; what is there is sent again"),
    Row(13, "Docker-Content-Digest absent, wrong, of another algorithm", ("Hm", "Gm", "M"),
        "absent and other algorithm: nothing; wrong: the bytes decide; wrong after a PUT: failed, `upload_rejected`"),
    Row(14, "A manifest that does not hash to its digest", ("Gm",),
        "asked once more, then failed, `digest_mismatch`, permanent; nothing pushed"),
    Row(15, "Schema 1, unknown type, manifests and layers in one, over 4 MiB either way, a Content-Type that contradicts, octet-stream", ("Gm",),
        "failed with a reason of its own for each; octet-stream and none: protected"),
    Row(16, "The tag moves between two requests", ("Gm",),
        "the digest that was resolved is copied whole, and the tag is it"),
    Row(17, "A blob's Content-Length is not what its descriptor says", ("Gb",),
        "failed, `digest_mismatch`, before a byte is sent to be committed"),
    Row(18, "A blob breaks off at a byte, with and without a length", ("Gb", "Rd"),
        "protected: the rest by Range into the same upload; the source sends each byte once"),
    Row(19, "A blob stalls at a byte", ("Gb", "Rd"), "as 18"),
    Row(20, "The rest is answered: 200, 206 without Content-Range, 206 of another place, 416, 400", ("Gb", "Rd"),
        "200: what is known is thrown away; all others: refused, and the blob from its start, into the same upload"),
    Row(21, "One bit wrong; one byte too many", ("Gb",),
        "the upload is never completed; read once more; then failed, `digest_mismatch`, permanent"),
    Row(22, "gzip although nobody asked; another coding", ("Gm", "Gb"),
        "decoded, and the digest is right; another coding: failed, `unsupported`"),
    Row(23, "A signed URL has run out", ("Rd",),
        "protected: through the registry again, with a fresh URL"),
    Row(24, "A redirect to another host", ("Gb",),
        "protected: neither Authorization nor Cookie there, the query byte for byte"),
    Row(25, "Redirects in a circle, from TLS to none, to 127.0.0.1, to 169.254.169.254", ("Gb", "I"),
        "circle: failed, `redirect_loop`; the others: denied, and nobody is contacted"),
    Row(26, "Location relative, absolute, with another port, without TLS behind TLS, with a query, on another host", ("I", "U"),
        "protected: each byte of it kept, the digest appended; the login only at the same origin"),
    Row(27, "Mount: 201, 202, 401, 404, 405", ("I",),
        "201: mounted; 202: its session is used; else a plain upload"),
    Row(28, "401 or 413 while the body is on its way", ("U",),
        "no hang, the source is let go; 401: a fresh login and a new session; 413: pieces"),
    Row(29, "Reset at a byte of the body", ("U",),
        "a new session and a new reading each time, three at most, never the same session; at the same place twice: in pieces, which go on where they broke"),
    Row(30, "The target stops reading", ("U",),
        "cut off after requestTimeout and tried again"),
    Row(31, "The source stalls while the upload is open", ("Gb", "U"),
        "resumed within 45 s; over that both are given up, nothing is committed"),
    Row(32, "The commit takes longer than requestTimeout", ("C",), "protected: it is waited for"),
    Row(33, "The commit's answer is lost, the blob stored", ("C",),
        "protected: HEAD finds it, nothing is sent again"),
    Row(34, "Commit: DIGEST_INVALID, BLOB_UPLOAD_UNKNOWN, 409", ("C",),
        "HEAD, then a new session; protected"),
    Row(35, "Pieces: PATCH 201 and 202, stale Range, OCI-Chunk-Min-Length, 416 with Range, status 404", ("U",),
        "protected by each profile's rules; after a break on where the registry says, or in a new session where it cannot say"),
    Row(36, "GHCR: Content-Range over 4 MiB is refused", ("U",),
        "protected: a whole body has no Content-Range"),
    Row(37, "A blob of no bytes", ("I", "U", "C"),
        "PUT with Content-Length 0; ECR: failed, `empty_blob`, permanent; Harbor's 500: failed"),
    Row(38, "sha512", ALL, "copied and verified; an anchor of its own"),
    Row(39, "MANIFEST_BLOB_UNKNOWN", ("M",),
        "what is missing is sent again, without believing a HEAD the second time; protected"),
    Row(40, "A tag that cannot be moved", ("M",),
        "same digest: protected; another: tag_held, the content kept under its anchor"),
    Row(41, "404 for some seconds after a 201", ("M",),
        "protected: looked for again, six times at most; never there: failed, `not_visible`, temporary"),
    Row(42, "Referrers: 404, 303 to a page, 405, empty, in pages, the fallback tag is the subject, OCI-Subject is a lie", ("R",),
        "the list by the API, else by the fallback tag, else empty; the page is not asked for"),
    Row(43, "Two workers, one blob, one repository", ("I", "U", "C"),
        "one process: one upload; two processes: both succeed"),
    Row(44, "Copies from A to B and from B to A, one stream each", ALL, "no deadlock"),
    Row(45, "The task is cancelled; the process is told to end (SIGTERM)", ALL,
        "connections, permits and sessions are given back, no tag; the next attempt completes"),
    Row(46, "kill -9 in the middle", ALL, "nothing tagged that is not whole; the next run sends what is missing (signatures: a forced pass)"),
    Row(47, "2,000 manifests; 10,000 and more; indexes 8 deep and deeper; one in a circle", ("Gm",),
        "2,000 and 8 deep: protected; over a limit: failed, `too_large`; a circle has a digest that does not fit: failed, `digest_mismatch`"),
    Row(48, "ECR: the repository is missing, and somebody else makes it", ("I", "M"),
        "made once, AlreadyExists is as good; protected"),
    Row(49, "Eight large blobs into a slow target", ("Gb", "U"), "memory is bounded, whatever their size"),
    Row(50, "An error's body: HTML, nothing, endless, with secrets", ALL,
        "read to 64 KiB; the message says what it can, without secrets"),
)  # fmt: skip
