"""The shell through its real entry points: definitions, the README's command, failures, kills."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from safetensors.numpy import load, save

from assets.evaluation import build_evaluation
from assets.pipeline import build_chain
from assets.release import build_release
from assets.shards import build_shards
from assets.source_files import build_source_files
from assets.step import PipelineFolder
from millrace import manifest as manifests
from millrace.manifest import Manifest
from millrace.report import collect
from millrace.spec import PipelineSpec
from millrace.spec_file import read_specs
from millrace.storage import FsspecStorage, StoredFile
from resources.compute import Compute
from resources.storage import Storage
from tests.made_once import made_once

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DAGSTER = Path(sys.executable).with_name("dagster")
DEADLINE_SECONDS = 120
NOUNS = (
    "source_files", "shards", "plan", "study", "checkpoint", "evaluation", "release", "cost",
)  # fmt: skip


def documented_command(pipeline: str) -> list[str]:
    """The command that materializes a pipeline, word for word as the README has it."""
    pattern = rf"^    dagster (asset materialize [^#\n]*group:{pipeline})"
    found = re.search(pattern, README.read_text(), re.MULTILINE)
    assert found is not None, f"README.md says how to materialize {pipeline}"
    return [str(DAGSTER), *found[1].split()]


@dataclass(frozen=True)
class Site:
    """A place to run in: Dagster's home and a store of its own."""

    home: Path
    store: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "MILLRACE_STORE": self.store,
            "MILLRACE_WORK": str(self.home / "work"),
        }

    def start(self) -> subprocess.Popen[str]:
        """Start the README's command for digits."""
        return subprocess.Popen(
            documented_command("digits"),
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        """Run it to its end: exit status and output."""
        process = self.start()
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, output

    def current(self, noun: str) -> Manifest:
        return manifests.current(FsspecStorage(self.store), "digits", noun)

    def processes(self) -> list[int]:
        """Pids of all living processes of ours that belong to this site."""
        marked = f"DAGSTER_HOME={self.home}".encode()
        pids = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                is_ours = marked in (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            if is_ours:
                pids.append(int(folder.name))
        return pids


def make_site(folder: Path, store: str = "") -> Site:
    home = folder / "home"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
    return Site(home, store or str(folder / "store"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, int, str]:
    """digits, materialized once: the site, the exit status and the output. Copy before changing."""

    def make(folder: Path) -> None:
        status, output = make_site(folder).run()
        (folder / "told.json").write_text(json.dumps([status, output]))

    folder = made_once(tmp_path_factory, "digits", make)
    status, output = json.loads((folder / "told.json").read_text())
    return Site(folder / "home", str(folder / "store")), status, output


@pytest.fixture
def copied(finished: tuple[Site, int, str], tmp_path: Path) -> Site:
    """A copy of the finished site, to change at will."""
    site = make_site(tmp_path / "copy")
    shutil.copytree(finished[0].store, site.store)
    return site


@pytest.fixture
def spec() -> PipelineSpec:
    return next(read_specs(ROOT / "pipelines" / "digits" / "defs.yaml"))


def materialize(
    asset: dg.AssetsDefinition, site: Site, *, raise_on_error: bool = False
) -> dg.ExecuteInProcessResult:
    resources = {
        "storage": Storage(url=site.store),
        "compute": Compute(work=str(site.home / "work")),
    }
    return dg.materialize([asset], resources=resources, raise_on_error=raise_on_error)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """The one error a failed run shows."""
    assert not result.success
    failed = [event for event in result.all_events if event.is_step_failure]
    assert len(failed) == 1
    error = failed[0].step_failure_data.error
    assert error is not None
    return error.message


def test_definitions_load_without_torch_or_anything_else_that_takes_long() -> None:
    script = (
        "import sys, pipelines\n"
        "heavy = {'torch', 'optuna', 'pyarrow', 's3fs', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_every_pipeline_has_its_chain_its_job_and_its_sensor() -> None:
    from pipelines import defs  # noqa: PLC0415  loading them is part of the test

    graph = defs.resolve_asset_graph()
    for name in ("digits", "stdlib_lm"):
        for noun in NOUNS:
            assert dg.AssetKey([name, noun]) in graph.get_all_asset_keys()
        assert defs.resolve_job_def(name).name == name
        (sensor,) = [s for s in defs.sensors or () if s.name == f"{name}_source_files"]
        assert isinstance(sensor, dg.SensorDefinition)
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    parents = graph.get(dg.AssetKey(["digits", "release"])).parent_keys
    assert parents == {dg.AssetKey(["digits", n]) for n in ("shards", "checkpoint", "evaluation")}


def test_a_cron_line_becomes_a_schedule_and_watch_switches_the_sensor_on(
    spec: PipelineSpec,
) -> None:
    from assets.automation import build_automation  # noqa: PLC0415

    watched = spec.model_copy(update={"schedule": "0 2 * * *", "watch": True})
    defs = build_automation(PipelineFolder("digits", str(ROOT), watched))
    (schedule,), (sensor,) = defs.schedules or (), defs.sensors or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.cron_schedule == "0 2 * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_the_sensor_asks_for_a_run_each_time_the_source_files_change(
    spec: PipelineSpec, tmp_path: Path
) -> None:
    from assets.automation import build_automation  # noqa: PLC0415

    changed = spec.with_parts({"source": {"url": "data/*.csv"}})
    (sensor,) = build_automation(PipelineFolder("p", str(tmp_path), changed)).sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)

    cursor: str | None = None

    def tick() -> list[str | None]:
        nonlocal cursor
        with dg.build_sensor_context(cursor=cursor) as context:
            found = sensor.evaluate_tick(context)
        cursor = found.cursor
        return [request.run_key for request in found.run_requests or []]

    assert tick() == []  # nothing there yet: the tick is skipped with the reason
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,label\n1,a\n")
    (first,) = tick()
    assert tick() == []
    (tmp_path / "data" / "b.csv").write_text("x,label\n2,b\n")
    (second,) = tick()
    (tmp_path / "data" / "b.csv").unlink()
    (third,) = tick()
    assert len({first, second, third}) == 3


def test_the_readmes_command_releases_digits(finished: tuple[Site, int, str]) -> None:
    site, status, output = finished
    assert status == 0, output[-3000:]
    found = collect(site.store, "digits")
    assert found["released"]
    assert found["quality"]["value"] >= 0.95
    assert found["quality"]["low"] <= found["quality"]["value"] <= found["quality"]["high"]
    assert found["quality"]["value"] > max(found["quality"]["baselines"].values())


def test_a_second_run_makes_nothing_anew_and_says_so(copied: Site) -> None:
    before = {noun: copied.current(noun) for noun in NOUNS}
    status, output = copied.run()
    assert status == 0, output[-3000:]
    for noun in NOUNS[1:]:
        assert f"unchanged: digits/{noun}/" in output
    assert {noun: copied.current(noun) for noun in NOUNS[1:]} == {n: before[n] for n in NOUNS[1:]}


def test_on_s3_the_same_command_makes_the_very_same(
    finished: tuple[Site, int, str], s3_url: str, tmp_path: Path
) -> None:
    local, _, _ = finished
    remote = make_site(tmp_path, f"{s3_url}/{tmp_path.name}")
    status, output = remote.run()
    assert status == 0, output[-3000:]
    for noun in NOUNS:
        assert remote.current(noun).digest == local.current(noun).digest


def test_release_alone_refuses_after_a_failed_gate_and_the_last_release_stays(
    copied: Site, spec: PipelineSpec
) -> None:
    site = copied
    before = site.current("release")
    strict = spec.with_parts({"gate": {"bar": 0.99999, "beats": ["majority"]}})
    folder = PipelineFolder("digits", str(ROOT / "pipelines" / "digits"), strict)

    gate = materialize(build_evaluation(folder), site)
    (check,) = gate.get_asset_check_evaluations()
    assert not check.passed
    assert check.blocking
    message = failure_of(materialize(build_release(folder), site))
    assert "the gate says" in message
    assert "accuracy >= 0.99999" in message
    assert site.current("release") == before


def publish_worse_checkpoint(site: Site) -> None:
    """Make a checkpoint current whose weights are those that were trained, with noise added."""
    storage, checkpoint = FsspecStorage(site.store), site.current("checkpoint")
    weights = load(checkpoint.file("weights.safetensors").read(storage))
    noise = np.random.default_rng(0)
    worse = {
        name: tensor + np.float32(0.15) * noise.standard_normal(tensor.shape, np.float32)
        for name, tensor in weights.items()
    }
    path = "digits/checkpoint/worse/weights.safetensors"
    file = StoredFile.written(storage, path, save(worse))
    changed = replace(checkpoint, key="worse", files=(file,))
    manifests.point(storage, manifests.publish(storage, changed))


def test_a_worse_checkpoint_is_refused_by_the_command_and_the_last_release_stays(
    copied: Site,
) -> None:
    site, before = copied, copied.current("release")
    publish_worse_checkpoint(site)

    chosen = 'key:"digits/evaluation" or key:"digits/release"'
    found = subprocess.run(
        [str(DAGSTER), "asset", "materialize", "-m", "pipelines", "--select", chosen],
        cwd=ROOT,
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert found.returncode != 0
    assert re.search(
        r"no worse than the release \(0\.9\d+\) by more than 0\.0\d+: fail", found.stderr
    )
    assert site.current("release") == before
    assert site.current("evaluation").facts["release"]["digest"] == before.digest


def test_an_evaluation_shows_its_pictures_and_its_worst_samples(
    copied: Site, spec: PipelineSpec
) -> None:
    folder = PipelineFolder("digits", str(ROOT / "pipelines" / "digits"), spec)

    result = materialize(build_evaluation(folder), copied)

    (made,) = result.asset_materializations_for_node("digits__evaluation")
    shown = {name: value.value for name, value in made.metadata.items()}
    for name in ("quality", "confusion", "reliability", "by_class"):
        assert str(shown[name]).startswith(f"![{name}](data:image/svg+xml;base64,")
    assert {"macro_f1", "mcc", "auroc", "calibration_error"} < set(shown)
    assert shown["intervals_by"] == f"drawing {shown['test_records']} records"
    (rows,) = [
        value for value in made.metadata.values() if isinstance(value, dg.TableMetadataValue)
    ]
    assert len(rows.records) == 10
    assert set(rows.records[0].data) == {
        "loss", "file", "record", "excerpt", "label", "answer", "probability",
    }  # fmt: skip


def test_shards_show_their_level_the_reason_and_the_frontier(
    copied: Site, spec: PipelineSpec
) -> None:
    folder = PipelineFolder("digits", str(ROOT / "pipelines" / "digits"), spec)

    result = materialize(build_shards(folder), copied)

    (made,) = result.asset_materializations_for_node("digits__shards")
    shown = {name: value.value for name, value in made.metadata.items()}
    assert (shown["level"], shown["frame_bytes"]) == (3, 2**20)
    assert str(shown["layout_reason"]).startswith("level 3, 1 MiB, the default: ")
    assert str(shown["frontier"]).startswith("![frontier](data:image/svg+xml;base64,")
    assert "| level | frame, MiB | ratio |" in str(shown["points"])
    reads = copied.current("shards").measured["layout"]["reads"]
    assert shown["expected_reads"] == pytest.approx(reads)
    assert reads > 1


def test_shards_that_the_checkpoint_was_not_trained_on_are_refused(
    copied: Site, spec: PipelineSpec
) -> None:
    site = copied
    other = spec.with_parts({"split": {"validation": 0.15, "test": 0.2, "seed": 7}})
    folder = PipelineFolder("digits", str(ROOT / "pipelines" / "digits"), other)

    assert materialize(build_shards(folder), site).success
    for build in (build_evaluation, build_release):
        message = failure_of(materialize(build(folder), site))
        assert "was made from shards" in message


def test_a_changed_field_of_the_spec_makes_what_depends_on_it_stale(spec: PipelineSpec) -> None:
    def versions(spec: PipelineSpec) -> dict[str, str | None]:
        defs = build_chain(PipelineFolder("digits", str(ROOT), spec))
        assets = [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)]
        return {asset.key.path[-1]: asset.code_versions_by_key[asset.key] for asset in assets}

    longer = spec.with_parts({"train": spec.train.model_dump() | {"steps": 400}})
    before, after = versions(spec), versions(longer)
    assert {noun for noun in NOUNS if before[noun] != after[noun]} == {"plan", "checkpoint"}


def _follow_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"the run ended before it said `{text}`:\n" + "".join(lines[-30:]))


@pytest.fixture
def half_trained(copied: Site) -> Site:
    """A site with a study, whose Dagster process was killed in the middle of training."""
    site = copied
    for noun in ("checkpoint", "evaluation", "release"):
        shutil.rmtree(Path(site.store, "digits", noun))
    process = site.start()
    _follow_until(process, "checkpoint: step 100")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    return site


def test_killing_dagster_leaves_no_process_and_the_next_run_resumes_to_the_same_bits(
    finished: tuple[Site, int, str], half_trained: Site
) -> None:
    deadline = time.monotonic() + 5
    while (left := half_trained.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)  # nothing tells us of the end of processes that are not our children
    assert not left

    status, output = half_trained.run()

    assert status == 0, output[-3000:]
    assert "resumed from the checkpoint of step" in output
    assert half_trained.current("checkpoint").measured["resumed_at"] >= 100
    unbroken, _, _ = finished
    for noun in NOUNS:
        assert half_trained.current(noun).digest == unbroken.current(noun).digest


@pytest.mark.parametrize(
    ("files", "source", "told"),
    [
        ({}, {"url": "none/*.csv"}, "no file matches|No such file|none"),
        ({"a.csv": "x,label\n"}, {"url": "*.csv"}, "find usable records"),
        ({"a.csv": "x,label\n1,a\n2,b,c\n"}, {"url": "*.csv"}, "a.csv:3"),
        ({"a.xyz": "1"}, {"url": "*.xyz"}, "tell the format of a.xyz"),
        ({"a.csv": "x,y\n1,2\n"}, {"url": "*.csv"}, "label"),
    ],
)
def test_bad_sources_fail_with_one_error_and_publish_nothing(
    files: dict[str, str], source: dict[str, str], told: str, tmp_path: Path, spec: PipelineSpec
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    site = make_site(tmp_path / "site")
    task = {"kind": "classification", "shape": [1]}
    network = {"name": "mlp"}
    search = {"space": {"network.width": {"choices": [64, 128]}}}
    changed = spec.with_parts(
        {"source": source, "task": task, "network": network, "search": search}
    )
    message = failure_of(
        materialize(build_source_files(PipelineFolder("p", str(tmp_path), changed)), site)
    )
    assert re.search(told, message)
    assert FsspecStorage(site.store).list("") == {}


def test_a_step_without_its_input_says_what_to_materialize(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    site = make_site(tmp_path)
    message = failure_of(
        materialize(build_shards(PipelineFolder("digits", str(tmp_path), spec)), site)
    )
    assert "Materialize digits/source_files first" in message


def test_an_unreachable_store_fails_the_command_with_a_clear_error(tmp_path: Path) -> None:
    site = make_site(tmp_path, "s3://bucket/prefix")
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}
    found = subprocess.run(
        documented_command("digits"),
        cwd=ROOT,
        env={**site.environment, **nobody, "AWS_SECRET_ACCESS_KEY": "b"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert found.returncode != 0
    assert "s3://bucket/prefix" in found.stderr
    assert "AWS_ENDPOINT_URL" in found.stderr


def test_the_report_ends_in_one_json_object(finished: tuple[Site, int, str]) -> None:
    site, _, _ = finished
    found = subprocess.run(
        [sys.executable, "-m", "millrace", "report", "digits"],
        cwd=ROOT,
        env=site.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(found.stdout.splitlines()[-1])
    assert set(told["steps"]) == set(NOUNS)
    assert told["usd"] > 0
