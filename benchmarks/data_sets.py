"""The data of the benchmarks, made on the spot: text, tokens, images; nothing is downloaded."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.peers.records import Records

NAMES = ("tokens", "text", "images")
TEXT_BYTES = 100_000_000
RECORD_BYTES = 2000
TOKENS = 512
"""Of a sample: 1 KiB as uint16."""
NUM_TOKEN_SAMPLES = 56_557
NUM_IMAGES = 50_000
QUICK = 20
"""A quick run has so much less data."""
MERGES = (1024, 4096, 8192)
"""Pairs that become one id, in each round; about 3.5 bytes to an id, as in common vocabularies."""
_LEARN_BYTES = 8_000_000
_IMAGES_AT_ONCE = 2000
_SIDE, _CLASSES = 32, 100
_CONTRAST, _CONTRAST_SPREAD, _COLOR, _NOISE = 18.0, 0.9, 0.05, 0.5
"""Chosen for a zstd ratio of about 1.4, which photographs of that size have."""
Tokens = npt.NDArray[np.uint16]


def make(folder: Path, *, quick: bool) -> None:
    """Write each data set as arrays to a folder of its name, where `peers/records.py` reads it.

    Text is the source code of the interpreter's library and packages, records of about 2 kB that
    end with a line. Tokens are the same text as ids of frequent pairs, merged within words only.
    Images are random fields whose spectrum falls like a photograph's, with a sensor's noise.
    """
    scale = QUICK if quick else 1
    text = np.frombuffer(b"".join(_sources(TEXT_BYTES // scale)), np.uint8)
    _save(folder / "text", data=text, offsets=_cut_at_lines(text))
    tokens = _tokenize(text)
    num_samples = min(NUM_TOKEN_SAMPLES // scale, len(tokens) // TOKENS)
    _save(folder / "tokens", tokens=tokens[: num_samples * TOKENS].reshape(num_samples, TOKENS))
    images = np.concatenate(list(_images(NUM_IMAGES // scale)))
    labels = np.random.default_rng(1).integers(0, _CLASSES, len(images))
    _save(folder / "images", image=images, label=labels)


def describe(folder: Path) -> str:
    """How much there is of each, in words."""
    told = []
    for name in NAMES:
        records = Records(str(folder), name)
        told.append(f"{len(records)} records of {name} ({records.raw_bytes / 1e6:.1f} MB)")
    return ", ".join(told) + "; made on the spot, see `benchmarks/data_sets.py`."


def _save(folder: Path, **arrays: npt.NDArray[np.generic]) -> None:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _sources(num_bytes: int) -> Iterator[bytes]:
    """Python sources in the order of their paths, the library's before the packages'."""
    left = num_bytes
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    own = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    for path in (*own, *sorted(packages.rglob("*.py"))):
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        yield data[:left] if len(data) <= left else data[: data.rfind(b"\n", 0, left) + 1]
        left -= len(data)
        if left <= 0:
            return


def _cut_at_lines(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Offsets of records: each ends with the first line that passes a multiple of RECORD_BYTES."""
    ends = np.flatnonzero(text == ord("\n")) + 1
    marks = np.arange(RECORD_BYTES, len(text), RECORD_BYTES)
    found = np.searchsorted(ends, marks)
    return np.unique(np.concatenate([[0], ends[found[found < len(ends)]], [len(text)]]))


def _tokenize(text: npt.NDArray[np.uint8]) -> Tokens:
    """Ids: in each round the most frequent pairs of neighbours become ids of their own."""
    ids: Tokens = text.astype(np.uint16)
    size = 256
    begins_word = np.isin(np.arange(size), np.frombuffer(b" \n", np.uint8))
    for num_merges in MERGES:
        learned = ids[:_LEARN_BYTES].astype(np.int64)
        pairs, counts = np.unique(learned[:-1] * size + learned[1:], return_counts=True)
        within = ~begins_word[pairs % size] | (pairs // size == pairs % size)
        best = pairs[within][np.argsort(-counts[within], kind="stable")[:num_merges]]
        begins_word = np.append(begins_word, begins_word[best // size])
        merged = np.zeros(size * size, np.uint16)
        merged[best] = size + np.arange(len(best))
        parts = (ids[i : i + _LEARN_BYTES] for i in range(0, len(ids), _LEARN_BYTES))
        ids = np.concatenate([_merge(part, merged, size) for part in parts])
        size += num_merges
    return ids


def _merge(ids: Tokens, merged: Tokens, size: int) -> Tokens:
    """Replace pairs from left to right; of pairs that overlap the first one counts."""
    found = merged[ids[:-1].astype(np.int64) * size + ids[1:]]
    is_pair = found > 0
    starts = np.flatnonzero(is_pair & ~np.concatenate([[False], is_pair[:-1]]))
    place = np.arange(len(found))
    run = np.repeat(starts, np.diff(np.append(starts, len(found))))
    in_run = place - np.concatenate([np.zeros(len(found) - len(run), np.int64), run])
    is_pair &= in_run % 2 == 0
    whole = np.append(np.where(is_pair, found, ids[:-1]), ids[-1])
    kept: Tokens = whole[~np.concatenate([[False], is_pair])]
    return kept


def _images(number: int) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 (images, side, side, 3) at a time."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None, :])
    falling = (1 / np.maximum(frequency, 1 / _SIDE) ** 2).astype(np.float32)
    for start in range(0, number, _IMAGES_AT_ONCE):
        shape = (min(_IMAGES_AT_ONCE, number - start), 4, _SIDE, _SIDE)
        rng = np.random.default_rng(start)
        fields = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape, np.float32)) * falling)
        fields /= fields.std(axis=(2, 3), keepdims=True)
        one = (shape[0], 1, 1, 1)
        contrast = _CONTRAST * np.exp(_CONTRAST_SPREAD * rng.standard_normal(one, np.float32))
        gray = fields[:, :1] * contrast + rng.uniform(60, 200, one)
        gray += _NOISE * rng.standard_normal(gray.shape, np.float32)
        colored = gray + _COLOR * contrast * fields[:, 1:]
        yield np.clip(colored, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
