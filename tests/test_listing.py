import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from millrace.data.listing import list_source, locate
from millrace.errors import SourceError
from millrace.filesystem import open_filesystem
from millrace.spec import SourceSpec

Fill = Callable[..., str]


@pytest.fixture
def fill(store_url: str) -> Fill:
    """Puts files below a fresh folder of each kind of store and gives its URL."""

    def put(*paths: str) -> str:
        filesystem, root = open_filesystem(store_url)
        for path in paths:
            target = f"{root}/{path}"
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            filesystem.pipe_file(target, path.encode())
        return store_url

    return put


def listed(url: str | dict[str, str], base: str = "/", **source: object) -> list[str]:
    return [file.path for file in list_source(SourceSpec(url=url, **source), base)]  # type: ignore[arg-type]  # pydantic checks the keywords


def test_a_folder_lists_all_files_below_it_sorted(fill: Fill) -> None:
    url = fill("b.txt", "a/deep/c.txt", "a/b.txt")

    assert listed(url) == ["a/b.txt", "a/deep/c.txt", "b.txt"]


def test_a_glob_lists_what_it_matches_by_the_path_below_its_fixed_part(fill: Fill) -> None:
    url = fill("in/x.txt", "in/deep/y.txt", "in/z.csv", "other/x.txt")

    assert listed(f"{url}/in/*.txt") == ["x.txt"]
    assert listed(f"{url}/in/**/*.txt") == ["deep/y.txt", "x.txt"]
    assert listed(f"{url}/*/x.txt") == ["in/x.txt", "other/x.txt"]


def test_a_single_file_is_listed_by_its_name(fill: Fill) -> None:
    url = fill("in/x.txt")

    assert listed(f"{url}/in/x.txt") == ["x.txt"]


@pytest.mark.parametrize("place", ["", "/in", "/in/x.txt", "/in/*.txt", "/*/x.txt"])
def test_every_listed_file_is_located_where_it_was_listed(fill: Fill, place: str) -> None:
    source = SourceSpec(url=fill("in/x.txt", "in/y #1%20.txt", "in/z/w.txt") + place)

    for file in list_source(source, "/"):
        assert locate(source, "/", file.path) == file.url
        filesystem, path = open_filesystem(file.url)
        assert filesystem.cat_file(path).decode().endswith(file.path)


def test_files_of_several_urls_are_listed_below_their_names(fill: Fill) -> None:
    root = fill("in/x.txt", "in/deep/y.txt", "skip/x.txt", "skip/no.txt")
    urls = {"wiki": f"{root}/in", "code": f"{root}/skip/*.txt", "one": f"{root}/in/x.txt"}
    source = SourceSpec(url=urls, exclude=("no*",))

    files = list_source(source, "/")

    assert [file.path for file in files] == [
        "code/x.txt",
        "one/x.txt",
        "wiki/deep/y.txt",
        "wiki/x.txt",
    ]
    for file in files:
        assert locate(source, "/", file.path) == file.url
        filesystem, path = open_filesystem(file.url)
        assert filesystem.cat_file(path).decode().endswith(file.path.partition("/")[2])


def test_one_of_several_urls_that_matches_nothing_is_an_error_that_names_it(fill: Fill) -> None:
    root = fill("a.txt")

    with pytest.raises(SourceError, match=r"list the source .*/\*\.csv: no file matches"):
        listed({"a": f"{root}/*.txt", "b": f"{root}/*.csv"})


def test_the_same_file_behind_another_url_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    urls = ("*.txt", "a.*", "*.txt")

    found = [list_source(SourceSpec(url={"x": url}), str(tmp_path))[0] for url in urls]

    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint


def test_excluded_and_hidden_files_are_left_out(fill: Fill) -> None:
    url = fill("a.txt", "b.txt", "skip/c.txt", ".git/d.txt", ".e.txt", "_SUCCESS", "_temporary/f")

    assert listed(url, exclude=["skip/*", "b.*"]) == ["a.txt"]


