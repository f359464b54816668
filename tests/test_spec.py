from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from millrace.errors import SpecError
from millrace.frozen import digest
from millrace.job import Job
from millrace.spec import NOT_SEARCHED, PipelineSpec, sentences
from millrace.tasks import BASELINES, LOSS_UNITS
from tests.spec_table import SECTIONS

BuildSpec = Callable[..., PipelineSpec]
BuildJob = Callable[..., Job]

CONV = {"kind": "classification", "shape": [1, 8, 8]}


def complaint(build_spec: BuildSpec, **sections: Any) -> str:
    """What the spec's validation says, a line for each finding."""
    with pytest.raises(ValidationError) as caught:
        build_spec(**sections)
    return "\n".join(sentences(caught.value))


def space(**values: Any) -> dict[str, Any]:
    return {"space": {"train.learning_rate": values}}


def space_of(**search: Any) -> dict[str, Any]:
    return {"search": space(low=1e-4, high=1e-2) | search}


def test_an_unknown_key_is_refused_and_the_nearest_named(build_spec: BuildSpec) -> None:
    found = complaint(build_spec, train={"steps": 5, "batch": 4, "learning_rte": 0.1})

    assert "train: unknown key `learning_rte`. Did you mean `learning_rate`?" in found


def test_an_unknown_section_is_refused_and_the_nearest_named(build_spec: BuildSpec) -> None:
    assert "unknown key `trayn`. Did you mean `train`?" in complaint(build_spec, trayn={})


def test_a_key_near_no_other_lists_the_known_ones(build_spec: BuildSpec) -> None:
    found = complaint(build_spec, source={"url": "*", "zzz": 1})

    assert "Did you mean" not in found
    assert "Known keys: encoding, exclude, format" in found


def tokens_of(**sections: Any) -> dict[str, Any]:
    task = {"kind": "language_model", "tokens": "ids", "vocabulary": 1000, "block_tokens": 8}
    return {"task": task} | sections


def mixed(url: Any, **mix: Any) -> dict[str, Any]:
    return {"source": {"url": url}, "train": {"steps": 5, "batch": 4, "mix": mix}}


TWO = {"wiki": "a/*.jsonl", "code": "b/*.py"}


