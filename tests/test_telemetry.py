import json
import pickle
import threading

import pytest

from millrace import errors, telemetry
from millrace.telemetry import Progress


def events(out: str) -> list[dict[str, object]]:
    return [event for line in out.splitlines() if (event := telemetry.parse(line))]


def test_an_event_comes_back_as_it_was_emitted(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.emit("step", number=3, text="two\nlines, ü and \ud800")

    out = capsys.readouterr().out

    assert out.count("\n") == 2  # one before, or it might stand behind an unfinished line
    assert events(out) == [{"event": "step", "number": 3, "text": "two\nlines, ü and \ud800"}]


@pytest.mark.parametrize("line", ["", "plain text", "{}", '{"event": "torn', '{"other": 1}'])
def test_every_other_line_is_a_log_line(line: str) -> None:
    assert telemetry.parse(line) is None


def test_lines_of_concurrent_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    def talk(name: int) -> None:
        for number in range(200):
            telemetry.emit("step", name=name, number=number, padding="x" * 500)

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(events(capsys.readouterr().out)) == 800


def test_progress_counts_to_the_total_and_hands_on(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("files", total=3, every_seconds=0.0, usd_per_hour=3600.0)

    passed = [progress.step(name) for name in "abc"]

    said = events(capsys.readouterr().out)
    assert passed == ["a", "b", "c"]
    assert [(event["done"], event["total"]) for event in said] == [(1, 3), (2, 3), (3, 3)]
    assert said[-1]["eta_seconds"] == 0


def test_progress_keeps_quiet_between_and_always_says_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress("files", total=1000, every_seconds=1e6)

    for _ in range(1000):
        progress.step(None)

    assert [event["done"] for event in events(capsys.readouterr().out)] == [1000]


def test_progress_that_resumes_does_not_count_what_was_done_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress("steps", total=100, done=98, every_seconds=0.0)
    progress.started -= 10.0  # as if ten seconds had passed

    progress.step(None)

    said = events(capsys.readouterr().out)[0]
    assert said["per_second"] == pytest.approx(0.1, rel=0.1)
    assert said["eta_seconds"] == pytest.approx(10, rel=0.1)


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.MillraceError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_trip_between_processes(kind: type[errors.MillraceError]) -> None:
    error = kind("read x", "nothing", "Look again")

    for again in (
        errors.from_event(json.loads(json.dumps(error.to_event()))),
        pickle.loads(pickle.dumps(error)),  # noqa: S301  our own bytes, of a line above
    ):
        assert type(again) is kind
        assert str(again) == "read x: nothing. Look again"


def test_an_error_of_an_unknown_kind_still_tells_its_story() -> None:
    event = {"type": "OtherError", "asked": "a", "found": "b", "fix": "c"}

    assert str(errors.from_event(event)) == "a: b. c"
