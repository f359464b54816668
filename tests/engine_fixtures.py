"""Small pipelines, made once for all test processes: a plugin for tests of the engine."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.spec import PipelineSpec
from tests.made_once import made_once
from tests.pipelines_for_tests import ROOT, Line, Tree, build_classification, build_language

Make = Callable[[Path], Line]


def _made_once(factory: pytest.TempPathFactory, name: str, make: Make) -> Line:
    """The line that `make` builds, built by whichever test process comes first."""

    def make_and_note(folder: Path) -> None:
        spec = make(folder).spec.model_dump_json()
        folder.with_suffix(".json").write_text(spec)

    folder = made_once(factory, name, make_and_note)
    return Line(folder, PipelineSpec.model_validate_json(folder.with_suffix(".json").read_text()))


def _copied(line: Line, act: Callable[[Line], object]) -> Make:
    """Make a copy of a line and do something more to it."""

    def make(folder: Path) -> Line:
        folder.rmdir()
        copy = line.copy(folder)
        act(copy)
        return copy

    return make


def _train(line: Line) -> None:
    line.run("train", line.job("checkpoint"))


def _tune(line: Line) -> None:
    line.run("tune", line.job("study"))


def _release(line: Line) -> None:
    # Imported here: they load torch, which most test processes can do without.
    from millrace.evaluation.evaluate import evaluate  # noqa: PLC0415
    from millrace.release import release  # noqa: PLC0415

    line.publish(evaluate(line.job("evaluation")))
    line.publish(release(line.job("release")))


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A classification with packed shards. Copy it before changing it."""
    return _made_once(tmp_path_factory, "points", build_classification)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A language model with packed shards. Copy it before changing it."""
    return _made_once(tmp_path_factory, "sentences", build_language)


@pytest.fixture(scope="session")
def trained_points(tmp_path_factory: pytest.TempPathFactory, points: Line) -> Line:
    """The classification, trained on 2 ranks without a break."""
    return _made_once(tmp_path_factory, "trained-points", _copied(points, _train))


@pytest.fixture(scope="session")
def trained_sentences(tmp_path_factory: pytest.TempPathFactory, sentences: Line) -> Line:
    """The language model, trained on 1 rank."""
    return _made_once(tmp_path_factory, "trained-sentences", _copied(sentences, _train))


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
    return _made_once(tmp_path_factory, "tuned-points", _copied(points, _tune))


@pytest.fixture(scope="session")
def released_points(tmp_path_factory: pytest.TempPathFactory, trained_points: Line) -> Line:
    """The classification, evaluated and released."""
    return _made_once(tmp_path_factory, "released-points", _copied(trained_points, _release))


@pytest.fixture(scope="session")
def released_sentences(tmp_path_factory: pytest.TempPathFactory, trained_sentences: Line) -> Line:
    """The language model, evaluated and released."""
    return _made_once(tmp_path_factory, "released-sentences", _copied(trained_sentences, _release))
