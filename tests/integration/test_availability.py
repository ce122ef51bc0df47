"""Several replicas against a real API server: one of them works, and another takes over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import Setup
from tests.integration.images import bulky_image, push, single_image
from tests.integration.net import get, get_json
from tests.integration.programs import Copycat, Kubectl, until
from tests.integration.registries import DockerRegistry
from tests.integration.slow import SlowLine
from tests.integration.test_main_job import committed
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "kubectl", "openssl", "setpriv"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

MIB = 1024 * 1024
LEADER = "k8s_copycat_leader"


@contextmanager
def replicas(
    setup: Setup, source: str, count: int, *, kubeconfigs: Sequence[Path | None] = ()
) -> Iterator[list[Copycat]]:
    """So many replicas that share one Lease; the first one leads."""
    config = setup.config(source)
    with ExitStack() as stack:
        found = []
        for number in range(count):
            program = setup.copycat(
                config,
                "--leader-elect",
                kubeconfig=kubeconfigs[number] if kubeconfigs else None,
                variables={"POD_NAMESPACE": setup.namespace, "POD_NAME": f"replica-{number}"},
            )
            found.append(stack.enter_context(program))
            if number == 0:
                until(lambda: leads(found[0]), "the first replica leads")
        yield found


def leads(program: Copycat) -> bool:
    """Whether it says that it leads; one that does not answer does not."""
    try:
        return program.metric(LEADER) == 1
    except OSError:
        return False


def leaders(programs: Sequence[Copycat]) -> list[Copycat]:
    """Those that say so; never two."""
    found = [program for program in programs if program.process.poll() is None and leads(program)]
    assert len(found) <= 1, "two leaders at a time"
    return found


def successor(programs: Sequence[Copycat], *, patience: float = 40.0) -> Copycat:
    """Waits for the one that leads next."""
    found: Copycat = until(lambda: leaders(programs), "a leader", patience=patience)[0]
    return found


def holder(kubectl: Kubectl, namespace: str) -> str:
    """Who holds the Lease, without the part that makes a process unique."""
    spec = kubectl.get("lease", "k8s-copycat", "-n", namespace)["spec"]
    return str(spec.get("holderIdentity") or "").partition("_")[0]


def test_killed_leader(
    setup: Setup, source: DockerRegistry, workloads: Workloads, kubectl: Kubectl
) -> None:
    """Three replicas: the leader is killed in the middle of a copy, one other completes it, and nothing is sent twice.

    Standbys are ready, copy nothing, and refuse orders naming the leader.
    """
    image = bulky_image(100_000, 200_000, 24 * MIB)
    push(image, source.address, "big/data", "1")
    with SlowLine(source.port, rate=1 * MIB) as line:
        workloads.pod("big", f"{line.address}/big/data:1")
        with replicas(setup, line.address, 3) as programs:
            first, *others = programs
            until(lambda: len(committed(setup.target)) >= 2, "two blobs at the target")
            for standby in others:
                standby.wait_ready()
                status, body = get(f"{standby.admin}/force-reconcile", method="POST")
                assert status == 503
                assert b"replica-0" in body
            assert leaders(programs) == [first]
            finished, position = set(committed(setup.target)), setup.target.position()
            first.kill()
            assert setup.target.digests("mirror/big/data") == {}
            line.rate = None
            second = successor(others)
            second.wait_states({f"{line.address}/big/data:1": "protected"})
            assert holder(kubectl, setup.namespace) == f"replica-{programs.index(second)}"
            assert finished.isdisjoint(committed(setup.target, start=position))
            assert leaders(others) == [second]
    assert setup.target.digests("mirror/big/data") == {
        "1": image.digest,
        image.anchor: image.digest,
    }


def test_leader_that_stops(
    setup: Setup, source: DockerRegistry, workloads: Workloads, kubectl: Kubectl
) -> None:
    """SIGTERM gives the Lease back, so that the next one need not wait for its end."""
    with replicas(setup, source.address, 2) as (first, second):
        second.wait_ready()
        assert first.terminate() == 0
        freed = time.monotonic()
        successor([second], patience=10)
        assert time.monotonic() - freed < 10, "less than the Lease's 15 seconds"
        assert holder(kubectl, setup.namespace) == "replica-1"
        push(single_image("later"), source.address, "later/one", "1")
        workloads.pod("later", f"{source.address}/later/one:1")
        second.wait_states({f"{source.address}/later/one:1": "protected"})


def test_leader_that_is_cut_off(
    setup: Setup, source: DockerRegistry, workloads: Workloads, tmp_path: Path
) -> None:
    """The leader's line to the API is cut: it stops before its Lease ends, and only then another leads.

    When the line is mended it stands by, with its listeners up all the time.
    """
    with SlowLine(setup.kube.port) as line:
        cut = setup.kube.kubeconfig_through(tmp_path / "through", line.port)
        with replicas(setup, source.address, 2, kubeconfigs=[cut, None]) as programs:
            first, second = programs
            second.wait_ready()
            line.frozen = True
            until(lambda: not leaders([first]), "the first gives up", patience=20)
            assert not leads(second), "its Lease has not ended yet"
            assert successor(programs) is second
            assert first.answers(f"{first.health}/healthz") == 200
            push(single_image("meanwhile"), source.address, "mean/while", "1")
            workloads.pod("meanwhile", f"{source.address}/mean/while:1")
            second.wait_states({f"{source.address}/mean/while:1": "protected"})
            line.frozen = False
            first.wait_for_log(lambda entry: str(entry.get("holder")).startswith("replica-1"))
            status = get_json(f"{first.admin}/api/v1/status")
            assert status["leading"] is False
            assert leaders(programs) == [second]


def test_leader_that_is_frozen(setup: Setup, source: DockerRegistry, workloads: Workloads) -> None:
    """The leader's process stands still for longer than its Lease: when it goes on, it sees that another leads."""
    with replicas(setup, source.address, 2) as (first, second):
        second.wait_ready()
        first.process.send_signal(signal.SIGSTOP)
        successor([second])
        push(single_image("meanwhile"), source.address, "mean/while", "1")
        workloads.pod("meanwhile", f"{source.address}/mean/while:1")
        second.wait_states({f"{source.address}/mean/while:1": "protected"})
        position = setup.target.position()
        first.process.send_signal(signal.SIGCONT)
        first.wait_for_log(lambda entry: entry["msg"] == "leading no more")
        assert leaders([first, second]) == [second]
        assert not any(request.writes for request in setup.target.requests(start=position))
        assert first.answers(f"{first.health}/healthz") == 200
        assert first.answers(f"{first.health}/readyz") == 200


def test_api_that_hangs(setup: Setup, source: DockerRegistry, workloads: Workloads) -> None:
    """The API server hangs for longer than a Lease lasts: nobody leads meanwhile, one leads afterwards."""
    with replicas(setup, source.address, 2) as programs:
        programs[1].wait_ready()
        with setup.kube.suspended():
            until(lambda: not leaders(programs), "the leader gives up", patience=20)
            assert all(p.answers(f"{p.health}/healthz") == 200 for p in programs)
        leader = successor(programs)
        push(single_image("after"), source.address, "after/one", "1")
        workloads.pod("after", f"{source.address}/after/one:1")
        leader.wait_states({f"{source.address}/after/one:1": "protected"})
        assert leaders(programs) == [leader]
