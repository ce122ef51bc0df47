"""ECR as the target: repositories are made when the first push finds them missing.

Creating after a 404 costs nothing for repositories that exist, and needs no permission to list
them. What belongs to a new repository, lifecycle policy and permissions, is put on it afterwards,
and again later where that failed: content must not wait for a permission that concerns its end.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio

from copycat.errors import InvalidReference, NotFound, RegistryError
from copycat.logs import get_logger
from copycat.oci.digest import Digest
from copycat.oci.reference import is_repository
from copycat.registry.ecr.answers import explained, repository_missing
from copycat.registry.ecr.aws import Aws
from copycat.registry.ecr.settings import EcrSettings
from copycat.registry.target import Target
from copycat.registry.transport import Transport

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient
    from types_aiobotocore_ecr.type_defs import CreateRepositoryRequestTypeDef

__all__ = ["EcrTarget"]

T = TypeVar("T")

#: Characters of a repository's name (ECR API, `RepositoryName`).
MIN_NAME, MAX_NAME = 2, 256

#: Attempts at a repository that was made a moment ago, a second apart (registry notes section 6).
VISIBLE_TRIES = 5

#: Digests in one BatchCheckLayerAvailability.
BATCH = 100

#: A 404 this soon after the repository was made is one that was on its way, in seconds.
SETTLING = 15.0

#: When to try again what AWS refused, and to ask again what the account allows, in seconds.
POLICY_RETRY, BATCH_RETRY, SETTING_LIFE = 300.0, 300.0, 3600.0

_Policy = Literal["lifecycle", "policy"]


@dataclass(slots=True)
class _Made:
    """What this process knows of a repository that it made."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    at: float = float("-inf")
    pending: list[_Policy] = field(default_factory=list)
    retry_at: float = 0.0


