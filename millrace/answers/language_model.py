"""Language model: goes on from a text or from token ids."""

from argparse import Namespace
from collections.abc import Sequence

import torch

from millrace.answers.records import print_line
from millrace.data.tokenizer import Tokenizer, bytes_of_ids
from millrace.released import Released
from millrace.tasks import LanguageModelTask


def answer(released: Released, asked: Namespace) -> int:
    """Print what follows the text or the token ids of the command line; the exit status."""
    if _task(released).tokens:
        found = continue_tokens(released, asked.tokens, asked.bytes, asked.temperature, asked.seed)
        print_line(" ".join(map(str, found)))
    else:
        print_line(continue_text(released, asked.text, asked.bytes, asked.temperature, asked.seed))
    return 0


def continue_text(
    released: Released, text: str, num_bytes: int, temperature: float, seed: int
) -> str:
    """`num_bytes` more bytes, drawn at a temperature (0 takes the likeliest each time)."""
    data = text.encode()
    if not released.tokenizer:
        found = continue_tokens(released, list(data), num_bytes, temperature, seed)
        return bytes(found).decode(errors="replace")
    (ids,) = Tokenizer(released.tokenizer).encode([data])
    words = bytes_of_ids(released.tokenizer)
    # An id stands for a byte or more: there are enough, and those that are too many are cut off.
    found = continue_tokens(released, ids.tolist(), num_bytes, temperature, seed)
    told = b"".join(words[i] for i in found)
    return told[: len(data) + num_bytes].decode(errors="replace")


def continue_tokens(
    released: Released, tokens: Sequence[int], num_tokens: int, temperature: float, seed: int
) -> list[int]:
    """The same of token ids: those given and `num_tokens` more."""
    task = _task(released)
    generator = torch.Generator().manual_seed(seed)
    context = list(tokens)
    dtype = torch.int64 if task.reads_ids else torch.uint8
    for _ in range(num_tokens):
        window = context[max(0, len(context) - task.block + 1) :]
        with torch.inference_mode():
            # The network predicts each position from those before it: one more asks for it.
            logits = released.network(torch.tensor([[*window, 0]], dtype=dtype))[0, -1]
        if temperature:
            shares = (logits / temperature).softmax(0)
            context.append(int(torch.multinomial(shares, 1, generator=generator)))
        else:
            context.append(int(logits.argmax()))
    return context


def _task(released: Released) -> LanguageModelTask:
    assert isinstance(released.task, LanguageModelTask), f"the task is {released.task.kind}"
    return released.task
