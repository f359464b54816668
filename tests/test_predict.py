import json
import subprocess
import sys
from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.answers.language_model import continue_text
from millrace.errors import SpecError
from millrace.manifest import Manifest
from millrace.release import release
from millrace.released import Released
from millrace.report import as_text, collect
from tests.pipelines_for_tests import NAME, ROOT, Line


def millrace(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "millrace", *arguments]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, check=False
    )


def store(line: Line) -> list[str]:
    return ["--store", str(line.root / "store")]


def code(line: Line) -> list[str]:
    return ["--code", str(line.root / "source")]


def test_a_released_classifier_answers_a_line_for_each_record(released_points: Line) -> None:
    clear = {"x0": 0.0, "x1": 9.0, "x2": 0.0, "x3": 0.0}
    lines = [json.dumps(clear), "{", "[1]", json.dumps(clear | {"x1": "nine"})]

    found = millrace("predict", NAME, *store(released_points), text="\n".join(lines) + "\n")

    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.stderr == ""
    assert answers[0]["class"] == "1"
    assert answers[0]["probability"] > 0.9
    assert "standard input, line 2: not JSON" in answers[1]["error"]
    assert "a JSON object is needed, not list" in answers[2]["error"]
    assert "line 4: field `x1` is 'nine'" in answers[3]["error"]
    assert found.returncode == 1  # not every record was answered


def test_a_released_language_model_goes_on_the_same_way_each_time(
    released_sentences: Line,
) -> None:
    asked = ["--text", "the mi", "--bytes", "40", "--temperature", "0.5", "--seed", "3"]
    line = released_sentences

    found = millrace("predict", NAME, *store(line), *code(line), *asked)

    released = Released(str(line.root / "store"), NAME, line.root / "source")
    assert found.returncode == 0
    assert found.stdout.rstrip("\n") == continue_text(released, "the mi", 40, 0.5, 3)
    assert len(found.stdout) == len("the mi") + 40 + 1
    assert continue_text(released, "", 8, 0.0, 0) == continue_text(released, "", 8, 0.0, 1)


def test_the_records_of_a_file_are_answered_as_the_evaluation_scored_them(
    released_points: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    from millrace.predict import main  # noqa: PLC0415

    path = released_points.root / "source" / "points.jsonl"
    labels = [json.loads(line)["label"] for line in path.read_text().splitlines()]

    status = main([NAME, *store(released_points), "--input", str(path)])

    answers = [json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()]
    right = sum(one == other for one, other in zip(answers, labels, strict=True))
    estimate = manifests.current(released_points.storage, NAME, "evaluation").facts["estimate"]
    assert status == 0
    assert right / len(labels) == pytest.approx(estimate["value"], abs=0.06)


def test_code_that_changed_since_the_release_is_refused(
    released_sentences: Line, tmp_path: Path
) -> None:
    line = released_sentences.copy(tmp_path / "line")
    source = line.root / "source" / "networks.py"
    source.write_text(source.read_text() + "# another version\n")

    with pytest.raises(SpecError, match="is not the version it was released with") as caught:
        Released(str(line.root / "store"), NAME, source.parent)

    assert "a copy lies in the release's folder" in caught.value.fix


def test_a_network_in_a_folder_of_its_own_can_be_released(
    released_sentences: Line, tmp_path: Path
) -> None:
    line = released_sentences.copy(tmp_path / "line")
    nets = line.root / "source" / "nets"
    nets.mkdir()
    (line.root / "source" / "networks.py").rename(nets / "networks.py")
    network = {"name": "nets/networks.py:Bigram", "width": 16}

    line.publish(release(line.job("another", network=network)))

    released = Released(str(line.root / "store"), NAME, nets.parent)
    assert len(continue_text(released, "the", 5, 0.0, 0)) == 8


@pytest.mark.parametrize("verb", ["predict", "report"])
def test_what_is_not_there_is_an_error_and_status_1(verb: str, tmp_path: Path) -> None:
    found = millrace(verb, "nowhere", "--store", str(tmp_path))

    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith(f"millrace {verb}: ")
    assert "aterialize" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(("fixture", "metric"), [
    ("released_points", "accuracy"), ("released_sentences", "bits_per_byte"),
])  # fmt: skip
def test_a_report_ends_with_all_of_it_as_json(
    fixture: str, metric: str, request: pytest.FixtureRequest
) -> None:
    line: Line = request.getfixturevalue(fixture)

    found = millrace("report", NAME, *store(line))

    told = json.loads(found.stdout.splitlines()[-1])
    assert found.returncode == 0
    assert found.stderr == ""
    assert told["quality"]["metric"] == metric
    assert told["released"] is True
    assert list(told["steps"]) == ["source_files", "shards", "checkpoint", "evaluation", "release"]
    assert told["seconds"] == pytest.approx(
        sum(step["seconds"] for step in told["steps"].values()), abs=0.05
    )
    assert f"{told['quality']['value']:.4f} [" in found.stdout
    assert "released: yes" in found.stdout


def test_a_report_says_when_the_release_is_of_an_earlier_checkpoint(
    released_points: Line, tmp_path: Path
) -> None:
    line = released_points.copy(tmp_path / "line")
    checkpoint = manifests.current(line.storage, NAME, "checkpoint")
    facts = {**checkpoint.facts, "steps": 301}
    newer = Manifest(NAME, "checkpoint", "newer", facts=facts, measured=checkpoint.measured)
    line.publish(newer)

    found = collect(str(line.root / "store"), NAME)

    assert found["released"] is False
    assert "released: no; the release in place is of an earlier checkpoint" in as_text(found)