def images_of(**task: Any) -> dict[str, Any]:
    whole = {"kind": "classification", "shape": [3, 8, 8], "images": "pixels"} | task
    return {"task": whole, "network": {"name": "model.py:Net"}}


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"train": {"steps": "many", "batch": 4}}, "train.steps: "),
        ({"train": {"steps": 5.5, "batch": 4}}, "train.steps: "),
        ({"train": {"steps": 0, "batch": 4}}, "train.steps: "),
        ({"train": {"batch": 4}}, "train.steps: Field required"),
        ({"train": {"steps": 5, "batch": 4, "seed": -1}}, "train.seed: "),
        ({"train": {"steps": 5, "batch": 4, "learning_rate": float("nan")}}, "train.learning_rate"),
        ({"train": {"steps": 5, "batch": 4, "learning_rate": float("inf")}}, "train.learning_rate"),
        ({"train": {"steps": True, "batch": 4}}, "train.steps: a number is needed, not true"),
        ({"train": {"steps": 5, "batch": 4, "warmup": False}}, "train.warmup: a number is needed"),
        ({"train": {"steps": 5, "batch": 4, "weight_decay": True}}, "train.weight_decay: a number"),
        ({"shards": {"level": True}}, "shards.level: a number is needed"),
        ({"shards": {"level": "fast"}}, "shards.level: a number is needed, 1 to 22, or `auto`"),
        ({"shards": {"level": 0}}, "shards.level: a number is needed, 1 to 22, or `auto`; not 0"),
        ({"shards": {"level": 3.5}}, "shards.level: a number is needed, 1 to 22, or `auto`"),
        ({"shards": {"frame_bytes": 0}}, "shards.frame_bytes: a number is needed, 1 or more, or"),
        ({"shards": {"frame_bytes": "1MiB"}}, "shards.frame_bytes: a number is needed"),
        ({"shards": {"level": None}}, "shards.level: a number is needed"),
        (space_of(steps=True), "search.steps: a number is needed"),
        ({"gate": {"bar": True}}, "gate.bar: a number is needed"),
        ({"gate": {"beats": ["zstd19"]}}, "unknown baseline `zstd19`. Did you mean `zstd-19`?"),
        ({"gate": {"beats": ["majority"]}}, "gate.beats: unknown baseline `majority`."),
        ({"gate": {"tolerance": -0.1}}, "gate.tolerance"),
        ({"gate": {"tolerance": True}}, "gate.tolerance: a number is needed"),
        ({"gate": {"slices": ["folders"]}}, "unknown slicing `folders`. Did you mean `folder`?"),
        ({"gate": {"slices": ["field:"]}}, "unknown slicing `field:`."),
        ({"gate": {"slices": ["class"]}}, "gate: slices by class: the task has no classes"),
        ({"gate": {"slice_bars": {"source": 1}}}, "`source.url` names no sources"),
        ({"gate": {"slice_bars": {"length": True}}}, "gate.slice_bars.length: a number is needed"),
        ({"schedule": "0 2 * *"}, "schedule: `0 2 * *` has 4 fields; a cron line has five"),
        ({"schedule": "daily"}, "schedule: `daily` has 1 fields"),
        ({"schedule": "60 2 * * *"}, "minute is `60`; it may be *, 0 to 59"),
        ({"schedule": "0 2 * * funday"}, "weekday is `funday`"),
        ({"schedule": "mon 2 * * *"}, "minute is `mon`"),
        ({"schedule": "0 2,, * * *"}, "hour is `2,,`"),
        ({"schedule": "*/0 2 * * *"}, "minute is `*/0`"),
        ({"train": [1, 2]}, "train: "),
        ({"train": None}, "train: "),
        ({"source": {"url": "*", "format": "xlsx"}}, "source.format: "),
        ({"source": {"url": "*", "exclude": "a*"}}, "source.exclude: "),
        ({"source": {"url": "*", "encoding": "utf8x"}}, "encoding: `utf8x` is no text encoding"),
        ({"source": {"url": "*", "encoding": "base64"}}, "encoding: `base64` is no text encoding"),
        ({"task": {"kind": "regression"}}, "task: "),
        ({"task": {"kind": "language_model", "vocabulary": 9}}, "task: vocabulary and block_to"),
        ({"task": {"kind": "language_model", "block_tokens": 9}}, "are of token ids: name their"),
        (tokens_of(network={"name": "ngram_copy"}), "network ngram_copy reads bytes; token ids"),
        (tokens_of(gate={"beats": ["xz-9"]}), "baseline `xz-9`. Known baselines: unigram"),
        (images_of(shape=[64]), "shape [64]: an image's is [1 or 3, height, width]"),
        (images_of(shape=[4, 8, 8]), "shape [4, 8, 8]: an image's is [1 or 3, height, width]"),
        (images_of(inputs=["a"]), "inputs name numbers; leave them out with images: pixels"),
        (images_of(images="jpeg"), "task.images: "),
        ({"task": {}}, "task: "),
        ({"shards": {"level": 23}}, "shards.level: "),
        ({"network": {"name": "resnet"}}, ", or file.py:Class for your own network"),
        ({"network": "gtp"}, "network: `name` must be "),
        ({"network": ["gpt"]}, "network: "),
        ({"network": {"name": "../x:Net"}}, "network.name: "),
        ({"search": {"space": 3}}, "search.space: "),
        ({"source": {"url": {}}}, "source.url: Dictionary should have at least 1 item"),
        ({"source": {"url": ["a", "b"]}}, "source.url: Input should be a valid string"),
        ({"source": {"url": {"my-wiki": "a"}}}, "source.url.my-wiki: `my-wiki` is no name"),
        ({"source": {"url": {1: "a"}}}, "source.url.1: `1` is no name: letters, digits and _"),
        ({"source": {"url": {"": "a"}}}, "`` is no name"),
        ({"source": {"url": {"wiki": 3}}}, "source.url.wiki: Input should be a valid string"),
        (mixed(TWO, wiki=0), "train.mix.wiki: Input should be greater than 0"),
        (mixed(TWO, wiki=-1), "train.mix.wiki: Input should be greater than 0"),
        (mixed(TWO, wiki=float("nan")), "train.mix.wiki: Input should be a finite number"),
        (mixed(TWO, wiki=float("inf")), "train.mix.wiki: Input should be a finite number"),
        (mixed(TWO, wiki="much"), "train.mix.wiki: Input should be a valid number"),
        (mixed(TWO, wiki=True), "train.mix.wiki: a number is needed, not true"),
        (mixed(TWO, wiki=3, code=0.001), "mix: `code` has a share of 0.00033; the least is 0.001"),
        (mixed(TWO, wiki=1e308, code=1e308), "has a share of 0; the least is 0.001"),
        (mixed(TWO, wikki=3), "train.mix: unknown source `wikki`. Did you mean `wiki`?"),
        (mixed(TWO, **{"cod/*": 3}), "unknown source `cod`. Did you mean `code`? Known sources:"),
        (mixed(TWO, **{"wiki": 3, "wiki/*": 1}), "`wiki` and `wiki/*` both stand for `wiki/*`"),
    ],
)
def test_a_wrong_type_or_value_is_refused_where_it_stands(
    build_spec: BuildSpec, sections: dict[str, Any], where: str
) -> None:
    assert where in complaint(build_spec, **sections)


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"space": {}}, "search.space: Dictionary should have at least 1 item"),
        (space(low=1e-2, high=1e-4), "low (0.01) must not be above high (0.0001)"),
        (space(low=0, high=0.1, log=True), "a log range must start above 0"),
        (space(low=-1.0, high=0.1), "search.space `train.learning_rate`: value -1.0: "),
        (space(choices=[]), "search.space.train.learning_rate: Tuple should have at least 1"),
        (space(low=1e-4, high=1e-2) | {"max_usd": 0}, "search.max_usd"),
        (space(low=1e-4, high=1e-2) | {"max_seconds": "many"}, "search.max_seconds"),
        (space(low=1e-4, high=1e-2) | {"max_memory_bytes": 0.5}, "search.max_memory_bytes"),
        (space(choices=[1e-3, "fast"]), "search.space `train.learning_rate`: value fast: "),
        (space(low=0.1), "search.space.train.learning_rate.high: Field required"),
        (space(low=0.1, hihg=1.0), "unknown key `hihg`. Did you mean `high`?"),
        (space(low=True, high=2), "search.space.train.learning_rate.low: a number is needed"),
        ({"space": {"train.batch": {"low": 4, "high": 8}}}, "is a multiple of ranks (2); list"),
        (
            {"space": {"train.batch": {"low": 4.0, "high": 8.0}}},
            "search.space `train.batch`: value",
        ),
        ({"space": {"train.learning_rate": 0.1}}, "search.space.train.learning_rate: "),
        ({"space": {"train.learning_rate": [0.1, 1.0]}}, "search.space.train.learning_rate: "),
        ({"space": {"train.learning_rate": "1e-4"}}, "search.space.train.learning_rate: "),
    ],
)
def test_an_unusable_search_space_is_refused(
    build_spec: BuildSpec, search: dict[str, Any], reason: str
) -> None:
    assert reason in complaint(build_spec, search=search)


