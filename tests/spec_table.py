"""docs/spec.md, made from the specs: `python -m tests.spec_table`."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from millrace import spec

PAGE = Path(__file__).parents[1] / "docs" / "spec.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "attributes": spec.PipelineSpec,
    "source": spec.SourceSpec,
    "task, kind: language_model": spec.LanguageModelTask,
    "task, kind: language_model, tokenizer": spec.BpeTokenizer,
    "task, kind: language_model, tokenizer, kind: file": spec.FileTokenizer,
    "task, kind: classification": spec.ClassificationTask,
    "task, kind: text_classification": spec.TextClassificationTask,
    "task, kind: maxcut": spec.MaxcutTask,
    "split": spec.SplitSpec,
    "shards": spec.ShardsSpec,
    "network, name: ngram_copy": spec.NgramCopyNetwork,
    "network, name: gpt": spec.GptNetwork,
    "network, name: lstm": spec.LstmNetwork,
    "network, name: conv": spec.ConvNetwork,
    "network, name: vit": spec.VitNetwork,
    "network, name: mlp": spec.MlpNetwork,
    "network, name: encoder": spec.EncoderNetwork,
    "network, name: motif_conv": spec.MotifConvNetwork,
    "network, name: qaoa": spec.QaoaNetwork,
    "network, name: hf:NAME": spec.HuggingFaceNetwork,
    "network, name: file.py:Class": spec.CustomNetwork,
    "train": spec.TrainSpec,
    "search": spec.SearchSpec,
    "search.space.FIELD, a range": spec.Range,
    "search.space.FIELD, a choice": spec.Choices,
    "gate": spec.GateSpec,
}


def build_page() -> str:
    """Every field of a defs.yaml: name, default, meaning."""
    lines = ["# Every field of a defs.yaml", "", "Made from `millrace/spec.py`.", ""]
    for name, kind in SECTIONS.items():
        text = " ".join((kind.__doc__ or "").split())
        lines += [f"## {name}", "", text, "", "| field | default | meaning |", "|---|---|---|"]
        for field, info in kind.model_fields.items():
            meaning = " ".join((info.description or f"see {field}").split())
            lines.append(f"| `{field}` | {_default(info.default)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{list(value) if isinstance(value, tuple) else value!r}`"


if __name__ == "__main__":
    PAGE.write_text(build_page())
    sys.stdout.write(f"{PAGE.name} written\n")
