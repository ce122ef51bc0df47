"""Host names of ECR."""

from __future__ import annotations

import pytest

from copycat.registry.ecr.hosts import EcrHost, derived_host, parse_host

ACCOUNT = "123456789012"


@pytest.mark.parametrize(
    ("host", "region", "fips"),
    [
        pytest.param(
            f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com", "eu-central-1", False, id="usual"
        ),
        pytest.param(
            f"{ACCOUNT}.dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1", True, id="fips"
        ),
        pytest.param(
            f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", False, id="china"
        ),
        pytest.param(f"{ACCOUNT}.dkr-ecr.eu-west-1.on.aws", "eu-west-1", False, id="dual-stack"),
        pytest.param(
            f"{ACCOUNT}.dkr-ecr-fips.us-west-2.on.aws", "us-west-2", True, id="dual-stack-fips"
        ),
        pytest.param(
            f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu",
            "eusc-de-east-1",
            False,
            id="sovereign",
        ),
        pytest.param(
            f"{ACCOUNT}.dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", False, id="isolated"
        ),
        pytest.param(
            f"{ACCOUNT}.DKR.ECR.eu-central-1.amazonaws.com:443",
            "eu-central-1",
            False,
            id="port-and-case",
        ),
    ],
)
def test_private_hosts(host: str, region: str, fips: bool) -> None:
    """Every form of a private registry's name gives account, region and FIPS."""
    assert EcrHost(account=ACCOUNT, region=region, fips=fips) == parse_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "public.ecr.aws",
        "docker.io",
        "12345.dkr.ecr.eu-central-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com.evil.example",
        f"evil-{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonawsxcom",
    ],
)
def test_other_hosts(host: str) -> None:
    """No other host gets a login of AWS, however much it looks like one."""
    assert parse_host(host) is None


@pytest.mark.parametrize(
    ("region", "suffix"),
    [
        ("eu-central-1", "amazonaws.com"),
        ("us-gov-west-1", "amazonaws.com"),
        ("cn-north-1", "amazonaws.com.cn"),
        ("us-iso-east-1", "c2s.ic.gov"),
        ("us-isob-east-1", "sc2s.sgov.gov"),
        ("eusc-de-east-1", "amazonaws.eu"),
    ],
)
def test_derived_host(region: str, suffix: str) -> None:
    """Without asking AWS, the name follows the partition, and is one that we recognise."""
    host = derived_host(ACCOUNT, region)

    assert f"{ACCOUNT}.dkr.ecr.{region}.{suffix}" == host
    assert parse_host(host) is not None