@pytest.mark.parametrize("values", [{"choices": [0.001]}, {"low": 0.001, "high": 0.001}])
def test_a_space_of_one_point_is_a_space(build_spec: BuildSpec, values: dict[str, Any]) -> None:
    spec = build_spec(search=space(**values))

    assert spec.search.space["train.learning_rate"].holds(0.001)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("train.learning_rte", "learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("network.wdth", "width"),
        ("network.width.x", "network.width"),
        ("source.url", "Known keys: "),
        ("train.", "Known keys: "),
    ],
)
def test_a_search_path_that_is_no_field_is_refused_and_the_nearest_named(
    build_spec: BuildSpec, path: str, near: str
) -> None:
    found = complaint(build_spec, search={"space": {path: {"low": 1, "high": 2}}})

    assert f"search.space: unknown key `{path}`." in found
    assert near in found


@pytest.mark.parametrize("path", NOT_SEARCHED)
def test_a_field_that_no_trial_can_be_compared_by_is_not_searched(
    build_spec: BuildSpec, path: str
) -> None:
    found = complaint(build_spec, search={"space": {path: {"choices": [2, 4]}}})

    assert f"search.space `{path}`: no use to vary it, {NOT_SEARCHED[path]}" in found


def test_a_range_of_batches_for_a_single_rank_is_searched(build_spec: BuildSpec) -> None:
    values = {"low": 4, "high": 8}

    spec = build_spec(
        train={"steps": 5, "batch": 4, "ranks": 1}, search={"space": {"train.batch": values}}
    )

    assert spec.search.space["train.batch"].model_dump() == values | {"log": False}


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"ranks": 3}, "search.ranks: a batch of 4 must be a multiple of search.ranks (3)"),
        (
            {"ranks": 4, "space": {"train.batch": {"choices": [4, 6]}}},
            "search.space `train.batch`: a batch of 6 must be a multiple of search.ranks (4)",
        ),
        (
            {"ranks": 2, "space": {"train.batch": {"low": 4, "high": 8}}},
            "is a multiple of ranks (2); list multiples as `choices`",
        ),
    ],
)
def test_a_batch_that_the_ranks_of_a_trial_cannot_share_is_refused(
    build_spec: BuildSpec, search: dict[str, Any], reason: str
) -> None:
    space = {"space": {"train.learning_rate": {"choices": [0.001]}}}
    train = {"steps": 5, "batch": 4, "ranks": 1}

    assert reason in complaint(build_spec, train=train, search=space | search)


