"""Which engine starts the ranks, which hosts take part, and how a rank's end is judged."""

import builtins
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace.errors import SpecError
from millrace.spec import TrainSpec
from millrace.train import world
from millrace.train.elsewhere import fetch_job, publish_job
from millrace.train.hosts import Hosts, interface_of, local_address
from millrace.train.launcher import launch_ranks, main
from millrace.train.member import PEER_LOST, is_worth_another, lost_another, run_member
from millrace.train.notice import STOPPED
from resources.compute import LAUNCHERS, Compute
from tests.pipelines_for_tests import NAME, Line

OURS = {
    "MILLRACE_NNODES": "1:4",
    "MILLRACE_NODE_RANK": "2",
    "MILLRACE_RDZV_ENDPOINT": "first:1234",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OURS, Hosts(1, 4, 2, "first", 1234)),
        ({**OURS, "SLURM_NNODES": "9", "SLURM_NODEID": "7"}, Hosts(1, 4, 2, "first", 1234)),
        (
            {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "MASTER_ADDR": "n01", "MASTER_PORT": "77"},
            Hosts(2, 2, 1, "n01", 77),
        ),
        (
            {"NNODES": "3", "JOB_COMPLETION_INDEX": "0", "MASTER_ADDR": "job-0.job"},
            Hosts(3, 3, 0, "job-0.job", 29400),
        ),
        ({**OURS, "MILLRACE_RDZV_ENDPOINT": "first"}, Hosts(1, 4, 2, "first", 29400)),
    ],
)
def test_hosts_are_read_from_ours_slurms_and_kubernetes_variables(
    environment: dict[str, str], expected: Hosts
) -> None:
    assert Hosts.from_environment(environment) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MILLRACE_NNODES": ""}, "none of MILLRACE_NNODES, NNODES, SLURM_NNODES is set"),
        ({"MILLRACE_NNODES": "two"}, "invalid literal"),
        ({"MILLRACE_NNODES": "3:2"}, "the hosts are '3:2'"),
        ({"MILLRACE_NODE_RANK": "-1"}, "this one's number is -1"),
        ({"MILLRACE_RDZV_ENDPOINT": "first:port"}, "invalid literal"),
    ],
)
def test_hosts_that_are_not_told_rightly_are_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        Hosts.from_environment(OURS | changes)

    assert "MILLRACE_NNODES" in caught.value.fix


def test_ranks_are_shared_evenly_over_hosts() -> None:
    hosts = Hosts(1, 4, 0, "first")

    assert hosts.ranks_per_host(TrainSpec(steps=1, batch=24, ranks=8)) == 2
    with pytest.raises(SpecError, match=r"train\.ranks \(6\) is no multiple"):
        hosts.ranks_per_host(TrainSpec(steps=1, batch=24, ranks=6))


def test_an_elastic_training_is_refused_where_fewer_ranks_cannot_share_the_batch() -> None:
    train = TrainSpec(steps=1, batch=8, ranks=4)

    with pytest.raises(SpecError, match="3 ranks cannot share a batch of 8"):
        Hosts(1, 4, 0, "first").ranks_per_host(train)
    assert Hosts(4, 4, 0, "first").ranks_per_host(train) == 1


def test_the_interface_is_the_one_that_leads_to_the_first_host() -> None:
    assert local_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") in {name for _, name in socket.if_nameindex()}
    assert interface_of("192.0.2.77") == ""
    assert interface_of("::1") == ""


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(SpecError, match=r"reach the first host, no-such-host\.invalid"):
        local_address("no-such-host.invalid")


def test_a_launcher_that_is_not_there_is_refused(points: Line) -> None:
    compute = Compute(work=str(points.root), launcher="kubernetes")

    with pytest.raises(SpecError, match="kubernetes") as caught:
        compute.run("train", points.job())

    assert all(name in caught.value.fix for name in LAUNCHERS)


def test_ray_that_is_not_installed_is_named_with_the_extra(
    points: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "ray":
            raise ImportError("No module named 'ray'")
        return import_module(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(__import__("sys").modules, "millrace.train.ray_cluster", raising=False)

    with pytest.raises(SpecError, match="MILLRACE_COMPUTE=ray") as caught:
        launch_ranks(points.job().model_copy(update={"launcher": "ray"}))

    assert caught.value.fix == "pip install 'millrace[ray]'"


def test_join_says_what_it_needs() -> None:
    with pytest.raises(SpecError, match="python -m millrace join PIPELINE"):
        main([])


def test_a_published_job_brings_the_users_network_file_to_another_host(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("checkpoint", network={"name": "networks.py:Linear"})

    url = publish_job(job.model_copy(update={"launcher": "torchrun"}))
    landed = fetch_job(url, str(tmp_path / "elsewhere"))

    assert url == f"{line.storage.url}/{NAME}/job.json"
    assert landed.folder != job.folder
    written = Path(landed.folder, "networks.py").read_bytes()
    assert written == Path(job.folder, "networks.py").read_bytes()
    assert (landed.spec, landed.key, landed.inputs) == (job.spec, job.key, job.inputs)


@pytest.mark.parametrize(
    ("code", "expected"), [(-9, True), (PEER_LOST, True), (STOPPED, True), (1, False)]
)
def test_only_a_death_or_a_notice_is_worth_another_attempt(code: int, expected: bool) -> None:
    assert is_worth_another(code) == expected


def test_a_lost_rank_is_told_from_an_error_of_the_network() -> None:
    assert lost_another(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert lost_another(torch.distributed.DistNetworkError("gone"))
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_rank_leaves_its_error_for_the_launcher(
    points: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = points.job(network={"name": "missing.py:Net"})
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    with pytest.raises(SpecError):
        run_member(job)

    told = json.loads((tmp_path / "error.json").read_text())["millrace"]
    assert told["type"] == "SpecError"
    assert "missing.py does not exist" in told["found"]


def test_a_rank_takes_the_threads_it_is_told_else_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert world.num_threads(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert world.num_threads(10**6) == 1
