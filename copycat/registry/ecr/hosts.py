"""The host names of Amazon ECR, and what they say: account, region, partition.

The pattern is that of amazon-ecr-credential-helper (`api/client.go`), which knows the isolated partitions too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["PUBLIC", "PUBLIC_REGION", "EcrHost", "derived_host", "parse_host"]

PUBLIC = "public.ecr.aws"

#: The one region whose API hands out tokens for ECR Public.
PUBLIC_REGION = "us-east-1"

_PRIVATE = re.compile(
    r"(?P<account>[0-9]{12})\.dkr[.-]ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9][a-z0-9-]*)\."
    r"(?:amazonaws\.(?:com(?:\.cn)?|eu)|on\.(?:aws|amazonwebservices\.com\.cn)"
    r"|sc2s\.sgov\.gov|c2s\.ic\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)"
)

#: DNS suffixes of the partitions other than the commercial one, by the start of their regions' names.
_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "eu-isoe-": "cloud.adc-e.uk",
    "us-isof-": "csp.hci.ic.gov",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrHost:
    """What the name of a private registry says."""

    account: str
    region: str
    fips: bool


def parse_host(registry: str) -> EcrHost | None:
    """What `registry` (a port is ignored) says, or None if it is no private ECR registry."""
    match = _PRIVATE.fullmatch(registry.lower().partition(":")[0])
    if match is None:
        return None
    return EcrHost(account=match["account"], region=match["region"], fips=match["fips"] is not None)


def derived_host(account: str, region: str) -> str:
    """The usual name of an account's registry, where AWS must not or cannot be asked for it."""
    suffix = next(
        (suffix for start, suffix in _SUFFIXES.items() if region.startswith(start)),
        "amazonaws.com",
    )
    return f"{account}.dkr.ecr.{region}.{suffix}"