@pytest.mark.parametrize("line", ["", "0 2 * * *", "*/5 0-6,12 1,15 jan-mar MON-fri", "0 0 1 1 7"])
def test_a_cron_line_is_taken(build_spec: BuildSpec, line: str) -> None:
    assert build_spec(schedule=line).schedule == line


@pytest.mark.parametrize("url", ["ftp://me:hunter2@host/x", "https://me:hunter2@host:8080/*.csv"])
def test_a_url_with_a_password_is_refused_without_repeating_it(
    build_spec: BuildSpec, url: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        build_spec(source={"url": url})

    assert "source.url: the URL holds a password" in "\n".join(sentences(caught.value))
    assert "hunter2" not in str(caught.value)


def test_a_password_in_one_of_several_urls_is_refused_under_its_name(
    build_spec: BuildSpec,
) -> None:
    with pytest.raises(ValidationError) as caught:
        build_spec(source={"url": TWO | {"web": "ftp://me:hunter2@host/x"}})

    assert "source.url.web: the URL holds a password" in "\n".join(sentences(caught.value))
    assert "hunter2" not in str(caught.value)


def test_a_mixture_has_shares_and_globs_in_words_too(build_spec: BuildSpec) -> None:
    spec = build_spec(**mixed(TWO, **{"wiki": 3, "code/b*": 0.5, "*": "0.5"}))

    assert spec.train.shares == {"*": 0.125, "code/b*": 0.125, "wiki": 0.75}
    assert spec.train.mixture == "12.5 % *, 12.5 % code/b*, 75 % wiki"
    assert spec.mix_globs == {"wiki": "wiki/*", "code/b*": "code/b*", "*": "*"}
    assert list(spec.with_parts({}).mix_globs) == ["wiki", "code/b*", "*"]
    assert spec.source.place == "wiki: a/*.jsonl, code: b/*.py"


def test_a_spec_without_a_mixture_dumps_as_it_did_before_there_were_any(
    build_spec: BuildSpec,
) -> None:
    spec = build_spec()

    assert "mix" not in spec.train.model_dump()
    assert '"mix"' not in spec.model_dump_json()
    assert build_spec(**mixed(TWO, wiki=1)).train.model_dump()["mix"] == {"wiki": 1.0}


@pytest.mark.parametrize(
    "url", ["s3://bucket/a:b@c", "https://host:8080/a@b", "a:b@c", "me@host:x"]
)
def test_a_url_without_a_password_is_taken(build_spec: BuildSpec, url: str) -> None:
    assert build_spec(source={"url": url}).source.url == url


def test_a_spec_changed_to_a_value_outside_its_space_is_taken(build_spec: BuildSpec) -> None:
    # A checkpoint trained before the space was narrowed can still be evaluated.
    narrowed = build_spec(search=space(low=5e-4, high=2e-3))

    trained = narrowed.with_parts({"train": {"steps": 5, "batch": 4, "learning_rate": 0.5}})

    assert trained.train.learning_rate == 0.5
    assert narrowed.with_values({"train.learning_rate": 0.5}) == trained


def test_a_spec_changed_to_a_wrong_one_is_our_error(build_spec: BuildSpec) -> None:
    spec = build_spec()

    with pytest.raises(SpecError, match=r"change train of the spec: train\.batch: Field required"):
        spec.with_parts({"train": {"steps": 5}})
    with pytest.raises(SpecError, match=r"change train\.batch: .*multiple of ranks"):
        spec.with_values({"train.batch": 5})


def test_the_yaml_spelling_of_a_small_number_is_a_number(build_spec: BuildSpec) -> None:
    spec = build_spec(train={"steps": 5, "batch": 4, "learning_rate": "1e-4"})

    assert spec.train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"split": {"validation": 0.5, "test": 0.5}}, "leave records to train on"),
        ({"split": {"test": 0.0}}, "must both be above 0"),
        ({"train": {"steps": 5, "batch": 5}}, "batch (5) must be a multiple of ranks (2)"),
        ({"network": {"name": "conv"}}, "network conv needs task classification"),
        (
            {"network": {"name": "conv"}, "task": CONV | {"shape": [64]}},
            "network conv needs a shape of 3 sizes, not [64]",
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(
    build_spec: BuildSpec, sections: dict[str, Any], reason: str
) -> None:
    assert reason in complaint(build_spec, **sections)


def test_a_network_of_the_users_own_takes_further_keys(build_spec: BuildSpec) -> None:
    spec = build_spec(network={"name": "model.py:Net", "channels": 7})

    assert spec.network.model_dump() == {"name": "model.py:Net", "channels": 7}


def test_a_spec_is_frozen(build_spec: BuildSpec) -> None:
    spec = build_spec()

    with pytest.raises(ValidationError, match="frozen"):
        spec.train.steps = 6


def test_with_values_changes_a_copy_and_checks_it(build_spec: BuildSpec) -> None:
    spec = build_spec()

    changed = spec.with_values({"train.learning_rate": 5e-3, "network.width": 64})

    assert (changed.train.learning_rate, changed.network.model_dump()["width"]) == (5e-3, 64)
    assert spec == build_spec()
    with pytest.raises(ValueError, match="batch"):
        spec.with_values({"train.batch": 5})
    with pytest.raises(ValueError, match="Did you mean `learning_rate`"):
        spec.with_values({"train.learning_rte": 5})


def test_with_values_there_and_back_is_the_same_spec(build_spec: BuildSpec) -> None:
    spec = build_spec()

    there = spec.with_values({"train.steps": 9, "train.learning_rate": 5e-3})
    back = there.with_values({"train.steps": 5, "train.learning_rate": 1e-3})

    assert there != spec
    assert back == spec
    assert digest(back.model_dump()) == digest(spec.model_dump())


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, "ü"]}) == digest({"b": [2, "ü"], "a": 1})
    assert digest(1, 2) != digest(12)
    assert digest("1") != digest(1)


