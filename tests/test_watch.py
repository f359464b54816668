from pathlib import Path

from millrace import manifest as manifests
from millrace.launch import follow
from millrace.train.meter import Scale, Spent
from tests.pipelines_for_tests import NAME, Line


def test_a_training_tells_its_rates_and_draws_its_scalars(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    section = line.spec.train.model_dump() | {"ranks": 1, "steps": 60}

    said = list(follow("train", line.job("watched", train=section)))

    last = [event for event in said if event["event"] == "progress"][-1]
    made = manifests.read(line.storage, said[-1]["path"])
    for told in (last, made.measured):
        assert told["samples_per_second"] > 0
        assert 0 < told["mfu"] < 1
        assert 0 <= told["data_stall"] < 1
        assert told["memory_bytes"] > 2**20
        assert "tokens_per_second" not in told
    assert (last["done"], last["total"]) == (60, 60)
    assert last["usd"] > 0
    (path,) = line.storage.list(f"{NAME}/checkpoint/watched/tensorboard")
    drawn = line.storage.read(path)
    for tag in (b"loss/train_loss", b"loss/validation_loss", b"metric/accuracy", b"speed/mfu"):
        assert tag in drawn
    assert drawn.count(b"loss/train_loss") == 60


def test_rates_are_of_all_ranks_and_of_the_steps_alone() -> None:
    scale = Scale(batch=8, tokens_per_sample=16.0, flops_per_sample=1e6, peak_flops_per_second=1e8)

    rates = scale.rates(Spent(30, 12.0, 0.5) - Spent(10, 2.0, 0.4))

    assert rates["samples_per_second"] == 16
    assert rates["tokens_per_second"] == 256
    assert rates["mfu"] == 0.16
    assert abs(rates["data_stall"] - 0.01) < 1e-9
    assert scale.rates(Spent()) == {}
