"""Small pipelines, made once for all test processes: a plugin for tests of the engine."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.spec import PipelineSpec
from tests.pipelines_for_tests import ROOT, Line, Tree, build_classification, build_language

Make = Callable[[Path], Line]


def _made_once(factory: pytest.TempPathFactory, name: str, make: Make) -> Line:
    """The line that `make` builds, built by whichever test process comes first."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, spec = base / f"line-{name}", base / f"line-{name}.json"
    with (base / f"line-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not spec.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            spec.write_text(make(folder).spec.model_dump_json())
    return Line(folder, PipelineSpec.model_validate_json(spec.read_text()))


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A classification with packed shards. Copy it before changing it."""
    return _made_once(tmp_path_factory, "points", build_classification)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A language model with packed shards. Copy it before changing it."""
    return _made_once(tmp_path_factory, "sentences", build_language)


def _train_copy(line: Line) -> Make:
    def make(folder: Path) -> Line:
        folder.rmdir()
        copy = line.copy(folder)
        copy.run("train", copy.job("checkpoint"))
        return copy

    return make


@pytest.fixture(scope="session")
def trained_points(tmp_path_factory: pytest.TempPathFactory, points: Line) -> Line:
    """The classification, trained on 2 ranks without a break."""
    return _made_once(tmp_path_factory, "trained-points", _train_copy(points))


@pytest.fixture(scope="session")
def trained_sentences(tmp_path_factory: pytest.TempPathFactory, sentences: Line) -> Line:
    """The language model, trained on 1 rank."""
    return _made_once(tmp_path_factory, "trained-sentences", _train_copy(sentences))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """All processes that this test starts from now on."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("process trees are watched through /proc")
    mark = f"MILLRACE_TEST_TREE={uuid.uuid4().hex}"
    monkeypatch.setenv(*mark.split("="))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Tree(tmp_path, mark)


@pytest.fixture(scope="session")
def tuned_points(tmp_path_factory: pytest.TempPathFactory, points: Line) -> Line:
    """The classification with its study done by 2 workers, its database beside it."""

    def make(folder: Path) -> Line:
        folder.rmdir()
        copy = points.copy(folder)
        copy.run("tune", copy.job("study"))
        return copy

    return _made_once(tmp_path_factory, "tuned-points", make)


def _release_copy(line: Line) -> Make:
    def make(folder: Path) -> Line:
        # Imported here: they load torch, which most test processes can do without.
        from millrace.evaluate import evaluate  # noqa: PLC0415
        from millrace.release import release  # noqa: PLC0415

        folder.rmdir()
        copy = line.copy(folder)
        copy.publish(evaluate(copy.job("evaluation")))
        copy.publish(release(copy.job("release")))
        return copy

    return make


@pytest.fixture(scope="session")
def released_points(tmp_path_factory: pytest.TempPathFactory, trained_points: Line) -> Line:
    """The classification, evaluated and released."""
    return _made_once(tmp_path_factory, "released-points", _release_copy(trained_points))


@pytest.fixture(scope="session")
def released_sentences(tmp_path_factory: pytest.TempPathFactory, trained_sentences: Line) -> Line:
    """The language model, evaluated and released."""
    return _made_once(tmp_path_factory, "released-sentences", _release_copy(trained_sentences))
