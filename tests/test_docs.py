"""The documentation is true: its tree, its example pipeline, its tables of fields and checks."""

import gzip
import json
import re
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from assets.pipeline import build_chain
from assets.step import PipelineFolder
from millrace.report import collect
from millrace.spec_file import read_specs
from resources.compute import Compute
from resources.storage import Storage
from tests import readme_tree, spec_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOUNS = ("source_files", "shards", "study", "checkpoint", "evaluation", "release")


def block(name: str) -> str:
    """The code between <!-- name --> and <!-- /name -->, its indentation removed."""
    found = re.search(
        rf"<!-- {name} -->\n *```\w*\n(.*?)\n *```\n *<!-- /{name} -->", README, re.DOTALL
    )
    assert found is not None, f"README.md has a block {name}"
    return re.sub(r"^   ", "", found[1], flags=re.MULTILINE) + "\n"


def test_the_tree_is_made_of_the_modules_first_sentences() -> None:
    assert readme_tree.with_tree(README) == README, "run: python -m tests.readme_tree"


def test_the_table_of_fields_is_made_of_the_spec() -> None:
    path = ROOT / "docs" / "spec.md"
    assert path.read_text() == spec_table.build_page(), "run: python -m tests.spec_table"


def test_every_module_begins_with_a_sentence_of_its_own() -> None:
    for package in (*readme_tree.PACKAGES, "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert readme_tree.first_sentence(path), path


def test_the_shown_checks_are_those_that_run() -> None:
    from pipelines import defs  # noqa: PLC0415  loading them is part of the test

    keys = defs.resolve_asset_graph().asset_check_keys
    for noun in (*NOUNS, "plan", "cost"):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{noun}` |"))
        for key in keys:
            if key.asset_key == dg.AssetKey(["digits", noun]):
                assert key.name in row


def test_the_shown_output_of_the_demo_has_every_step_and_a_release() -> None:
    shown = block("demo")
    for noun in NOUNS:
        assert re.search(rf"^  {noun} +[0-9.]+ s +\$[0-9.]+ ", shown, re.MULTILINE)
    assert "  released: yes\n" in shown
    assert re.search(r"^ +zstd-19 +[0-9.]+$", shown, re.MULTILINE)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """The README's example, followed by a new user: her folder, her network, her data."""
    folder = tmp_path / "reviews"
    (folder / "data").mkdir(parents=True)
    (folder / "defs.yaml").write_text(block("example"))
    (folder / "model.py").write_text(block("network"))
    rng = np.random.default_rng(0)
    with gzip.open(folder / "data" / "a.jsonl.gz", "wt") as file:
        for _ in range(600):
            stars = int(rng.integers(1, 6))
            record = {
                "positive": bool(stars + rng.random() > 3.5),
                "length": int(rng.integers(5, 400)),
                "stars": stars,
                "exclamations": int(rng.integers(10)),
            }
            file.write(json.dumps(record) + "\n")
    return folder


def test_the_example_pipeline_with_a_network_of_ones_own_releases(reviews: Path) -> None:
    (spec,) = read_specs(reviews / "defs.yaml")
    defs = build_chain(PipelineFolder("reviews", str(reviews), spec))
    store = str(reviews / "store")
    resources = {"storage": Storage(url=store), "compute": Compute(work=str(reviews / "work"))}
    result = dg.materialize(
        [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)],
        resources=resources,
    )
    assert result.success
    assert collect(store, "reviews")["released"]
