"""The manifests and templates of deploy/ are what their schemas and our launchers take."""

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from millrace.train.hosts import Hosts
from resources.compute import LAUNCHERS

DEPLOY = Path(__file__).parents[1] / "deploy"
VERSIONS = ("1.33", "1.35", "1.37")
# The long options of sbatch (Slurm 25.05) that a #SBATCH line may carry and that we know.
DIRECTIVES = {
    "account", "acctg-freq", "array", "begin", "chdir", "clusters", "comment", "constraint",
    "container", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "cpus-per-task", "deadline",
    "dependency", "distribution", "error", "exclude", "exclusive", "export", "get-user-env",
    "gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres",
    "hint", "hold", "input", "job-name", "licenses", "mail-type", "mail-user", "mem", "mem-bind",
    "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice", "no-kill", "no-requeue",
    "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu",
    "ntasks-per-node", "ntasks-per-socket", "open-mode", "output", "overcommit", "oversubscribe",
    "partition", "power", "prefer", "priority", "profile", "qos", "reboot", "requeue",
    "reservation", "segment", "signal", "sockets-per-node", "spread-job", "switches",
    "thread-spec", "threads-per-core", "time", "time-min", "tmp", "tres-per-task", "use-min-nodes",
    "wait", "wait-all-nodes", "wckey",
}  # fmt: skip


def fields(required: str = "", **types: Any) -> dict[str, Any]:
    """The schema of an object that has these fields and no others."""
    properties = {
        name: {"type": told} if isinstance(told, str) else told for name, told in types.items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


# The fields of KubeRay 1.7's RayJob (ray.io/v1) that we use or may come to use; what lies inside a
# `template` is a pod, which the schema of Kubernetes takes.
GROUP: dict[str, Any] = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": "object",
    "labels": "object",
    "resources": "object",
}
SCHEMA = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata="object",
    spec=fields(
        activeDeadlineSeconds="integer",
        backoffLimit="integer",
        entrypoint="string",
        entrypointNumCpus="number",
        entrypointNumGpus="number",
        runtimeEnvYAML="string",
        shutdownAfterJobFinishes="boolean",
        submissionMode="string",
        submitterPodTemplate="object",
        suspend="boolean",
        ttlSecondsAfterFinished="integer",
        rayClusterSpec=fields(
            "headGroupSpec",
            autoscalerOptions="object",
            enableInTreeAutoscaling="boolean",
            gcsFaultToleranceOptions="object",
            rayVersion="string",
            headGroupSpec=fields("template", serviceType="string", **GROUP),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    "groupName maxReplicas minReplicas template",
                    groupName="string",
                    idleTimeoutSeconds="integer",
                    maxReplicas="integer",
                    minReplicas="integer",
                    numOfHosts="integer",
                    replicas="integer",
                    **GROUP,
                ),
            },
        ),
    ),
)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pods(ray_job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods of a RayJob, as Kubernetes would be asked for them."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}} | group["template"]


def containers() -> list[dict[str, Any]]:
    job = documents("indexed-job.yaml")[1]["spec"]["template"]
    return [
        c for pod in (job, *pods(documents("rayjob.yaml")[0])) for c in pod["spec"]["containers"]
    ]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_indexed_job_is_what_kubernetes_takes(version: str) -> None:
    service, job = documents("indexed-job.yaml")

    for document in (service, job):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_a_misspelt_field_of_the_indexed_job_would_be_found() -> None:
    _, job = documents("indexed-job.yaml")
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["containers"][0]["resource"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_ray_job_is_what_kuberay_takes() -> None:
    (ray_job,) = documents("rayjob.yaml")

    jsonschema.validate(ray_job, SCHEMA)
    for pod in pods(ray_job):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(
    ("place", "field"),
    [(("spec",), "entryPoint"), (("spec", "rayClusterSpec", "headGroupSpec"), "rayStartParam")],
)
def test_a_misspelt_field_of_the_ray_job_would_be_found(place: tuple[str, ...], field: str) -> None:
    (ray_job,) = documents("rayjob.yaml")
    inside = ray_job
    for key in place:
        inside = inside[key]
    inside[field] = {}

    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(ray_job, SCHEMA)


def test_pods_of_the_indexed_job_know_which_hosts_take_part() -> None:
    service, job = documents("indexed-job.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]

    of_second = Hosts.from_environment(variables(container) | {"JOB_COMPLETION_INDEX": "1"})

    name, subdomain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
    port = service["spec"]["ports"][0]["port"]
    assert of_second == Hosts(2, 2, 1, f"{name}-0.{subdomain}", port)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == of_second.most
    assert subdomain == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}


def test_every_pod_names_a_launcher_that_there_is() -> None:
    chosen = {variables(container).get("MILLRACE_COMPUTE") for container in containers()}

    assert chosen == {"ray", "torchrun"} <= set(LAUNCHERS)


def test_the_directives_of_the_sbatch_template_are_slurms() -> None:
    lines = (DEPLOY / "slurm.sbatch").read_text().splitlines()
    directives = [line for line in lines if re.match("#+SBATCH", line)]
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))

    assert lines[0] == "#!/bin/bash"
    assert all(line in lines[:end] for line in directives), "Slurm reads no further"
    for line in directives:
        found = re.fullmatch(r"#{1,2}SBATCH --([a-z-]+)(=\S+)?", line)
        assert found is not None, line
        assert found[1] in DIRECTIVES, line


def program(folder: Path, name: str, text: str) -> None:
    """Put a program on the PATH in place of one that only a cluster has."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("number", [0, 1])
def test_the_sbatch_template_tells_nodes_which_hosts_take_part(number: int, tmp_path: Path) -> None:
    program(tmp_path, "scontrol", 'test "$3" = "node[7-8]" && printf "node7\\nnode8\\n"')
    program(tmp_path, "srun", 'shift; env > env.txt; echo "$@" > told.txt; exec "$@"')
    program(tmp_path, "dagster", 'echo dagster "$@" > ran.txt')
    program(tmp_path, "python", 'echo python "$@" > ran.txt')
    (tmp_path / "deploy").symlink_to(DEPLOY)
    slurm = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MILLRACE_STORE": "s3://bucket",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": str(number),
        "SLURM_JOB_ID": "4",
    }

    subprocess.run(
        ["bash", "deploy/slurm.sbatch", "digits"],  # noqa: S607  the system's own shell
        cwd=tmp_path, env=slurm, check=True,
    )  # fmt: skip

    told = dict(line.split("=", 1) for line in (tmp_path / "env.txt").read_text().splitlines())
    assert Hosts.from_environment(told) == Hosts(2, 2, number, "node7", 29400)
    assert told["MILLRACE_COMPUTE"] in LAUNCHERS
    assert (tmp_path / "ran.txt").read_text().split() == [
        "dagster asset materialize -m pipelines --select group:digits",
        "python -m millrace join digits",
    ][number].split()


def test_nothing_in_deploy_is_a_secret() -> None:
    assert all(document["kind"] != "Secret" for document in documents("indexed-job.yaml"))
    for container in containers():
        for name in variables(container):
            assert not re.search("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", name), name
        assert [list(each) for each in container["envFrom"]] == [["secretRef"]]
