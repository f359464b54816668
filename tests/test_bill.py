import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.cost import StoragePrice
from millrace.data.bill import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_LEVEL,
    LEAST_SHARE,
    LEAST_USD,
    Life,
    can_win,
    cheapest,
    decide,
    expected_reads,
    make_bill,
    size_in_words,
    usd,
)
from millrace.data.frontier import Link, Point
from tests.conftest import BuildSpec

GIB, MIB = 2**30, 2**20
DEFAULT = (DEFAULT_LEVEL, DEFAULT_FRAME_BYTES)
# What text gives on one core, about.
POINTS = [
    Point(1, MIB, 2.6, 430e6, 1250e6),
    Point(3, MIB, 2.9, 320e6, 1150e6),
    Point(9, MIB, 3.3, 70e6, 1250e6),
    Point(19, MIB, 3.8, 3.3e6, 1100e6),
    Point(3, 4 * MIB, 2.95, 315e6, 1100e6),
    Point(9, 4 * MIB, 3.4, 68e6, 1200e6),
]
S3 = StoragePrice(usd_per_gib_month=0.023, usd_per_1000_reads=0.0004, months_kept=6)
LINK = Link(100e6, 100e6, 0.02)
LOCAL = Link(5e9, 1e9, 3e-5)
LIFE = Life(1000 * GIB, 0.8, 1, 64 * MIB, S3, cache_bytes=0, usd_per_hour=0.08, num_cores=4)

