import asyncio
import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.deadline import (
    DOUBTFUL_ATTEMPTS,
    PROOF_ATTEMPTS,
    OverdueError,
    Patience,
    persist,
    within,
)
from millrace.errors import CorruptError, SpecError

HASTY = Patience(first_pause_seconds=0.0)
CORRUPT = CorruptError("read a", "other bytes", "Make it anew")


def test_what_an_attempt_may_take_grows_with_its_bytes() -> None:
    patience = Patience(
        attempts=3, attempt_seconds=2.0, total_seconds=10.0, slowest_bytes_per_second=100.0
    )

    assert (patience.attempt_limit(0), patience.attempt_limit(500)) == (2.0, 7.0)
    assert (patience.total_limit(0), patience.total_limit(500)) == (10.0, 25.0)


@given(st.integers(1, 10))
def test_pauses_double_give_or_take_a_half(attempt: int) -> None:
    usual = 0.1 * 2.0 ** (attempt - 1)

    assert 0.5 * usual <= Patience().pause_seconds(attempt) <= 1.5 * usual


@pytest.mark.parametrize(
    ("error", "remote", "local"),
    [
        (ConnectionResetError("reset"), 5, 5),
        (OverdueError("no whole answer"), 5, 5),
        (CORRUPT, PROOF_ATTEMPTS, PROOF_ATTEMPTS),
        (FileNotFoundError("a"), DOUBTFUL_ATTEMPTS, 1),
        (PermissionError("a"), DOUBTFUL_ATTEMPTS, 1),
        (OSError(errno.ENOSPC, "full"), 1, 1),
        (OSError(errno.EROFS, "read-only"), 1, 1),
        (IsADirectoryError("a"), 1, 1),
        (SpecError("a", "b", "c"), 1, 1),
    ],
)
def test_an_error_is_worth_as_many_attempts_as_may_help(
    error: Exception, remote: int, local: int
) -> None:
    for is_remote, expected in ((True, remote), (False, local)):
        met: list[float] = []

        def fail(seconds: float, met: list[float] = met) -> None:
            met.append(seconds)
            raise error

        with pytest.raises(type(error)) as caught:
            persist(fail, HASTY, is_remote=is_remote)

        assert caught.value is error
        assert len(met) == expected


def test_an_operation_that_heals_returns_what_it_got() -> None:
    answers: Iterator[bytes | Exception] = iter(
        [ConnectionResetError(), CORRUPT, TimeoutError(), b"right"]
    )

    def act(_seconds: float) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persist(act, HASTY) == b"right"


def test_no_attempt_begins_when_the_time_is_over() -> None:
    met: list[float] = []

    def fail(seconds: float) -> None:
        met.append(seconds)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        persist(fail, Patience(total_seconds=0.0))

    assert len(met) == 1


def test_what_takes_too_long_is_cancelled() -> None:
    ended: list[BaseException] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(error)
            raise

    with pytest.raises(OverdueError, match=r"no whole answer within 0\.0 s"):
        asyncio.run(within(0.01, hang()))

    assert [type(error) for error in ended] == [asyncio.CancelledError]


def test_a_timeout_of_the_server_is_no_deadline_of_ours() -> None:
    async def answer() -> None:
        raise TimeoutError("RequestTimeout")

    with pytest.raises(TimeoutError, match="RequestTimeout"):
        asyncio.run(within(10, answer()))