class EcrTarget(Target):
    """A private ECR registry."""

    kind = "ecr"

    def __init__(
        self,
        transport: Transport,
        registry: str,
        *,
        aws: Aws,
        settings: EcrSettings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: `registry` is the host of the account's registry or of its VPC endpoint; the clock counts seconds."""
        super().__init__(transport, registry)
        self._sleep = sleep
        self._aws = aws
        self._settings = settings
        self._clock = clock
        self._log = get_logger("ecr")
        self._made: dict[str, _Made] = {}
        self._batch_at = self._setting_at = float("-inf")
        self._mounts = True

    @property
    def max_repository(self) -> int:
        """ECR counts the name alone."""
        return MAX_NAME

    @property
    def mounts(self) -> bool:
        """False if the account has BLOB_MOUNTING switched off; True if it is on, or we may not know."""
        return self._mounts

    def makes(self, repository: str) -> bool:
        """Whether `provision` makes it; nobody is asked.

        Raises:
            NotFound: `ecr.createRepo` is false (reason `repository_missing`).
            InvalidReference: ECR takes no such name.
        """
        if not (MIN_NAME <= len(repository) <= MAX_NAME and is_repository(repository)):
            raise InvalidReference(
                f"ECR takes no repository named {repository!r}: {MIN_NAME} to {MAX_NAME} characters, "
                "lower case; change ecr.repoPrefix or pathMap",
                side="target",
                reference=repository,
            )

        if self._settings.create_repo == "on-push":
            return False

        if not self._settings.create_repo:
            raise NotFound(
                f"The repository {repository} does not exist in {self.registry}, and ecr.createRepo "
                "is false: create it, or set ecr.createRepo to true",
                side="target",
                reference=repository,
                registry=self.registry,
                reason="repository_missing",
                code="NAME_UNKNOWN",
            )

        return True

    async def provision(self, repository: str) -> None:
        """Make the repository with all that the configuration says, once however many ask for it.

        Raises:
            NotFound, InvalidReference: as `makes`.
            RegistryError: AWS refuses.
        """
        if not self.makes(repository):
            return

        made = self._made.setdefault(repository, _Made())
        async with made.lock:
            if self._clock() - made.at >= SETTLING:
                await self._create(repository, made)

    async def maintain(self) -> None:
        """Put the policies that could not be put when their repository was made."""
        for repository in [name for name, made in self._made.items() if made.pending]:
            await self._settle(repository)

    async def known_blobs(
        self, repository: str, digests: Collection[Digest], *, make: bool = True
    ) -> set[Digest] | None:
        """Which blobs are available, one request for a hundred. Archived ones count as missing.

        This is the first that a copy asks of its repository, so one that is missing is made here: found out by
        the first upload, every blob that was read for it meanwhile would be read again.

        Args: `make` False only reads.

        Raises:
            RegistryError: of `provision`.
        """
        if make:
            await self._settle(repository)
        await self._learn_mounting()
        if self._clock() < self._batch_at:
            return None

        known: set[Digest] = set()
        wanted = sorted(set(digests))
        try:
            for start in range(0, len(wanted), BATCH):
                known |= await self._available(repository, wanted[start : start + BATCH])
        except NotFound:
            if make:
                await self.provision(repository)
            return set()
        except RegistryError as error:
            self._batch_at = self._clock() + BATCH_RETRY
            self._log.warning("no_batch_check", repository=repository, error=str(error))
            return None

        return known

    async def provisioned(self, repository: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns; a repository that is missing is made, and the attempt repeated until it is seen.

        Raises:
            RegistryError: of `provision`, or of the attempt, with the remedy that ECR has for it.
        """
        try:
            return await self._attempt(repository, attempt)
        except NotFound as error:
            if not repository_missing(error):
                raise

        await self.provision(repository)
        for _ in range(VISIBLE_TRIES - 1):
            try:
                return await self._attempt(repository, attempt)
            except NotFound as error:
                if not repository_missing(error):
                    raise

            await self._sleep(1.0)

        return await self._attempt(repository, attempt)

    async def _attempt(self, repository: str, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await attempt()
        except RegistryError as error:
            better = explained(error, repository) if error.side != "source" else None
            if better is None:
                raise

            raise better from error

    async def _create(self, repository: str, made: _Made) -> None:
        request = self._request(repository)
        try:
            await self._ask(
                "ecr:CreateRepository", lambda ecr: ecr.create_repository(**request), repository
            )
        except RegistryError as error:
            if error.code != "RepositoryAlreadyExistsException":
                raise

            # Another replica, or a person: it is there, and what belongs on it is for its maker to say.
            made.at = self._clock()
            return

        made.at = self._clock()
        made.pending = ["lifecycle"] if self._settings.lifecycle_policy else []
        made.pending += ["policy"] if self._settings.repository_policy else []
        self._log.info("repository_created", registry=self.registry, repository=repository)
        await self._put_policies(repository, made)

    def _request(self, repository: str) -> CreateRepositoryRequestTypeDef:
        settings = self._settings
        request: CreateRepositoryRequestTypeDef = {
            "registryId": settings.account_id,
            "repositoryName": repository,
        }
        if settings.mutability:
            request["imageTagMutability"] = settings.mutability

        if settings.mutability_exclusions:
            request["imageTagMutabilityExclusionFilters"] = [
                {"filterType": "WILDCARD", "filter": text}
                for text in settings.mutability_exclusions
            ]

        if settings.scan_on_push is not None:
            request["imageScanningConfiguration"] = {"scanOnPush": settings.scan_on_push}

        if settings.kms_key:
            request["encryptionConfiguration"] = {
                "encryptionType": "KMS",
                "kmsKey": settings.kms_key,
            }

        if settings.tags:
            request["tags"] = [{"Key": k, "Value": v} for k, v in settings.tags.items()]

        return request

    async def _settle(self, repository: str) -> None:
        made = self._made.get(repository)
        if made is None or not made.pending:
            return

        async with made.lock:
            if self._clock() >= made.retry_at:
                await self._put_policies(repository, made)

    async def _put_policies(self, repository: str, made: _Made) -> None:
        for policy in list(made.pending):
            try:
                await self._put_policy(repository, policy)
            except RegistryError as error:
                made.retry_at = self._clock() + POLICY_RETRY
                self._log.warning("policy_not_put", repository=repository, error=str(error))
            else:
                made.pending.remove(policy)

    async def _put_policy(self, repository: str, policy: _Policy) -> None:
        settings = self._settings
        account = settings.account_id
        if policy == "lifecycle":
            await self._ask(
                "ecr:PutLifecyclePolicy",
                lambda ecr: ecr.put_lifecycle_policy(
                    registryId=account,
                    repositoryName=repository,
                    lifecyclePolicyText=settings.lifecycle_policy,
                ),
                repository,
            )
        else:
            await self._ask(
                "ecr:SetRepositoryPolicy",
                lambda ecr: ecr.set_repository_policy(
                    registryId=account,
                    repositoryName=repository,
                    policyText=settings.repository_policy,
                ),
                repository,
            )

    async def _available(self, repository: str, digests: Collection[Digest]) -> set[Digest]:
        answer = await self._ask(
            "ecr:BatchCheckLayerAvailability",
            lambda ecr: ecr.batch_check_layer_availability(
                registryId=self._settings.account_id,
                repositoryName=repository,
                layerDigests=[str(digest) for digest in digests],
            ),
            repository,
        )
        available = {
            layer.get("layerDigest")
            for layer in answer["layers"]
            if layer.get("layerAvailability") == "AVAILABLE"
        }
        return {digest for digest in digests if str(digest) in available}

    async def _learn_mounting(self) -> None:
        if self._clock() < self._setting_at:
            return

        self._setting_at = self._clock() + SETTING_LIFE
        try:
            answer = await self._ask(
                "ecr:GetAccountSetting",
                lambda ecr: ecr.get_account_setting(name="BLOB_MOUNTING"),
                "BLOB_MOUNTING",
            )
        except RegistryError as error:
            self._mounts = True
            self._log.debug("blob_mounting_unknown", error=str(error))
        else:
            self._mounts = answer.get("value", "") != "DISABLED"

    async def _ask(self, action: str, call: Callable[[ECRClient], Awaitable[T]], about: str) -> T:
        return await self._aws.ask(action, call, about=about, registry=self.registry)
