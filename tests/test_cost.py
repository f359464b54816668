from pathlib import Path

import pytest

from millrace.cost import Prices
from millrace.errors import SpecError

SHIPPED = Path(__file__).parents[1] / "resources" / "prices.yaml"


def test_a_machine_costs_its_hour_and_its_cores(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("machines: {big: {usd_per_hour: 2, usd_per_core_hour: 0.5}, small: {}}")

    prices = Prices.read(path)

    assert prices.usd_per_hour("big", cores=4) == 4
    assert prices.usd_per_hour("small", cores=4) == 0
    assert prices.usd_per_hour("big") >= 2.5


def test_the_shipped_prices_know_this_machine() -> None:
    assert Prices.read(SHIPPED).usd_per_hour("local", cores=2) > 0


def test_an_unknown_machine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"cloud-cpu-spot.*MILLRACE_MACHINE"):
        Prices.read(SHIPPED).usd_per_hour("mainframe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"machines: {a: {usd_per_hour: -1}}", r"machines\.a\.usd_per_hour: .*greater"),
        (b"machines: {a: {usd_per_our: 1}}", "Did you mean `usd_per_hour`"),
        (b"machine: {}", "Did you mean `machines`"),
        (b"machines: [", "while parsing"),
        (b"", "valid dictionary"),
        (b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_a_wrong_price_file_is_named_with_what_is_wrong(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(content)

    with pytest.raises(SpecError, match=words) as caught:
        Prices.read(path)

    assert str(path) in caught.value.asked


def test_a_missing_price_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        Prices.read(tmp_path / "prices.yaml")
