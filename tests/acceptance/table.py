"""Profile and case → exact outcome. Written before the code; it is the parameter list of the suite.

Source and target are registries of the same profile. `ok` is protected without a remark; other words are the
reason of a state that OUTCOMES names.
"""

from __future__ import annotations

__all__ = ["OUTCOMES", "TABLE", "parsed"]

#: Word of the table → state, reason.
OUTCOMES: dict[str, tuple[str, str]] = {
    "ok": ("protected", ""),
    "foreign": ("incomplete", "foreign_layers"),
    "schema1": ("failed", "schema1"),
    "empty": ("failed", "empty_blob"),
    "stumbles": ("failed", "unavailable"),
    "rejects": ("failed", "upload_rejected"),
}

TABLE = """
case              distribution  ecr      ecr-public  hub      ghcr     gar      quay     harbor    acr      zot      body-limit  gitlab   artifactory-old  nexus
index             ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
nested-index      ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
docker-list       ok            ok       ok          ok       ok       ok       ok       ok        ok       rejects  ok          ok       ok               ok
docker-in-oci     ok            ok       ok          ok       ok       ok       rejects  ok        ok       rejects  ok          ok       ok               ok
zero-byte-layer   ok            empty    empty       ok       ok       ok       ok       stumbles  ok       ok       ok          ok       ok               ok
duplicate-layers  ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
large-layer       ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
zstd-layer        ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
foreign-layer     foreign       foreign  foreign     foreign  foreign  foreign  foreign  foreign   foreign  foreign  foreign     foreign  foreign          foreign
foreign-served    ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
sha512            ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
data-field        ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
no-media-type     ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
artifact          ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
unknown-config    ok            ok       ok          ok       ok       ok       rejects  ok        ok       ok       ok          ok       ok               ok
no-layers         ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
referrers         ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
cosign-tags       ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
schema1           schema1       schema1  schema1     schema1  schema1  schema1  schema1  schema1   schema1  schema1  schema1     schema1  schema1          schema1
token-expiry      ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
mount-refused     ok            ok       ok          ok       ok       ok       ok       ok        ok       ok       ok          ok       ok               ok
"""


def parsed() -> list[tuple[str, str, str]]:
    """Case, profile, word."""
    head, *lines = (line.split() for line in TABLE.strip().splitlines())
    profiles = head[1:]
    rows = [(line[0], zip(profiles, line[1:], strict=True)) for line in lines]
    return [(case, profile, word) for case, cells in rows for profile, word in cells]
