import re
from collections import Counter

import pytest

from millrace.data import synthetic
from millrace.data.made.motifs import GAP_LETTERS, HALF_LETTERS
from millrace.errors import SourceError

GAP = f".{{{GAP_LETTERS}}}"


def made(parameters: str) -> list[tuple[str, str]]:
    url = f"synthetic://motifs?{parameters}"
    return [(record["sequence"], record["label"]) for record in synthetic.make(url)]


def halves_of(found: list[tuple[str, str]]) -> dict[str, str]:
    """The half-sites of noiseless records: what all sites of a class have in common."""
    halves = {}
    for label in ("a1", "b2"):
        sites = Counter(
            (sequence[i : i + HALF_LETTERS], sequence[j : j + HALF_LETTERS])
            for sequence, own in found
            if own == label
            for i in range(len(sequence) - 2 * HALF_LETTERS - GAP_LETTERS + 1)
            for j in [i + HALF_LETTERS + GAP_LETTERS]
        )
        halves[label[0]], halves[label[1]] = sites.most_common(1)[0][0]
    return halves


def test_a_sequence_holds_the_site_of_its_class_and_no_other() -> None:
    found = made("records=400&noise=0&seed=3&decoys=1&letters=60")
    halves = halves_of(found)

    for sequence, label in found:
        sites = {
            left + right
            for left in "ab"
            for right in "12"
            if re.search(halves[left] + GAP + halves[right], sequence)
        }
        assert label in sites
        assert all(half in sequence for half in halves.values())  # with decoys at 1
    several = sum(sequence.count(halves["a"]) for sequence, _ in found) / len(found)
    assert several < 1.1  # once, but for chance
    assert len({label for _, label in found}) == 4
    assert all(len(sequence) == 60 and set(sequence) <= set("ACGT") for sequence, _ in found)


def test_without_decoys_a_sequence_holds_the_halves_of_its_class_alone() -> None:
    found = made("records=200&noise=0&decoys=0")
    halves = halves_of(found)

    others = [
        halves[half] in sequence for sequence, label in found for half in "ab12"
        if half not in label
    ]  # fmt: skip
    assert sum(others) / len(others) < 0.15  # by chance


def test_the_same_url_makes_the_same_records_and_another_seed_others() -> None:
    assert made("records=20&seed=5") == made("records=20&seed=5")
    assert made("records=20&seed=5") != made("records=20&seed=6")


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ("letters=55", "letters 55: 1 and 56 are the least"),
        ("records=0", "records 0"),
        ("decoys=1.5", "decoys 1.5"),
        ("noise=-1", "noise -1"),
    ],
)
def test_motifs_that_cannot_be_are_refused(parameters: str, found: str) -> None:
    with pytest.raises(SourceError, match=re.escape(found)):
        made(parameters)
