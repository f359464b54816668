"""Trainings on two hosts: network namespaces of this machine; `make test-hosts` runs them."""

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from millrace import manifest as manifests
from millrace.manifest import Manifest
from tests.pipelines_for_tests import FOLLOWER, NAME, Line, Tree, events
from tests.two_hosts import ADDRESSES, TwoHosts, two_hosts, write

pytestmark = pytest.mark.hosts
NONE: Mapping[str, str] = {}


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def on_one_host(points: Line, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The classification trained on one host, two ranks with a thread each."""
    line = points.copy(tmp_path_factory.mktemp("one-host") / "line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return line.run("train", line.job("checkpoint"))


def first(
    hosts: TwoHosts, line: Line, variables: Mapping[str, str] = NONE, **sections: Any
) -> Iterator[dict[str, object]]:
    """Start the training on the first host; its events."""
    path = write(
        line.job("checkpoint", **sections), line.root / "follower.json", launcher="torchrun"
    )
    process = hosts.start(0, "-c", FOLLOWER, "train", path, output=None, **variables)
    return events(process)


def join(hosts: TwoHosts, line: Line, **variables: str) -> None:
    """Have the second host join, knowing nothing but the store."""
    hosts.start(
        1, "-m", "millrace", "join", NAME,
        output=line.root / "second.log",
        MILLRACE_STORE=line.storage.url,
        MILLRACE_WORK=str(line.root / "work-of-second"),
        **variables,
    )  # fmt: skip


def until(kind: str, following: Iterator[dict[str, object]]) -> Iterator[dict[str, object]]:
    """The events up to the first of a kind, which must come."""
    said = []
    for event in following:
        said.append(event)
        yield event
        if event["event"] == kind:
            return
    raise AssertionError(f"no {kind} came: {said[-8:]}")


def made_by(line: Line, said: list[dict[str, object]]) -> Manifest:
    paths = [str(event["path"]) for event in said if event["event"] == "made"]
    words = (line.root / "second.log").read_text()
    assert paths, f"{said[-8:]}\nthe second host:\n{words[-3000:]}"
    return manifests.read(line.storage, paths[0])


def test_two_hosts_end_with_the_bits_of_one(
    points: Line, on_one_host: Manifest, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")

    join(hosts, line)
    made = made_by(line, list(first(hosts, line)))

    assert made.digest == on_one_host.digest
    assert made.measured["resumed_at"] == 0


def test_a_second_host_whose_processes_are_killed_comes_back_and_the_bits_stay(
    points: Line, on_one_host: Manifest, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    join(hosts, line)
    following = first(hosts, line)
    list(until("checkpoint", following))

    tree.kill(f"millrace join {NAME}")
    join(hosts, line)
    made = made_by(line, list(following))

    assert made.measured["resumed_at"] >= 50
    assert made.digest == on_one_host.digest


def test_an_elastic_training_does_without_a_host_that_is_cut_off(
    points: Line, on_one_host: Manifest, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    elastic = {"MILLRACE_NNODES": "1:2"}
    join(hosts, line, **elastic)
    following = first(hosts, line, elastic)
    list(until("checkpoint", following))

    hosts.cut()
    said = list(following)
    made = made_by(line, said)

    assert made.measured["resumed_at"] >= 50
    assert any("training on 1 of at most 2 hosts" in str(event.get("message")) for event in said)
    for one, two in zip(made.facts["curve"], on_one_host.facts["curve"], strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def test_a_second_host_that_is_told_to_leave_saves_first_and_is_done_without(
    points: Line, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    elastic = {"MILLRACE_NNODES": "1:2"}
    unsaved = line.spec.train.model_dump() | {"steps": 3000, "checkpoint_every": 10**6}
    join(hosts, line, **elastic)
    following = first(hosts, line, elastic, train=unsaved)
    list(until("progress", following))

    for pid in tree.pids(f"millrace join {NAME}"):
        os.kill(pid, signal.SIGTERM)
    said = list(following)
    made = made_by(line, said)

    (stopped,) = (event for event in said if event["event"] == "stopped")
    assert made.measured["resumed_at"] == stopped["step"] == stopped["checkpoint"]
    assert any("training on 1 of at most 2 hosts" in str(event.get("message")) for event in said)
    assert "told to stop by SIGTERM" in (line.root / "second.log").read_text()


def test_an_elastic_training_takes_in_a_host_that_comes_later(
    points: Line, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    elastic = {"MILLRACE_NNODES": "1:2"}
    longer = line.spec.train.model_dump() | {"steps": 100_000}  # than the test looks
    following = first(hosts, line, elastic, train=longer)
    list(until("checkpoint", following))

    join(hosts, line, **elastic)
    said = []
    for event in following:
        said.append(str(event.get("message")))
        if event["event"] == "checkpoint" and any("training on 2 of" in words for words in said):
            break

    grown = next(i for i, words in enumerate(said) if "training on 2 of at most 2" in words)
    assert any("resumed from the checkpoint" in words for words in said[grown:])


def test_an_error_on_the_second_host_is_told_to_the_follower_of_the_first(
    points: Line, hosts: TwoHosts, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    join(hosts, line)
    path = write(
        line.job("checkpoint", network={"name": "networks.py:Nan"}),
        line.root / "follower.json",
        launcher="torchrun",
    )

    said = list(events(hosts.start(0, "-c", FOLLOWER, "train", path)))

    assert [event["type"] for event in said if event["event"] == "raised"] == ["TrainingError"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie in it, and theirs may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def on_ray(
    hosts: TwoHosts, line: Line, folder: Path, cpus: int, **sections: Any
) -> Iterator[dict[str, object]]:
    """Start a Ray cluster of both hosts, and the training on it; its events."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    head, log = f"{ADDRESSES[0]}:6399", line.root / "second.log"
    begin = ("-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
    hosts.start(
        0, *begin, f"--num-cpus={cpus}", "--head", "--port=6399",
        f"--node-ip-address={ADDRESSES[0]}", "--include-dashboard=false", f"--temp-dir={folder}",
        output=log, RAY_health_check_period_ms="2000", RAY_health_check_timeout_ms="4000",
    )  # fmt: skip
    hosts.wait_for(0, 6399)
    hosts.start(
        1, *begin, f"--num-cpus={cpus}", f"--address={head}",
        f"--node-ip-address={ADDRESSES[1]}", "--node-manager-port=6400", output=log,
    )  # fmt: skip
    hosts.wait_for(1, 6400)  # else the driver may count one node, and place all ranks there
    path = write(line.job("checkpoint", **sections), line.root / "follower.json", launcher="ray")
    return events(hosts.start(0, "-c", FOLLOWER, "train", path, output=None, RAY_ADDRESS=head))


def test_two_nodes_of_ray_end_with_the_bits_of_one_host_and_outlive_a_lost_rank(
    points: Line,
    on_one_host: Manifest,
    hosts: TwoHosts,
    tree: Tree,
    tmp_path: Path,
    short_folder: Path,
) -> None:
    line = points.copy(tmp_path / "line")

    following = on_ray(hosts, line, short_folder, cpus=1)
    said = list(until("checkpoint", following))
    tree.kill("millrace rank")
    said += following
    made = made_by(line, said)

    assert made.measured["resumed_at"] >= 50
    assert made.digest == on_one_host.digest


def test_ray_goes_on_with_all_ranks_on_the_node_that_is_left(
    points: Line,
    hosts: TwoHosts,
    tmp_path: Path,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, unbroken = points.copy(tmp_path / "line"), points.copy(tmp_path / "unbroken")
    longer = line.spec.train.model_dump() | {"steps": 6000, "checkpoint_every": 200}

    following = on_ray(hosts, line, short_folder, cpus=2, train=longer)
    said = list(until("checkpoint", following))
    hosts.cut()
    said += following
    made = made_by(line, said)

    assert made.measured["resumed_at"] >= 200
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert made.digest == unbroken.run("train", unbroken.job("checkpoint", train=longer)).digest
