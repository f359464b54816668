from pathlib import Path

import pytest

from millrace.cost import Prices, StoragePrice, Traffic, is_spot, steady_twin, storage_bill
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


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("/a/folder", "file"),
        ("relative/folder", "file"),
        ("memory://x", "memory"),
        ("s3://bucket/prefix", "s3"),
        ("gcs://bucket", "gs"),
        ("abfss://container@account", "abfs"),
    ],
)
def test_a_store_costs_what_its_kind_costs(url: str, kind: str) -> None:
    prices = Prices.read(SHIPPED)

    found = prices.storage_price(url)

    assert kind in prices.storage
    assert found == prices.storage[kind].model_copy(update={"months_kept": prices.months_kept})
    assert (found.usd_per_gib_month > 0) == (kind in ("s3", "gs", "abfs"))


def test_a_store_of_a_kind_that_is_not_listed_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("{machines: {}, storage: {s3: {usd_per_gib_month: 1, months_kept: 2}}}")
    prices = Prices.read(path)

    assert prices.storage_price("sftp://host/x").usd_per_gib_month == 0
    assert prices.storage_price("s3://b").months_kept == 2
    assert prices.storage_price("sftp://host/x").months_kept == prices.months_kept


def test_an_unknown_machine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"cloud-cpu-spot.*MILLRACE_MACHINE"):
        Prices.read(SHIPPED).usd_per_hour("mainframe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"machines: {a: {usd_per_hour: -1}}", r"machines\.a\.usd_per_hour: .*greater"),
        (b"machines: {a: {usd_per_our: 1}}", "Did you mean `usd_per_hour`"),
        (b"{machines: {}, storage: {s3: {usd_per_gib: 1}}}", "Did you mean `usd_per_gib_read`"),
        (b"{machines: {}, months_kept: -1}", "months_kept: .*greater"),
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


def test_a_machine_fails_as_often_as_the_file_says_or_as_its_kind_does(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("machines: {mine: {mtbf_hours: 7}, a-spot: {}, other: {}}")

    prices = Prices.read(path)

    assert prices.mtbf_hours("mine") == 7
    assert prices.mtbf_hours("a-spot") < prices.mtbf_hours("other")
    with pytest.raises(SpecError, match="MILLRACE_MACHINE"):
        prices.mtbf_hours("mainframe")


def test_a_store_is_paid_for_what_lies_there_what_is_read_and_each_request() -> None:
    price = StoragePrice(
        usd_per_gib_month=0.5,
        usd_per_gib_read=2.0,
        usd_per_1000_reads=10.0,
        usd_per_1000_writes=20.0,
        months_kept=4.0,
    )
    traffic = Traffic(kept_bytes=2**31, num_writes=500, read_bytes=2**30, num_reads=100)

    bill = storage_bill(traffic, price)

    assert (bill.storage, bill.transfer, bill.requests) == (4.0, 2.0, 11.0)
    assert bill.total == 17.0


def test_power_is_the_machines_and_its_cores() -> None:
    prices = Prices.model_validate({"machines": {"a": {"watts": 50, "watts_per_core": 5}, "b": {}}})

    assert prices.watts("a", cores=4) == 70
    assert prices.watts("b", cores=4) == 0


def test_each_shipped_spot_machine_has_a_steady_twin() -> None:
    machines = Prices.read(SHIPPED).machines
    spots = [name for name in machines if is_spot(name)]

    assert spots
    assert all(steady_twin(name) in machines for name in spots)
    assert all(machines[steady_twin(name)].counts == machines[name].counts for name in spots)