speeds = st.floats(1e5, 1e10)
points = st.builds(
    Point,
    st.integers(1, 22),
    st.sampled_from([MIB // 4, MIB, 4 * MIB]),
    st.floats(0.5, 100),
    speeds,
    speeds,
)
grids = st.lists(points, max_size=8).map(lambda others: [POINTS[1], *others])
prices = st.builds(
    StoragePrice,
    usd_per_gib_month=st.floats(0, 1),
    usd_per_gib_read=st.floats(0, 1),
    usd_per_1000_reads=st.floats(0, 1),
    usd_per_1000_writes=st.floats(0, 1),
    months_kept=st.floats(0, 100),
)
lives = st.builds(
    Life,
    st.floats(1, 1e15),
    st.floats(0.1, 1),
    st.floats(1, 1e5),
    st.just(64 * MIB),
    prices,
    st.sampled_from([0, 16 * GIB, 2**50]),
    st.floats(0, 100),
    st.integers(1, 64),
)
links = st.builds(Link, speeds, speeds, st.floats(0, 1))


@given(grids, lives, links)
def test_the_chosen_point_is_never_dearer_than_the_default(
    grid: list[Point], life: Life, link: Link
) -> None:
    choice = decide(grid, DEFAULT, life, link)

    usual = make_bill(grid[0], life, link).total
    assert choice.point in grid
    assert choice.bill == make_bill(choice.point, life, link)
    assert choice.bill.total <= usual
    if choice.point != grid[0]:
        assert usual - choice.bill.total >= max(LEAST_USD, LEAST_SHARE * usual) * (1 - 1e-9)


@given(grids, lives, links, st.floats(1, 1000))
def test_dearer_storage_never_makes_the_cheapest_point_larger(
    grid: list[Point], life: Life, link: Link, factor: float
) -> None:
    price = life.storage.usd_per_gib_month
    dearer = life.storage.model_copy(update={"usd_per_gib_month": price * factor})

    before = cheapest(grid, life, link)
    after = cheapest(grid, replace(life, storage=dearer), link)

    assert after.ratio >= before.ratio or total(after, life, link) == pytest.approx(
        total(before, life, link)
    )


@given(grids, lives, links, st.floats(1, 1000))
def test_more_reads_never_make_a_read_of_the_cheapest_point_dearer(
    grid: list[Point], life: Life, link: Link, factor: float
) -> None:
    def per_read(point: Point) -> float:
        more = make_bill(point, replace(life, reads=2 * life.reads), link)
        once = make_bill(point, life, link)
        return math.fsum(
            asdict(more)[what] - asdict(once)[what]
            for what in ("transfer", "requests", "decode", "wait")
        )

    before = cheapest(grid, life, link)
    after = cheapest(grid, replace(life, reads=life.reads * factor), link)

    assert per_read(after) <= per_read(before) * (1 + 1e-6) or total(
        after, life, link
    ) == pytest.approx(total(before, life, link))


def total(point: Point, life: Life, link: Link) -> float:
    return make_bill(point, life, link).total


@given(grids, lives, links)
def test_what_costs_more_to_encode_than_the_cheapest_in_all_is_never_the_cheapest(
    grid: list[Point], life: Life, link: Link
) -> None:
    best = cheapest(grid, life, link)
    for point in grid:
        if not can_win(point, grid, life, link):
            slower = replace(point, encode_bytes_per_second=point.encode_bytes_per_second / 2)
            assert total(slower, life, link) >= total(best, life, link)


def test_dear_storage_and_few_reads_take_a_higher_level() -> None:
    choice = decide(POINTS, DEFAULT, LIFE, LINK)

    assert choice.point.level > 3
    assert "storage" in choice.reason
    assert "against" in choice.reason


def test_many_reads_over_a_fast_link_with_dear_cores_decode_fast() -> None:
    free = StoragePrice()
    life = replace(LIFE, reads=1000, storage=free, usd_per_hour=40)
    grid = [*POINTS[:4], Point(1, MIB // 4, 2.5, 430e6, 2000e6)]

    choice = decide(grid, DEFAULT, life, LOCAL)

    assert choice.point.decode_bytes_per_second == 2000e6


def test_a_slow_link_that_is_read_often_takes_a_higher_level_though_storage_is_free() -> None:
    life = replace(LIFE, reads=100, storage=StoragePrice(), usd_per_hour=4)

    choice = decide(POINTS, DEFAULT, life, Link(10e6, 10e6, 0.02))

    assert choice.point.level > 3
    assert "wait" in choice.reason


def test_egress_outweighs_the_rest() -> None:
    abroad = S3.model_copy(update={"usd_per_gib_read": 0.09})

    bill = make_bill(POINTS[1], replace(LIFE, storage=abroad, reads=10), LINK)

    assert bill.transfer == pytest.approx(1000 * 0.8 * 10 / 2.9 * 0.09)
    assert bill.transfer > bill.total / 2


@pytest.mark.parametrize(
    ("ratio", "raw_bytes", "level"),
    [
        (3.0, 1000 * GIB, 3),  # saves 3 %, and more than a cent
        (3.2, 1000 * GIB, 9),  # saves 9 %
        (3.2, GIB / 10, 3),  # saves 9 %, and less than a cent
    ],
)
def test_the_default_is_left_only_for_five_percent_and_a_cent(
    ratio: float, raw_bytes: float, level: int
) -> None:
    grid = [POINTS[1], replace(POINTS[1], level=9, ratio=ratio)]
    only_storage = StoragePrice(usd_per_gib_month=0.023, months_kept=6)
    life = replace(LIFE, raw_bytes=raw_bytes, storage=only_storage, usd_per_hour=0)

    choice = decide(grid, DEFAULT, life, LINK)

    assert choice.point.level == level
    assert ("the default" in choice.reason) == (level == 3)


def test_of_points_as_cheap_the_lowest_level_is_taken_at_the_usual_frame_size() -> None:
    grid = [
        POINTS[1],
        Point(9, 4 * MIB, 4.01, 80e6, 1200e6),
        Point(9, MIB, 4.0, 70e6, 1200e6),
        Point(19, MIB, 4.04, 3e6, 1200e6),
    ]
    life = replace(LIFE, usd_per_hour=0)

    assert cheapest(grid, life, LINK).level == 19
    assert decide(grid, DEFAULT, life, LINK).point == grid[2]
    assert decide(grid[:2] + grid[3:], DEFAULT, life, LINK).point == grid[1]


def test_where_all_is_free_the_default_stays() -> None:
    life = replace(LIFE, storage=StoragePrice(), usd_per_hour=0)

    choice = decide(POINTS, DEFAULT, life, LINK)

    assert choice.point == POINTS[1]
    assert choice.reason.startswith("level 3, 1 MiB, the default: $0.00 in all for 1 read")


@pytest.mark.parametrize(
    ("cache_bytes", "num_fetches"), [(0, 10), (GIB // 4 - 1, 10), (GIB // 4, 1)]
)
def test_a_bill_adds_up_what_its_docstring_says(cache_bytes: int, num_fetches: int) -> None:
    price = StoragePrice(
        usd_per_gib_month=2,
        usd_per_gib_read=3,
        usd_per_1000_reads=4,
        usd_per_1000_writes=5,
        months_kept=7,
    )
    life = Life(
        GIB, 0.5, 10, 64 * MIB, price, cache_bytes=cache_bytes, usd_per_hour=3600, num_cores=2
    )
    point = Point(3, MIB, ratio=2, encode_bytes_per_second=GIB / 8, decode_bytes_per_second=GIB)

    bill = make_bill(point, life, Link(GIB / 4, GIB, 0.001))

    # A fetch takes 512 MiB raw, 256 MiB stored, by 128 requests; a core costs $0.50 a second.
    assert asdict(bill) == pytest.approx(
        {
            "encode": 8 * 0.5,
            "storage": 0.5 * 2 * 7,
            "writes": 16 / 1000 * 5,
            "transfer": num_fetches * 0.25 * 3,
            "requests": num_fetches * 0.128 * 4,
            "decode": 10 * 0.5 * 0.5,
            "wait": num_fetches * (0.25 * 4 + 128 * 0.001 / 2 - 0.5 / 2),
        }
    )
    assert bill.total == pytest.approx(sum(asdict(bill).values()))


def test_reads_are_what_training_and_study_take_by_the_samples_there_are(
    build_spec: BuildSpec,
) -> None:
    space = {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}
    spec = build_spec(
        train={"steps": 100, "batch": 32}, search={"space": space, "trials": 10, "steps": 27}
    )

    assert expected_reads(spec, 1000) == pytest.approx((100 + 10 * 27 * 7 / 27) * 32 / 1000)
    assert expected_reads(spec, 1e9) == 1
    assert expected_reads(spec, 0) == expected_reads(spec, 1)


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0, "$0.00"),
        (1e-9, "under $0.000001"),
        (0.000123, "$0.00012"),
        (0.5, "$0.50"),
        (1234.567, "$1,234.57"),
    ],
)
def test_dollars_are_told_with_the_digits_that_count(amount: float, words: str) -> None:
    assert usd(amount) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(2**18, "256 KiB"), (2**20, "1 MiB"), (3 * 2**19, "1.5 MiB"), (1000, "1000 bytes")],
)
def test_frame_sizes_are_told_as_people_say_them(num_bytes: int, words: str) -> None:
    assert size_in_words(num_bytes) == words
