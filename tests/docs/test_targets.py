"""The configurations of the guides for targets work: each against a registry that behaves like that product."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest
import yaml

from copycat.app.oneshot import mirror
from copycat.config import load
from copycat.oci.digest import Digest
from copycat.progress import JsonLines
from copycat.sandbox.images import image, index
from copycat.sandbox.profiles import profile_of
from copycat.sandbox.registry import Registry
from tests.docs.pages import blocks

GUIDES = {"harbor": "harbor", "gar": "gar", "acr": "acr", "ghcr": "ghcr", "plain": "distribution"}


def configuration(guide: str) -> dict[str, dict[str, object]]:
    """The guide's config.yaml with a login."""
    found = [
        yaml.safe_load(block.text)
        for block in blocks("yaml", marked="# config.yaml")
        if block.page.stem == guide and "passwordFile" in block.text
    ]
    assert len(found) == 1
    (config,) = found
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize(("guide", "profile"), GUIDES.items(), ids=list(GUIDES))
async def test_the_configuration_of_a_guide_copies(
    guide: str, profile: str, tmp_path: Path
) -> None:
    """With the guide's user, prefix and password file an index arrives, with its tag and its anchor."""
    config = configuration(guide)
    docker = config["docker"]
    secret = tmp_path / "password"
    secret.write_text("of the guide\n")
    user, prefix = str(docker["username"]), str(docker["repoPrefix"])
    async with (
        Registry() as source,
        Registry(
            # a login that may push is told the truth about what is missing
            profile=replace(profile_of(profile), missing_repository=404),
            username=user,
            password="of the guide",
            # of registries with projects: the one of the prefix is there
            repository_exists=lambda name: name.startswith(prefix.partition("$")[0]),
        ) as target,
    ):
        whole = index(*(image(platform=p, seed=p) for p in ("linux/amd64", "linux/arm64")))
        source.add("team/app", whole, "1.36")
        docker |= {"registry": target.address, "insecure": True, "passwordFile": str(secret)}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({**config, "insecureRegistries": [source.address]}))
        out = io.StringIO()
        good = await mirror(
            await anyio.to_thread.run_sync(partial(load, path=str(file), environ={})),
            references=[f"{source.address}/team/app:1.36"],
            manifests=[],
            reporter=JsonLines(out),
        )
        assert good, out.getvalue()
        reached = json.loads(out.getvalue().splitlines()[0])["target"]
        repository = reached.removeprefix(f"{target.address}/").rpartition(":")[0]
        assert repository.startswith(prefix.partition("$")[0])
        anchor = Digest.parse(whole.digest).anchor
        assert target.tags[repository] == {"1.36": whole.digest, anchor: whole.digest}
        assert target.violations == []
