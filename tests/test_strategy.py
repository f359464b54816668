import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.train.strategy import (
    TEMPORARIES,
    USABLE_SHARE,
    Needs,
    Paces,
    Strategy,
    choose_precision,
    fit,
    is_worth_compiling,
)

GIB = 2**30


def needs(state: float, sample: float, recomputed: float, free: float) -> Needs:
    """All in GiB."""
    return Needs(
        state_bytes=int(state * GIB),
        sample_bytes=int(sample * GIB),
        recomputed_bytes=int(recomputed * GIB),
        free_bytes=int(free * GIB),
    )


def test_what_fits_is_replicated_whole() -> None:
    strategy, why = fit(needs(2, 0.1, 0.01, 80), share=32, world_size=8)

    assert strategy == Strategy()
    assert "2 GiB" in why
    assert "80 GiB" in why


def test_a_batch_that_does_not_fit_is_cut_into_parts_before_anything_is_recomputed() -> None:
    strategy, _ = fit(needs(2, 1, 0.1, 20), share=32, world_size=2)

    assert (strategy.parallel, strategy.is_recomputing) == ("ddp", False)
    assert strategy.microbatches == math.ceil(32 / 9)  # (0.8 * 20 - 2) / 1.5 = 9.3 samples fit


def test_a_model_that_does_not_fit_is_sharded_if_there_are_ranks_to_share_it() -> None:
    large = needs(100, 0.5, 0.05, 80)

    assert fit(large, share=4, world_size=8)[0].parallel == "fsdp"
    assert fit(large, share=4, world_size=1)[0].parallel == "ddp"


def test_blocks_are_recomputed_where_not_even_one_sample_fits() -> None:
    strategy, _ = fit(needs(10, 8, 1, 24), share=4, world_size=1)

    assert strategy.is_recomputing
    assert strategy.microbatches == 1


@given(
    state=st.floats(0, 200),
    sample=st.floats(0, 20),
    share=st.integers(1, 512),
    world_size=st.integers(1, 64),
    free=st.floats(1, 200),
)
def test_a_layout_has_at_least_a_sample_in_each_part_and_fits_if_one_can(
    state: float, sample: float, share: int, world_size: int, free: float
) -> None:
    told = needs(state, sample, sample / 10, free)

    strategy, _ = fit(told, share, world_size)

    assert 1 <= strategy.microbatches <= share
    is_sharded = strategy.parallel == "fsdp"
    held = told.state_bytes / (world_size if is_sharded else 1)
    each = told.recomputed_bytes if strategy.is_recomputing else told.sample_bytes
    together = math.ceil(share / strategy.microbatches)
    if strategy.microbatches < share:  # else there is no smaller layout
        assert held + TEMPORARIES * together * each <= USABLE_SHARE * told.free_bytes + share


@pytest.mark.parametrize(
    ("half", "chosen"), [(0.5, "bfloat16"), (0.99, "float32"), (1.7, "float32")]
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(half: float, chosen: str) -> None:
    precision, why = choose_precision(Paces(float32_seconds=1.0, bfloat16_seconds=half))

    assert precision == chosen
    assert "1e+03 ms in float32" in why


@pytest.mark.parametrize(
    ("compiled", "left", "pays"),
    [(0.5, 1000, True), (0.5, 100, False), (0.99, 10**6, False), (math.inf, 10**6, False)],
)
def test_compiling_is_taken_where_it_pays_back(compiled: float, left: int, pays: bool) -> None:
    paces = Paces(float32_seconds=1.0, compiled_seconds=compiled, compile_seconds=60.0)

    assert is_worth_compiling(paces, left)[0] == pays
