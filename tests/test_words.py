import re

import pytest

from millrace.plan.options import NOT_MEASURED, Option
from millrace.plan.outlook import Outlook
from millrace.plan.spread import Interval
from millrace.plan.words import (
    HEADS,
    as_markdown,
    as_text,
    choice_in_words,
    in_joules,
    in_seconds,
    in_usd,
    in_words,
    picture,
    rows,
)


def build_option(machine: str, usd: float, **fields: object) -> Option:
    return Option.model_validate(
        {
            "machine": machine,
            "count": 1,
            "basis": "measured here",
            "seconds": Interval(value=100.0, low=50.0, high=200.0),
            "usd": Interval(value=usd, low=usd / 2, high=usd * 2),
            "usd_per_hour": 36 * usd,
        }
        | fields
    )


HERE = build_option("local", 2.0, joules=7.2e6, energy_basis="modelled: 20 W of the price file")
SPOT = build_option("a-spot", 0.5, count=2, break_even_usd_per_hour=30.0, restarts=0.25)
UNKNOWN = Option(machine="gpu", count=1, basis=NOT_MEASURED, usd_per_hour=4.0)


def build_outlook(chosen: str = "a-spot x 2", deadline_hours: float | None = None) -> Outlook:
    return Outlook(
        machine="local",
        basis="a probe of 20 steps and 3 recorded trainings",
        study=Interval(value=30.0, low=20.0, high=45.0),
        training=Interval(value=70.0, low=40.0, high=120.0),
        step_seconds=0.1,
        shares={"start": 0.1, "updates": 0.8, "validations": 0.1},
        memory_bytes=Interval(value=1e9, low=5e8, high=2e9),
        options=(HERE, SPOT, UNKNOWN),
        chosen=chosen,
        deadline_hours=deadline_hours,
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0.0 s"),
        (3.21, "3.2 s"),
        (9.97, "10 s"),
        (99.7, "100 s"),
        (150.0, "2.5 min"),
        (7300.0, "2.0 h"),
        (4e6, "1,111 h"),
    ],
)
def test_a_time_has_the_digits_that_count(seconds: float, told: str) -> None:
    assert in_seconds(seconds) == told


@pytest.mark.parametrize(
    ("usd", "told"),
    [
        (0.0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.25, "$0.25"),
        (0.00096, "$0.00096"),
        (1e-12, "$0.000000000"),
    ],
)
def test_a_price_has_the_digits_that_count(usd: float, told: str) -> None:
    assert in_usd(usd) == told


def test_energy_is_told_in_joules_until_it_is_much() -> None:
    assert in_joules(1036) == "1,036 J"
    assert in_joules(7.2e6) == "2.00 kWh"


def test_each_option_has_a_row_and_what_is_not_measured_says_so() -> None:
    local, spot, unknown = rows(build_outlook())

    assert local[:3] == ["local", "100 s [50 s, 3.3 min]", "$2.00 [$1.00, $4.00]"]
    assert "2.00 kWh, modelled" in local
    assert spot[0] == "a-spot x 2 (chosen)"
    assert "30 (it is 18)" in spot
    assert unknown[0] == "gpu"
    assert unknown[-1] == "not measured"
    assert set(unknown[1:-1]) == {""}


def test_tables_have_a_cell_for_every_head() -> None:
    cells = rows(build_outlook())

    lines = as_markdown(HEADS, cells).splitlines()

    assert len(lines) == 2 + len(cells)
    assert {line.count("|") for line in lines} == {len(HEADS) + 1}


def test_a_terminal_sees_no_column_that_is_empty_and_no_blanks_at_the_end() -> None:
    text = as_text(("a", "b", "c"), [["1", "", "x"], ["22", "", ""]])

    assert text.splitlines() == ["  a   c", "  1   x", "  22"]


def test_the_choice_is_told_with_what_it_saves() -> None:
    assert choice_in_words(build_outlook()) == ("a-spot x 2 is the cheapest: $1.50 less than local")
    assert choice_in_words(build_outlook("local", 2.0)) == (
        "this machine (local) is the cheapest inside the deadline of 2 h"
    )
    assert choice_in_words(build_outlook("", 0.5)) == (
        "no option is sure to end inside the deadline of 0.5 h"
    )


def test_the_plan_is_told_in_a_line() -> None:
    assert in_words(build_outlook()) == (
        "plan: study 30 s, training 70 s (90 % between 40 s and 2.0 min), together $2.00 on local; "
        "by a probe of 20 steps and 3 recorded trainings"
    )


def test_the_picture_has_a_spot_for_each_option_that_is_known() -> None:
    svg = picture(build_outlook())

    assert ">local</text>" in svg
    assert ">a-spot x 2</text>" in svg
    assert ">gpu</text>" not in svg
    assert len(re.findall(r'r="8" fill="none"', svg)) == 1  # the chosen one's ring
