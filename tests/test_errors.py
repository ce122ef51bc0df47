"""The error tree: sentences without secrets, and one error out of a task group."""

from __future__ import annotations

import pytest

from copycat.errors import ConfigError, NotFound, Problem, Throttled, one_error, printable


@pytest.mark.parametrize(
    "text",
    [
        "https://user:canary1234@registry.example.com/v2/",
        "https://user:canary/canary1234+x@registry.example.com/v2/",
        "https://bucket.example.com/blob?X-Amz-Signature=canary1234",
        "Authorization: Bearer canary1234canary",
        '{"token": "canary1234"}',
        "/blob?X-Amz-Credential=canary1234&X-Amz-Signature=canary1234",
        "the query sv=2024&sig=canary1234 has expired",
        '{"jwt": "eyJhbGciOiJub25l.eyJjYW5hcnkx.canary1234"}',
        "the login dckr_pat_canary1234 is not known",
    ],
    ids=["userinfo", "slash", "signed-url", "bearer", "json", "relative", "azure", "jwt", "looks"],
)
def test_secrets_are_blotted(text: str) -> None:
    """Text of a server that holds a secret comes out without it."""
    assert "canary1234" not in printable(f"refused: {text}")


def test_names_of_images_are_no_secrets() -> None:
    """A port and a digest are no login."""
    text = "see http://127.0.0.1:5000/team/app@sha256:0123 and signatures: none"
    assert printable(text) == text


def test_text_is_one_short_line() -> None:
    """Control characters and length cannot break a log or a page."""
    found = printable("a\x1b[31m\nb" + "x" * 1000, limit=50)
    assert len(found) == 50
    assert found.isprintable()


def test_the_terminal_error_leaves_the_group() -> None:
    """Of several errors the one that waiting does not mend is raised, with the group as its cause."""
    terminal = NotFound("gone", side="source")
    with pytest.raises(NotFound) as caught, one_error():
        raise ExceptionGroup("", [Throttled("later"), ExceptionGroup("", [terminal])])
    assert caught.value is terminal


def test_a_bug_comes_before_all_errors() -> None:
    """What nobody foresaw is not hidden behind a registry's refusal."""
    with pytest.raises(KeyError), one_error():
        raise ExceptionGroup("", [NotFound("gone"), KeyError("bug")])


def test_every_problem_is_told() -> None:
    """A configuration error names path, remedy and origin of all its problems."""
    error = ConfigError(
        Problem(path="docker.registry", message="is required"),
        Problem(path="", message="not readable", origin="config.yaml"),
    )
    assert "docker.registry: is required" in str(error)
    assert "not readable (from config.yaml)" in str(error)
