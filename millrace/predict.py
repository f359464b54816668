"""Ask a released model: `python -m millrace predict PIPELINE`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from millrace.answers import classification, language_model, maxcut, text_classification
from millrace.released import Released
from millrace.storage import default_store

_ANSWERS: dict[str, Callable[[Released, argparse.Namespace], int]] = {
    "classification": classification.answer,
    "language_model": language_model.answer,
    "maxcut": maxcut.answer,
    "text_classification": text_classification.answer,
}


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m millrace predict", description="Ask the current release of a pipeline."
    )
    parser.add_argument("pipeline")
    parser.add_argument("--store", default=default_store(), help="default: %(default)s")
    parser.add_argument("--code", type=Path, help="folder of your own network's file")
    parser.add_argument(
        "--input", help="classification: a file of records like the source's; default: JSON lines"
    )
    parser.add_argument("--text", default="", help="language model: the text to go on from")
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[], help="the same of one that reads token ids"
    )
    parser.add_argument(
        "--bytes", type=int, default=200, help="how many, or token ids; default: %(default)s"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    asked = parser.parse_args(arguments)
    code = asked.code or Path("pipelines", asked.pipeline)
    released = Released(asked.store, asked.pipeline, code)
    return _ANSWERS[released.task.kind](released, asked)
