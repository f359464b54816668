"""The base of every spec: immutable, strict about keys, addressed by content."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Scalar = bool | int | float | str


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`: the address of what is made from them."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Frozen(BaseModel):
    """Immutable; an unknown key is refused and the nearest known one named."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if cls.model_config.get("extra") == "forbid" and isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    told = {"key": str(key), "told": unknown_key(str(key), cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "{told}", told)
        return values


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that is no field, with the nearest field if one is near."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown key `{key}`.{hint} Known keys: {', '.join(names)}"