def test_nothing_matched_is_an_error_that_names_the_glob(fill: Fill) -> None:
    url = fill("a.txt")

    with pytest.raises(SourceError, match=r"list the source .*/\*\.csv: no file matches"):
        listed(f"{url}/*.csv")


def test_everything_left_out_is_an_error_that_says_how_many(fill: Fill) -> None:
    url = fill("a.txt", "b.txt", ".c.txt")

    with pytest.raises(SourceError, match="3 are hidden or left out by `exclude`"):
        listed(url, exclude=["*.txt"])


def test_a_place_that_does_not_exist_is_an_error_that_names_it(fill: Fill) -> None:
    url = fill("a.txt")

    with pytest.raises(SourceError, match="missing"):
        listed(f"{url}/missing")
    with pytest.raises(SourceError, match="missing"):
        listed(f"{url}/missing/*.txt")


def test_a_missing_bucket_is_an_error_that_names_it(s3_url: str) -> None:
    with pytest.raises(SourceError, match=f"list the source {s3_url}-missing/"):
        listed(f"{s3_url}-missing/*.txt")


@pytest.mark.parametrize("url", ["s4://bucket/*.txt", "package://no_such_package/*.csv"])
def test_an_unknown_scheme_or_package_is_an_error_that_names_it(url: str) -> None:
    with pytest.raises(SourceError, match=r"s4|no_such_package"):
        listed(url)


def test_a_fingerprint_changes_with_the_content_and_not_without(fill: Fill) -> None:
    url = fill("a.txt", "b.txt")
    source = SourceSpec(url=url)
    before = {file.path: file.fingerprint for file in list_source(source, "/")}

    filesystem, root = open_filesystem(url)
    filesystem.pipe_file(f"{root}/a.txt", b"longer than it was before")
    after = {file.path: file.fingerprint for file in list_source(source, "/")}

    assert before["a.txt"] != after["a.txt"]
    assert before["b.txt"] == after["b.txt"]


def test_a_change_that_keeps_the_size_changes_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    source = SourceSpec(url=str(tmp_path))
    before = list_source(source, "/")[0].fingerprint

    file.write_text("two")
    os.utime(file, (1, 1))

    assert list_source(source, "/")[0].fingerprint != before


def test_a_relative_url_starts_from_the_pipelines_folder(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")

    for url in ("../data", "../data/*.txt", "../data/a.txt"):
        assert listed(url, str(tmp_path / "pipeline")) == ["a.txt"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")

    assert listed("~/*.txt") == ["a.txt"]


def test_a_linked_file_is_listed_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / "target"
    target.write_text("abc")
    (tmp_path / "in" / "link.txt").symlink_to(target)
    source = SourceSpec(url=str(tmp_path / "in"))

    before = list_source(source, "/")
    target.write_text("abcd")
    after = list_source(source, "/")

    assert [(file.path, file.num_bytes) for file in before + after] == [
        ("link.txt", 3),
        ("link.txt", 4),
    ]
    assert before[0].fingerprint != after[0].fingerprint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("pattern", ["", "/**/*.txt"])
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir(mode=0o000)

    with pytest.raises(SourceError, match="PermissionError"):
        listed(f"{tmp_path}{pattern}")
    assert listed(f"{tmp_path}{pattern}", exclude=["closed/*"]) == ["a.txt"]


def test_the_standard_library_is_a_source() -> None:
    files = list_source(SourceSpec(url="stdlib://json/*.py"), "/")

    assert "json/decoder.py" in {file.path for file in files}
    assert all(fsspec.open(file.url).fs.exists(file.url) for file in files)


def test_an_installed_packages_data_is_a_source() -> None:
    source = SourceSpec(url="package://sklearn/datasets/data/digits.csv.gz")

    (file,) = list_source(source, "/")

    assert file.path == "digits.csv.gz"
    assert locate(source, "/", file.path) == file.url