def test_a_digest_stays_what_it_was() -> None:
    # Everything published is addressed by it: if this fails, every store is made anew.
    assert digest(1, {"b": 0.1, "a": ["ü", None, True]}) == (
        "7db2c1731e1a4260036ad703213ca10a2f1214f139ba0aad156ab3fa520ec541"
    )


def test_a_spec_survives_json_with_its_digest(build_spec: BuildSpec) -> None:
    spec = build_spec(network={"name": "model.py:Net", "channels": 7})

    again = PipelineSpec.model_validate_json(spec.model_dump_json())

    assert again == spec
    assert digest(again.model_dump()) == digest(spec.model_dump())


def test_a_job_survives_json(build_job: BuildJob) -> None:
    job = build_job()

    assert Job.model_validate_json(job.model_dump_json()) == job


def test_every_field_a_user_writes_has_a_description() -> None:
    sections = {name for name in SECTIONS if name.isidentifier()} | {"task", "network"}

    bare = {
        f"{kind.__name__}.{name}"
        for kind in SECTIONS.values()
        for name, field in kind.model_fields.items()
        if not field.description and name not in sections
    }

    assert not bare


def test_each_task_has_baselines_and_a_unit_of_its_loss() -> None:
    assert set(LOSS_UNITS) == set(BASELINES)
