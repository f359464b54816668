"""Models by `transformers`, offline: tiny ones that the tests make."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from millrace.answers.text_classification import classify
from millrace.errors import SpecError
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.released import Released
from millrace.spec import HuggingFaceNetwork, PipelineSpec
from millrace.train.checkpoint import load_weights, weights_to_bytes
from tests.pipelines_for_tests import Line, build_texts

transformers: Any = pytest.importorskip(
    "transformers", reason="the extra `transformers` is not installed"
)
IDS = DataFacts(num_classes=60, shape=(12,), is_per_position=True)
TEXTS = DataFacts(num_classes=3, shape=(40,))
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _save_gpt(folder: Path, **options: Any) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=63,
        eos_token_id=63,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder, **options)


def _save_classifier(folder: Path, *known: str, positions: int) -> None:
    tokenizers: Any = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *known]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=positions,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)


def _spec(name: str = "hf:tiny", **options: Any) -> HuggingFaceNetwork:
    return HuggingFaceNetwork(name=name, **options)


def test_a_local_language_model_predicts_each_id_from_those_before_it(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    network = build_network(_spec(), IDS, str(tmp_path)).eval()
    tokens = torch.randint(60, (2, 12))

    logits = network(tokens)

    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "tiny").eval()
    asked = torch.cat([torch.full((2, 1), 63), tokens[:, :-1]], dim=1)
    torch.testing.assert_close(logits, theirs(asked).logits[..., :60])
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 60
    torch.testing.assert_close(network(changed)[:, :6], logits[:, :6])


def test_its_weights_are_saved_once_and_loaded_whole_where_some_are_tied(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    network = build_network(_spec(), IDS, str(tmp_path)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    tokens = torch.randint(60, (2, 12))

    other = build_network(_spec(pretrained=False), IDS, str(tmp_path)).eval()
    load_weights(other, weights_to_bytes(network))

    assert torch.equal(other(tokens), network(tokens))
    names = [name for name in network.state_dict() if "lm_head" in name or "wte" in name]
    assert len(names) == 1
    assert isinstance(network.blocks, torch.nn.ModuleList)
    assert len(network.blocks) == 2


def test_without_its_weights_it_begins_with_new_ones_of_the_current_random_state(
    tmp_path: Path,
) -> None:
    _save_gpt(tmp_path / "tiny")
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network = build_network(_spec(pretrained=False), IDS, str(tmp_path))
        weights.append(next(network.parameters()))

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_local_model_classifies_texts_by_its_own_tokens_and_learns(tmp_path: Path) -> None:
    _save_classifier(tmp_path / "tiny", "good", "bad", "so", positions=8)
    torch.manual_seed(0)
    network = build_network(_spec(), TEXTS, str(tmp_path))
    texts = [b"good so good", b"bad bad", b"so so so so so so so so so so so so"]
    rows = [list(text.ljust(40, b"\0")) for text in texts]
    batch, labels = torch.tensor(rows, dtype=torch.uint8), torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()

    logits = network.eval()(batch)

    assert logits.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(network(batch[:2, :20]), logits[:2])


def test_a_local_model_is_trained_and_released_as_a_text_classifier(tmp_path: Path) -> None:
    line = build_texts(tmp_path)
    words = ("flour", "wheel", "grain", "anchor", "quay", "mast", "cedar", "moss", "fern")
    _save_classifier(tmp_path / "source" / "tiny", *words, positions=40)
    spec = line.spec.model_dump() | {"network": "hf:tiny"}
    spec["train"] = spec["train"] | {"steps": 60, "ranks": 1, "learning_rate": 3e-3}
    line = Line(tmp_path, PipelineSpec.model_validate(spec))

    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        made = line.run(verb, line.job(noun))

    assert made.facts["verdict"].startswith("pass")
    released = Released(str(tmp_path / "store"), line.job().pipeline, tmp_path / "source")
    assert released.classes == ["mill", "port", "wood"]
    answer = classify(released, {"text": "the flour of the wheel"})
    assert set(answer) == {"mill", "port", "wood"}
    assert sum(answer.values()) == pytest.approx(1)
    config = tmp_path / "source" / "tiny" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(SpecError, match="are not those that it was released with"):
        Released(str(tmp_path / "store"), line.job().pipeline, tmp_path / "source")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    (tmp_path / "tiny" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")

    with pytest.raises(SpecError, match=r"no \*\.safetensors, and no pickle"):
        build_network(_spec(), IDS, str(tmp_path))


def test_code_of_a_models_own_is_never_run(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    path = tmp_path / "tiny" / "config.json"
    config = json.loads(path.read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    path.write_text(json.dumps({**config, "model_type": "evil", "auto_map": code}))
    (tmp_path / "tiny" / "evil.py").write_text("raise SystemExit('run!')\n")

    with pytest.raises(SpecError, match="hf:tiny"):
        build_network(_spec(), IDS, str(tmp_path))


def test_a_model_that_is_neither_here_nor_to_be_had_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"load the network hf:nobody/nothing: .*fetched before"):
        build_network(_spec("hf:nobody/nothing"), IDS, str(tmp_path))


def test_a_model_with_too_few_positions_or_ids_is_refused(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    for facts in (
        DataFacts(60, (17,), is_per_position=True),
        DataFacts(65, (12,), is_per_position=True),
    ):
        with pytest.raises(SpecError, match="it has 16 positions and 64 ids"):
            build_network(_spec(), facts, str(tmp_path))


def test_without_the_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save_gpt(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed

    with pytest.raises(SpecError, match=r"pip install 'millrace\[transformers\]'"):
        build_network(_spec(), IDS, str(tmp_path))


def test_the_digest_is_of_the_files_here_and_of_the_revision_on_the_hub(tmp_path: Path) -> None:
    _save_gpt(tmp_path / "tiny")
    first = source_digest(_spec(), str(tmp_path))
    again = source_digest(_spec(), str(tmp_path))
    (tmp_path / "tiny" / "config.json").write_text("{}")

    assert first == again != source_digest(_spec(), str(tmp_path))
    digests = {source_digest(_spec("hf:a/b", revision=name), "") for name in ("main", "v1")}
    assert len(digests) == 2


def test_a_network_may_be_named_by_one_word() -> None:
    spec = PipelineSpec.model_validate(
        {
            "source": {"url": "x"},
            "task": {"kind": "language_model"},
            "network": "hf:owner/name",
            "train": {"steps": 1, "batch": 2},
            "search": {"space": {"train.learning_rate": {"low": 0.0001, "high": 0.1}}},
        }
    )

    assert spec.network == HuggingFaceNetwork(name="hf:owner/name")
