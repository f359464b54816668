"""Read a pipeline's defs.yaml: its spec, or one error that names file, line and key."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from millrace.errors import SpecError
from millrace.frozen import located_sentences
from millrace.spec import PipelineSpec

TYPE = "assets.Pipeline"
Located = tuple[tuple[str | int, ...], str]
FIX = "Correct the file; README.md shows a whole one"


def check_folder(folder: Path) -> None:
    """Read every defs.yaml below a folder; SpecError for the first that is wrong or misplaced."""
    names: dict[str, Path] = {}
    for path in sorted(folder.rglob("defs.yaml")):
        name = path.parent.name
        for _ in read_specs(path):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise SpecError(
                    f"name a pipeline after its folder {path.parent}",
                    f"`{name}` is no name: letters, digits and _, no digit first",
                    "Rename the folder",
                )
            if name in names:
                raise SpecError(
                    f"name a pipeline after its folder {path.parent}",
                    f"{names[name]} describes a pipeline {name} already",
                    "Give each pipeline a folder, and each folder a name, of its own",
                )
            names[name] = path


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
            spec = PipelineSpec.model_validate(value.get("attributes") or {})
        except ValidationError as error:
            raise _refusal(path, root, located_sentences(error)) from None
        if misplaced := _misplaced_defaults(spec):
            raise _refusal(path, root, misplaced)
        yield spec


def read_pipeline(path: Path) -> PipelineSpec:
    """The one pipeline that a defs.yaml describes.

    Raises:
        SpecError: It describes none, or is wrong.
    """
    for spec in read_specs(path):
        return spec
    raise SpecError(f"read {path}", f"it describes no component of type {TYPE}", FIX)


def _misplaced_defaults(spec: PipelineSpec) -> list[Located]:
    """Searched fields whose value as written lies outside the space.

    Only a file is held to it: a checkpoint trained before the space was narrowed is still good.
    """
    space = spec.search.space
    return [
        (
            ("search", "space", path),
            f"search.space `{path}`: the default {default} lies outside it; "
            "the first trial is the spec as written",
        )
        for path, default in spec.values_at(space).items()
        if not space[path].holds(default)
    ]


def _refusal(path: Path, root: Any, found: Sequence[Located]) -> SpecError:
    told = [f"line {_line(root, ('attributes', *where))}: {what}" for where, what in found]
    return SpecError(f"read {path}", "; ".join(told), FIX)


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
