"""The base of every spec: immutable, strict about keys, addressed by content."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError


def _refuse_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number is needed, not {str(value).lower()}")  # noqa: TRY004  pydantic wants it
    return value


def number_or_auto(low: int, high: int = 0) -> BeforeValidator:
    """For a whole number from `low` to `high` (0: without end) that the word `auto` leaves open.

    One sentence for both, where pydantic would complain about each kind in turn.
    """
    allowed = f"{low} to {high}" if high else f"{low} or more"

    def check(value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value != "auto" and not (is_number and low <= value <= (high or value)):
            raise ValueError(f"a number is needed, {allowed}, or `auto`; not {value!r}")
        return value

    return BeforeValidator(check)


def _refuse_secrets(url: str) -> str:
    if re.search(r"://[^/@]*:[^/]*@", url):
        raise ValueError(
            "the URL holds a password; keep credentials in the environment (for S3: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    return url


_CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_MONTHS = frozenset(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
)
_DAYS = frozenset(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))


def _check_cron(line: str) -> str:
    fields = line.split()
    if line and len(fields) != len(_CRON):
        raise ValueError(
            f"`{line}` has {len(fields)} fields; a cron line has five, such as `0 2 * * *`: "
            "minute hour day month weekday"
        )
    for (name, low, high), text in zip(_CRON, fields, strict=False):  # none where it is empty
        if not all(_is_cron_item(item, name, low, high) for item in text.split(",")):
            raise ValueError(
                f"`{line}`: {name} is `{text}`; it may be *, {low} to {high}, a range (1-5), "
                "a step (*/2) or several with commas"
            )
    return line


def _is_cron_item(item: str, name: str, low: int, high: int) -> bool:
    found = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/([1-9][0-9]*))?", item, re.ASCII)
    names = {"month": _MONTHS, "weekday": _DAYS}.get(name, frozenset())
    return found is not None and all(
        value is None or value.lower() in names or (value.isdecimal() and low <= int(value) <= high)
        for value in (found[2], found[3])
    )


NUMBER = BeforeValidator(_refuse_truth)
PositiveInt = Annotated[int, Field(gt=0), NUMBER]
NonNegativeInt = Annotated[int, Field(ge=0), NUMBER]
PositiveFloat = Annotated[float, Field(gt=0), NUMBER]
Fraction = Annotated[float, Field(ge=0, lt=1), NUMBER]
Scalar = bool | int | float | str
Url = Annotated[str, AfterValidator(_refuse_secrets)]
CronLine = Annotated[str, AfterValidator(_check_cron)]


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`: the address of what is made from them."""
    # As they are read again: JSON makes strings of keys that are numbers, and "10" is before "9".
    parts = json.loads(json.dumps(parts))
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Frozen(BaseModel):
    """Immutable; an unknown key is refused and the nearest known one named."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a refused URL may hold a password
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


def unknown_key(key: str, known: Iterable[str], what: str = "key") -> str:
    """The sentence for a key that is no field, with the nearest field if one is near."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown {what} `{key}`.{hint} Known {what}s: {', '.join(names)}"


def located_sentences(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """What a validation found wrong: where, as keys from the root, and the sentence."""
    found = []
    for line in error.errors():
        where = tuple(part for part in line["loc"] if part not in _TAGS)
        what = line["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, where))
        sentence = f"{name}: {what}" if where else what
        if line["type"] == "unknown_key":
            where = (*where, line["ctx"]["key"])
        found.append((where, sentence))
    return found


# What pydantic puts into a place to say which kind of a section it tried; no key of the YAML.
_TAGS = frozenset(
    {"ngram_copy", "gpt", "conv", "vit", "mlp", "encoder", "motif_conv", "qaoa", "hf", "custom"}
    | {"language_model", "classification", "text_classification", "maxcut"}
    | {"no tokenizer", "bpe tokenizer", "tokenizer of a file"}
    | {"range", "choices", "one url", "named urls", "[key]"}
)
