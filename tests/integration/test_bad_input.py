"""Bad input and broken surroundings, on real input: each has a clear message, and everything else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Setup
from tests.integration.images import bulky_image, push, single_image
from tests.integration.net import free_port
from tests.integration.programs import copycat, until
from tests.integration.registries import ONE_USER, DockerRegistry
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "skopeo", "kubectl", "openssl", "setpriv"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

UNPARSABLE = "UPPER CASE//bad image"


def test_bad_images_do_not_hold_up_a_good_one(
    setup: Setup, source: DockerRegistry, workloads: Workloads, tmp_path: Path
) -> None:
    """An unreachable registry, 401, 404, an unparsable name and a corrupt blob fail by themselves, each in its words."""
    nobody = f"127.0.0.1:{free_port()}"
    with DockerRegistry(tmp_path / "locked", htpasswd=ONE_USER) as locked:
        corrupt = single_image("corrupt")
        push(corrupt, source.address, "bad/corrupt", "1")
        victim = max(corrupt.blobs, key=lambda digest: len(corrupt.blobs[digest]))
        file = source.blob_file(victim)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        good = bulky_image(10_000)  # shares no layer with the corrupt one
        push(good, source.address, "good/image", "1")
        words = {
            f"{nobody}/some/image:1": nobody,
            f"{locked.address}/some/image:1": locked.address,
            f"{source.address}/bad/missing:1": "bad/missing",
            UNPARSABLE: UNPARSABLE,
            f"{source.address}/bad/corrupt:1": victim.removeprefix("sha256:"),
        }
        for number, image in enumerate(words):
            workloads.pod(f"bad-{number}", image)
        workloads.pod("good", f"{source.address}/good/image:1")
        with setup.copycat(setup.config(source.address, nobody, locked.address)) as program:
            failed = dict.fromkeys(words, "failed")
            images = program.wait_states({f"{source.address}/good/image:1": "protected", **failed})
            program.wait_ready()
    for image, word in words.items():
        assert word in images[image]["message"], images[image]
    assert "no access" in images[f"{locked.address}/some/image:1"]["message"]
    assert setup.target.digests("mirror/bad/corrupt") == {}
    assert setup.target.digests("mirror/good/image")["1"] == good.digest


def test_a_target_that_is_not_there_yet(
    setup: Setup, source: DockerRegistry, workloads: Workloads
) -> None:
    """While the target is down the program lives, says which registry it waits for, and goes on by itself later."""
    push(single_image("patient"), source.address, "some/image", "1")
    image = f"{source.address}/some/image:1"
    workloads.pod("some", image)
    setup.target.stop()
    with setup.copycat(setup.config(source.address)) as program:
        until(
            lambda: setup.target.address in program.images().get(image, {}).get("message", ""),
            "a message that names the target",
        )
        assert program.answers(f"{program.health}/healthz") == 200
        setup.target.start()
        program.wait_states({image: "protected"}, patience=120)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"watchResource": ["pods"]}, ["watchResource", "watchResources"]),
        (
            {"docker": {"registry": "127.0.0.1:1", "insecure": "perhaps"}},
            ["docker.insecure"],
        ),
        ({"requestTimeout": "soon", "maxTransfers": -1}, ["requestTimeout", "maxTransfers"]),
    ],
    ids=["unknown key", "bad value", "two at once"],
)
def test_a_bad_configuration(setup: Setup, settings: dict[str, Any], words: list[str]) -> None:
    """The program does not start, and names every key and the file that it stands in; so does `config check`."""
    program = setup.copycat(setup.config(**settings))
    with program:
        assert program.ended() != 0
    file = next(setup.directory.glob("copycat-*/config.yaml"))
    code, out, err = copycat("config", "check", "--config", str(file))
    assert code == 2
    for text in (program.log_text(), out + err):
        assert all(word in text for word in words)
        assert str(file) in text
        assert "Traceback" not in text


def test_no_permission_for_one_kind(
    setup: Setup, workloads: Workloads, source: DockerRegistry, tmp_path: Path
) -> None:
    """What may not be watched is said, with the rule that is missing, and the other kinds are served."""
    push(single_image("allowed"), source.address, "some/image", "1")
    workloads.pod("some", f"{source.address}/some/image:1")
    kubectl, name = workloads.kubectl, workloads.namespace
    kubectl("create", "serviceaccount", "limited", "-n", name)
    others = "deployments.apps,statefulsets.apps,daemonsets.apps,jobs.batch,pods"
    rights = ("--verb=list,watch", f"--resource={others}")
    kubectl("create", "role", "limited", "-n", name, *rights)
    binding = ("--role=limited", f"--serviceaccount={name}:limited")
    kubectl("create", "rolebinding", "limited", "-n", name, *binding)
    token = kubectl("create", "token", "limited", "-n", name).strip()
    kubeconfig = setup.kube.kubeconfig_for(tmp_path / "limited.kubeconfig", token)
    with setup.copycat(setup.config(source.address), kubeconfig=kubeconfig) as program:
        program.wait_states({f"{source.address}/some/image:1": "protected"})
        program.wait_ready()
        program.wait_for_log(
            lambda line: "cronjobs" in str(line) and "forbidden" in str(line).lower()
        )
        assert program.metric('k8s_copycat_rbac_denied{resource="cronjobs"}') == 1
        assert program.metric('k8s_copycat_rbac_denied{resource="pods"}') == 0
