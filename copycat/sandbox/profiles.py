"""How registries differ, as data: one frozen row of flags for each product that people copy from and to.

The facts and their sources are in the tables of the project's registry notes: authentication quirks,
upload limits, known bugs. A flag says what a client can see, not how the product works inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["ECR_EXPIRED", "MIB", "PROFILES", "Profile", "profile_of"]

MIB = 1024 * 1024
ECR_EXPIRED = "Your authorization token has expired. Reauthenticate and try again."

Auth = Literal["none", "basic", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One registry product. The defaults are distribution's."""

    name: str = "distribution"
    auth: Auth = "none"
    """Used when the server is not told otherwise."""
    basic_user: str = ""
    """The only user name that Basic accepts, where the product fixes it."""
    password_lifetime: float | None = None
    """Seconds for which a Basic password is good."""
    expired: Literal["401", "403", "400"] = "401"
    """The answer to an expired token or password."""
    challenge: bool = True
    """A 401 on a repository carries WWW-Authenticate (the ping's always does)."""
    token_post: int = 200
    """Status of the POST form of the token endpoint."""
    scopes: Literal["all", "first", "last"] = "all"
    """Which of several scopes a token gets."""
    cookies: bool = False
    """Sets a session cookie; a client that returns it confuses the server."""

    missing_repository: int = 404
    """Status for reading from a repository that does not exist."""
    create_on_push: bool = True
    """A push makes the repository."""
    immutable_tags: bool = False
    referrers: Literal["api", "404", "405", "html", "subject"] = "api"
    """"html" redirects to a page; "subject" has no API and resolves the fallback tag to the subject."""
    oci_subject: bool = True
    """Says OCI-Subject when a manifest with a subject was pushed (a lie where there is no API)."""
    head_manifest: Literal["ok", "405", "no-digest"] = "ok"
    manifest_digest: bool = True
    """Docker-Content-Digest in answers about manifests."""
    docker_types: bool = True
    strict_types: bool = False
    """Only well-known config types, and no docker manifest inside an OCI index."""
    nested_references: Literal["MANIFEST_BLOB_UNKNOWN", "ReferencedImagesNotFound"] = (
        "MANIFEST_BLOB_UNKNOWN"
    )
    """The code for an index whose children are not there."""
    visible_after: int = 0
    """So many reads of a fresh manifest are answered 404."""
    rate_limit: int | None = None
    """Manifest GETs in six hours, with the headers that say so."""
    max_tags_page: int | None = None
    redirects: bool = False
    """Blob GETs are answered by a redirect to the second origin."""

    put_body: int = 201
    """Status of a PUT that carries the whole blob, where refused."""
    single_post: Literal[201, 202] = 201
    """202: the body of POST ?digest= is read and dropped."""
    patch: int = 202
    """Status of a PATCH; 4xx where there is none."""
    stale_range: bool = False
    """The Range of a PATCH's answer is the one before it."""
    content_range_cap: int | None = None
    """A body with Content-Range may not be longer."""
    chunk_minimum: int | None = None
    """Said in OCI-Chunk-Min-Length; all chunks but the last must have it."""
    body_limit: int | None = None
    """A proxy in front refuses longer bodies with 413."""
    put_location: bool = True
    """Location and Docker-Content-Digest in the answer to a manifest PUT."""
    zero_byte_blob: int = 201
    upload_status: int = 204
    cancel: int = 204
    sessions_die: bool = False
    """A connection that breaks takes the session with it."""
    duplicate_commit: int = 201
    """The answer to the commit of a blob that is there already."""
    mount: Literal["yes", "202", "401", "404", "405"] = "yes"
    """"202" opens a session instead."""
    mount_unseen: Literal["202", "401", "404"] = "202"
    """The answer when the source of the mount is not there or may not be seen."""
    mount_without_from: int = 202


_BASE = Profile()

#: Name → row.
PROFILES: dict[str, Profile] = {
    row.name: row
    for row in (
        _BASE,
        replace(
            _BASE,
            name="ecr",
            auth="basic",
            basic_user="AWS",
            password_lifetime=12 * 3600.0,
            expired="403",
            create_on_push=False,
            mount="202",
            nested_references="ReferencedImagesNotFound",
            max_tags_page=1000,
            redirects=True,
            patch=201,
            stale_range=True,
            put_location=False,
            zero_byte_blob=400,
            upload_status=404,
            cancel=405,
        ),
        replace(
            _BASE,
            name="ecr-public",
            auth="token",
            expired="400",
            create_on_push=False,
            referrers="404",
            oci_subject=False,
            redirects=True,
            patch=201,
            stale_range=True,
            upload_status=404,
            mount="202",
            zero_byte_blob=400,
            cancel=405,
        ),
        replace(
            _BASE,
            name="hub",
            auth="token",
            missing_repository=401,
            rate_limit=100,
            redirects=True,
            mount_unseen="401",
        ),
        replace(
            _BASE,
            name="ghcr",
            auth="token",
            missing_repository=403,
            referrers="html",
            oci_subject=False,
            content_range_cap=4 * MIB,
            redirects=True,
        ),
        replace(
            _BASE,
            name="gar",
            auth="token",
            token_post=404,
            challenge=False,
            patch=404,
            redirects=True,
        ),
        replace(
            _BASE,
            name="quay",
            auth="token",
            token_post=405,
            strict_types=True,
            referrers="405",
            oci_subject=False,
            cancel=405,
            mount_without_from=405,
            upload_status=405,
            redirects=True,
        ),
        replace(
            _BASE,
            name="harbor",
            auth="token",
            token_post=405,
            cookies=True,
            create_on_push=False,
            mount_unseen="401",
            zero_byte_blob=500,
        ),
        replace(_BASE, name="acr", auth="token", token_post=200, sessions_die=True, redirects=True),
        replace(_BASE, name="zot", docker_types=False, mount_without_from=405),
        replace(_BASE, name="body-limit", body_limit=1 * MIB),
        replace(
            _BASE,
            name="gitlab",
            auth="token",
            token_post=405,
            scopes="last",
            referrers="subject",
            oci_subject=False,
        ),
        replace(
            _BASE,
            name="artifactory-old",
            auth="token",
            token_post=401,
            put_body=404,
            referrers="404",
            oci_subject=False,
            manifest_digest=False,
            head_manifest="no-digest",
            visible_after=1,
        ),
        replace(
            _BASE,
            name="nexus",
            auth="basic",
            referrers="404",
            oci_subject=False,
            manifest_digest=False,
            duplicate_commit=400,
            visible_after=1,
        ),
    )
}


def profile_of(profile: str | Profile) -> Profile:
    """The row of that name; a row of the caller's own stays as it is.

    Raises:
        ValueError: no such row.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r}; there are {', '.join(sorted(PROFILES))}")
    return PROFILES[profile]
