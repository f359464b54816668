from dataclasses import replace

import pytest

from millrace.cost import Prices
from millrace.plan.options import NOT_MEASURED, Demand, Option, cheapest, options
from millrace.plan.spread import Interval
from millrace.plan.time_model import default_constants
from tests.plan_runs import build_work

PRICES = Prices.model_validate(
    {
        "machines": {
            "local": {"usd_per_core_hour": 1.0, "watts_per_core": 10},
            "big-on-demand": {
                "usd_per_core_hour": 2.0,
                "cores": 8,
                "relative_speed": 2.0,
                "counts": [1, 2],
            },
            "big-spot": {
                "usd_per_core_hour": 0.5,
                "cores": 8,
                "relative_speed": 2.0,
                "mtbf_hours": 2,
            },
            "gpu": {"usd_per_hour": 30.0},
        }
    }
)
DEMAND = Demand(
    machine="local",
    num_cores=4,
    study=Interval(value=1800.0, low=1500.0, high=2400.0),
    training=Interval(value=7200.0, low=6000.0, high=9000.0),
    work=build_work(batch=64, steps=20_000),  # next to no start
    constants=default_constants("cpu"),
    checkpoint_seconds=2.0,
    restart_seconds=30.0,
)


def option(name: str, demand: Demand = DEMAND) -> Option:
    return next(one for one in options(demand, PRICES) if one.name == name)


def test_this_machine_comes_first_and_costs_its_hours() -> None:
    here = options(DEMAND, PRICES)[0]

    assert (here.machine, here.basis) == ("local", "measured here")
    assert here.seconds.value == pytest.approx(9000, rel=0.01)
    assert here.usd.value == pytest.approx(4 * here.seconds.value / 3600)
    assert here.usd.low < here.usd.value < here.usd.high


def test_a_machine_of_known_speed_takes_so_much_less() -> None:
    here, there = option("local"), option("big-on-demand")

    # Eight cores, each twice as fast as one of the four here.
    assert there.seconds.value == pytest.approx(here.seconds.value / 4, rel=0.01)
    assert there.usd_per_hour == 16


def test_a_machine_of_unknown_speed_is_said_to_be_not_measured() -> None:
    found = option("gpu")

    assert found.basis == NOT_MEASURED
    assert not found.is_known
    assert found.usd_per_hour == 30


def test_recorded_runs_on_a_machine_say_more_than_the_price_file() -> None:
    found = option("big-on-demand", replace(DEMAND, speeds={"big-on-demand": 8.0, "gpu": 100.0}))

    assert found.basis == "recorded runs there"
    assert found.seconds.value == pytest.approx(option("local").seconds.value / 8, rel=0.01)


def test_two_machines_train_faster_and_cost_more() -> None:
    one, two = option("big-on-demand"), option("big-on-demand x 2")

    assert one.seconds.value / 2 < two.seconds.value < one.seconds.value
    assert two.usd.value > one.usd.value
    assert "network" in two.basis


def test_a_batch_that_cannot_be_shared_gains_nothing_from_more_machines() -> None:
    odd = replace(DEMAND, work=build_work(batch=2, steps=20_000))

    one, two = option("big-on-demand", odd), option("big-on-demand x 2", odd)

    assert two.seconds.value == pytest.approx(one.seconds.value, rel=0.01)


def test_spot_is_restarted_now_and_then_and_tells_its_break_even_price() -> None:
    spot, steady = option("big-spot"), option("big-on-demand")

    assert spot.restarts > steady.restarts
    assert spot.overhead > steady.overhead > 1
    assert spot.checkpoint_every_seconds < steady.checkpoint_every_seconds
    # Were it priced so, it would cost what its twin does.
    hours = spot.seconds.value / 3600
    assert spot.break_even_usd_per_hour * hours == pytest.approx(steady.usd.value)
    assert spot.break_even_usd_per_hour < steady.usd_per_hour
    assert steady.break_even_usd_per_hour == 0


def test_the_cheapest_inside_the_deadline_is_chosen_by_its_high_end() -> None:
    found = options(DEMAND, PRICES)

    free, hurried = cheapest(found), cheapest(found, deadline_hours=0.6)

    assert free is not None
    assert free.name == "big-spot"
    assert hurried is not None
    assert hurried.seconds.high <= 0.6 * 3600
    assert hurried.name == "big-on-demand x 2"
    assert cheapest(found, deadline_hours=0.01) is None


def test_energy_is_measured_where_the_machine_told_it_and_else_modelled() -> None:
    modelled, measured = option("local"), option("local", replace(DEMAND, watts=100.0))

    assert modelled.joules == pytest.approx(40 * modelled.seconds.value, rel=0.01)
    assert modelled.energy_basis.startswith("modelled")
    assert measured.joules == pytest.approx(100 * measured.seconds.value, rel=0.01)
    assert measured.energy_basis.startswith("measured")
    assert option("big-spot").energy_basis == "not known"
