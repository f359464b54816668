"""Read a pipeline's defs.yaml: its spec, or one error that names file, line and key."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from millrace.errors import SpecError
from millrace.spec import PipelineSpec, located_sentences

TYPE = "assets.Pipeline"
FIX = "Correct the file; README.md shows a whole one"


def check_folder(folder: Path) -> None:
    """Read every defs.yaml below a folder; SpecError for the first that is wrong."""
    for path in sorted(folder.rglob("defs.yaml")):
        for _ in read_specs(path):
            pass


def read_specs(path: Path) -> Iterator[PipelineSpec]:
    """The pipelines a defs.yaml describes; components of other types are passed over.

    Raises:
        SpecError: It is no YAML, or a key or value is wrong.
    """
    try:
        documents = list(yaml.compose_all(path.read_text(encoding="utf-8"), yaml.SafeLoader))
        values = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"read {path}", " ".join(str(error).split()), FIX) from error
    for root, value in zip(documents, values, strict=True):
        if not isinstance(value, dict) or value.get("type") != TYPE:
            continue
        try:
            yield PipelineSpec.model_validate(value.get("attributes") or {})
        except ValidationError as error:
            found = [
                f"line {_line(root, ('attributes', *where))}: {sentence}"
                for where, sentence in located_sentences(error)
            ]
            raise SpecError(f"read {path}", "; ".join(found), FIX) from None


def _line(node: Any, where: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest key on the way that the file has."""
    line: int = node.start_mark.line
    for part in where:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == str(part):
                line, node = key.start_mark.line, value
                break
    return line + 1
