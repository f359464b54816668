"""Ask a released model: `python -m millrace predict PIPELINE`."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from millrace import manifest as manifests
from millrace.data.fields import LabelIndex, UnusableRecordError, build_encoder
from millrace.data.images import decoded
from millrace.data.listing import list_source
from millrace.data.records import Located, Rejection, read_records
from millrace.errors import SpecError
from millrace.frozen import Frozen
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.release import NOUN, SPEC
from millrace.spec import CustomNetwork, Network, SourceSpec, Task
from millrace.storage import FsspecStorage, default_store
from millrace.train.checkpoint import WEIGHTS, load_weights


class _Described(Frozen):
    """The part of a release's spec.json that answering needs."""

    network: Network
    task: Task
    source: SourceSpec


class Released:
    """A released model, its bytes proven against the manifest, ready to answer on this machine.

    Args:
        store: URL of the store.
        pipeline: Name of the pipeline; its current release is taken.
        code: Folder that holds the user's own network file.
    """

    def __init__(self, store: str, pipeline: str, code: Path) -> None:
        storage = FsspecStorage(store)
        made = manifests.current(storage, pipeline, NOUN)
        spec = json.loads(made.file(SPEC).read(storage))
        described = _Described.model_validate(
            {key: spec[key] for key in ("network", "task", "source")}
        )
        if isinstance(described.network, CustomNetwork):
            _refuse_other_code(
                described.network, code, made.file(Path(described.network.file_name).name).sha256
            )
        self.digest = made.digest
        self.task, self.source = described.task, described.source
        self.classes: list[str] = spec["classes"]
        facts = DataFacts.from_dict(spec["facts"])
        self._network: nn.Module = build_network(described.network, facts, str(code))
        load_weights(self._network, made.file(WEIGHTS).read(storage))
        self._network.eval()

    def classify(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Probability of each class for one record, most likely first.

        Raises:
            UnusableRecordError: The record lacks what the model needs.
        """
        assert self.task.kind == "classification", f"the task is {self.task.kind}"
        encoder = build_encoder(self.task)
        value = encoder.extract({**record, self.task.label: "?"})  # the question
        (columns,) = decoded([encoder.samples([value], LabelIndex())], encoder.fields)
        with torch.inference_mode():
            inputs = torch.tensor(columns["inputs"]).float()
            shares = self._network(inputs).softmax(1)[0].tolist()
        found = dict(zip(self.classes, shares, strict=True))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def continue_text(self, text: str, num_bytes: int, temperature: float, seed: int) -> str:
        """`num_bytes` more bytes, drawn at a temperature (0 takes the likeliest each time)."""
        found = self.continue_tokens(list(text.encode()), num_bytes, temperature, seed)
        return bytes(found).decode(errors="replace")

    def continue_tokens(
        self, tokens: Sequence[int], num_tokens: int, temperature: float, seed: int
    ) -> list[int]:
        """The same of token ids: those given and `num_tokens` more."""
        assert self.task.kind == "language_model", f"the task is {self.task.kind}"
        generator = torch.Generator().manual_seed(seed)
        context = list(tokens)
        dtype = torch.int64 if self.task.tokens else torch.uint8
        for _ in range(num_tokens):
            window = context[max(0, len(context) - self.task.block + 1) :]
            with torch.inference_mode():
                # The network predicts each position from those before it: one more asks for it.
                logits = self._network(torch.tensor([[*window, 0]], dtype=dtype))[0, -1]
            if temperature:
                shares = (logits / temperature).softmax(0)
                context.append(int(torch.multinomial(shares, 1, generator=generator)))
            else:
                context.append(int(logits.argmax()))
        return context


def _refuse_other_code(network: CustomNetwork, code: Path, sha256: str) -> None:
    """The user's code is never run from the store: only her own file, if it is the released one."""
    if source_digest(network, str(code)) != sha256:
        raise SpecError(
            f"load the network {network.name} of the release",
            f"{code / network.file_name} is not the version it was released with",
            "Check that version out (a copy lies in the release's folder) or name it with --code",
        )


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
    if released.task.kind == "language_model" and released.task.tokens:
        found = released.continue_tokens(asked.tokens, asked.bytes, asked.temperature, asked.seed)
        print_line(" ".join(map(str, found)))
        return 0
    if released.task.kind == "language_model":
        print_line(released.continue_text(asked.text, asked.bytes, asked.temperature, asked.seed))
        return 0
    return _classify_all(released, asked.input)


def _classify_all(released: Released, path: str | None) -> int:
    failed = False
    for found in _records(released.source, path):
        answer = _answer(released, found)
        print_line(json.dumps(answer))
        failed |= "error" in answer
    return int(failed)


def _answer(released: Released, found: Located | Rejection) -> dict[str, Any]:
    if isinstance(found, Rejection):
        return {"error": f"{found.where}: {found.reason}"}
    try:
        shares = released.classify(found.record)
    except UnusableRecordError as error:
        return {"error": f"{found.where}: {error}"}
    best = next(iter(shares))
    return {"class": best, "probability": round(shares[best], 6)}


def _records(source: SourceSpec, path: str | None) -> Iterator[Located | Rejection]:
    if path is None:
        for number, line in enumerate(sys.stdin, 1):
            yield _parse(line, f"standard input, line {number}")
        return
    asked = source.model_copy(update={"url": path, "exclude": (), "format": "auto"})
    for file in list_source(asked, str(Path.cwd())):
        yield from read_records(file, asked)


def _parse(line: str, where: str) -> Located | Rejection:
    try:
        record = json.loads(line)
    except ValueError as error:
        return Rejection(where, f"not JSON: {error}")
    if not isinstance(record, dict):
        return Rejection(where, f"a JSON object is needed, not {type(record).__name__}")
    return Located(where, record)


def print_line(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")
