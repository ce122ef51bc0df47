"""What AWS says when it refuses, in this program's own errors: which action is missing, what to wait for, what to change."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionError,  # noqa: A004 - botocore's name for it; the built-in one is not used here
    CredentialRetrievalError,
    HTTPClientError,
    InvalidConfigError,
    LoginError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from copycat.errors import (
    Denied,
    NotFound,
    RegistryError,
    Side,
    Throttled,
    Unauthorized,
    Unavailable,
    printable,
)

__all__ = ["AWS_ERRORS", "translated"]

#: What a call to AWS can raise. OSError: a token file that cannot be read. RuntimeError: new credentials that have expired already.
AWS_ERRORS = (BotoCoreError, ClientError, OSError, RuntimeError)

_NO_CREDENTIALS = (
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    MetadataRetrievalError,
    NoCredentialsError,
    OSError,
    PartialCredentialsError,
    ProfileNotFound,
    RuntimeError,
    SSOError,
    TokenRetrievalError,
)

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_NOT_ACCEPTED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
}


def translated(
    error: BaseException, *, action: str, about: str = "", registry: str = "", side: Side = "target"
) -> RegistryError:
    """The error to raise in place of `error`, one of `AWS_ERRORS`.

    Args:
        action: the IAM action that was needed, `ecr:CreateRepository`.
        about: the repository or registry that it was needed for.
    """
    if isinstance(error, ClientError):
        return _answer(error, action=action, about=about, registry=registry, side=side)

    on = f" on {about}" if about else ""
    text = printable(str(error))
    kind: type[RegistryError] = RegistryError
    reason, temporary = "aws", False
    if isinstance(error, HTTPClientError | ConnectionError):
        kind, reason, temporary = Unavailable, "unavailable", True
        message = f"AWS does not answer {action}{on}: {text}"
    elif isinstance(error, _NO_CREDENTIALS):
        kind, reason = Unauthorized, "no_credentials"
        temporary = isinstance(error, CredentialRetrievalError | MetadataRetrievalError)
        message = (
            f"No AWS credentials for {action}{on}: {text}. Give the Pod a role (EKS Pod Identity or "
            "IRSA on its service account, or an instance role), or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        )
    else:
        message = f"AWS cannot be asked for {action}{on}: {text}"

    return kind(
        message, side=side, reference=about, registry=registry, reason=reason, temporary=temporary
    )


def _answer(
    error: ClientError, *, action: str, about: str, registry: str, side: Side
) -> RegistryError:
    answer = error.response.get("Error", {})
    code = answer.get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if error.operation_name.startswith("AssumeRole"):  # the credentials', not the request's own
        action = f"sts:{error.operation_name}"

    on = f" on {about}" if about else ""
    said = f"AWS answered {code}: {printable(answer.get('Message', ''))}"
    kind, reason, message = _verdict(code, status, action, on)
    return kind(
        f"{message} ({said})",
        side=side,
        reference=about,
        registry=registry,
        reason=reason,
        status=status,
        code="NAME_UNKNOWN" if kind is NotFound else printable(code),
    )


def _verdict(code: str, status: int, action: str, on: str) -> tuple[type[RegistryError], str, str]:
    """Class, reason and first half of the message."""
    if code in _DENIED:
        return (
            Denied,
            "aws_denied",
            (
                f"AWS does not allow {action}{on}: allow this action in the policy of the role or user "
                "that copycat runs as"
            ),
        )

    if code in _NOT_ACCEPTED:
        return (
            Unauthorized,
            "aws_credentials",
            (
                f"AWS does not accept the credentials for {action}{on}: check the role, the keys and the clock"
            ),
        )

    if code in _THROTTLED or status == 429:
        return Throttled, "throttled", f"AWS limits the rate of {action}{on}; it is tried again"

    if code == "RepositoryNotFoundException":
        return NotFound, "not_found", f"There is no such repository for {action}{on}"

    if code == "LimitExceededException":
        return (
            Denied,
            "quota",
            (
                f"The account's quota does not allow {action}{on}: ask AWS for a higher one (Service Quotas)"
            ),
        )

    if code == "KmsException":
        return (
            Denied,
            "kms",
            f"The key does not work for {action}{on}: check ecr.kmsKey and its policy",
        )

    if status >= 500 or code in {"ServerException", "InternalFailure", "ServiceUnavailable"}:
        return Unavailable, "unavailable", f"AWS has trouble with {action}{on}"

    return RegistryError, "aws", f"AWS refuses {action}{on}: check the ecr.* settings"
