from pathlib import Path

import pytest

from millrace.errors import SpecError
from millrace.spec_file import check_folder, read_pipeline, read_specs

WHOLE = """type: assets.Pipeline
attributes:
  source: {url: "*.txt"}
  task: {kind: language_model}
  network: {name: ngram_copy}
  train: {steps: 5, batch: 4}
  search:
    space:
      network.width: {choices: [32, 64]}
      train.learning_rate: {low: 0.0001, high: 0.01}
"""


def put(folder: Path, text: str = WHOLE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "defs.yaml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (spec,) = read_specs(put(tmp_path))

    assert spec.train.batch == 4


def test_other_components_are_passed_over(tmp_path: Path) -> None:
    other = "type: dagster.Other\nattributes: {anything: 1}\n"

    assert len(list(read_specs(put(tmp_path, f"{other}---\n{WHOLE}")))) == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch: 4", "batsch: 4", "line 6: train: unknown key `batsch`. Did you mean `batch`?"),
        ("steps: 5", "steps: true", "line 6: train.steps: a number is needed, not true"),
        ("low: 0.0001", "low: 0.002", "line 10: search.space `train.learning_rate`: the default"),
        ("[32, 64]", "[16, 32]", "line 9: search.space `network.width`: the default 64 lies out"),
        ("*.txt", "ftp://me:hunter2@host/", "line 3: source.url: the URL holds a password"),
        ('"*.txt"', "{a-b: x}", "line 3: source.url.a-b: `a-b` is no name"),
        ("type:", "\ttype:", "found character"),
    ],
)
def test_an_error_names_file_line_and_key(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = put(tmp_path, WHOLE.replace(old, new))

    with pytest.raises(SpecError) as caught:
        list(read_specs(path))

    assert told in str(caught.value)
    assert str(path) in caught.value.asked
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["my-pipeline", "1st", "a b", "über", "a.b"])
def test_a_folder_whose_name_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)

    with pytest.raises(SpecError, match=f"`{name}` is no name.*Rename the folder"):
        check_folder(tmp_path)


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a" / "digits")
    put(tmp_path / "b" / "digits")

    with pytest.raises(SpecError, match=r"a/digits/defs\.yaml describes a pipeline digits already"):
        check_folder(tmp_path)


def test_two_pipelines_in_one_file_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "digits", f"{WHOLE}---\n{WHOLE}")

    with pytest.raises(SpecError, match="describes a pipeline digits already"):
        check_folder(tmp_path)


def test_folders_of_other_components_may_be_called_anything(tmp_path: Path) -> None:
    put(tmp_path / "my-thing", "type: dagster.Other\n")
    put(tmp_path / "digits")

    check_folder(tmp_path)


def test_one_pipeline_is_read_or_its_absence_told(tmp_path: Path) -> None:
    assert read_pipeline(put(tmp_path / "digits")).train.steps == 5

    with pytest.raises(SpecError, match=r"describes no component of type assets\.Pipeline"):
        read_pipeline(put(tmp_path / "other", "type: dagster.Other\n"))
