"""Where a study's workers find room, and what is said where there is none."""

import os
import sys
from pathlib import Path

import pytest

from millrace.errors import SpecError
from millrace.tune.places import placed
from tests.conftest import BuildJob

SPACE = {"space": {"train.learning_rate": {"choices": [0.001]}}}


@pytest.mark.parametrize(
    ("ranks", "workers", "room"), [(1, 9, 4), (1, 3, 3), (2, 9, 2), (4, 9, 1), (8, 9, 1)]
)
def test_a_machine_has_room_for_as_many_workers_as_cores_for_their_ranks(
    build_job: BuildJob,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ranks: int,
    workers: int,
    room: int,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    job = build_job(
        train={"steps": 5, "batch": 8}, search=SPACE | {"ranks": ranks, "workers": workers}
    ).model_copy(update={"usd_per_hour": 2.0})

    with placed(job) as (here, _):
        files = list(tmp_path.glob("work/jobs/*"))

    assert here.spec.search.workers == room
    assert here.usd_per_hour == 2.0
    assert len(files) == 1
    assert not list(tmp_path.glob("work/jobs/*"))


def test_a_study_on_ray_that_is_not_installed_says_what_to_install(
    build_job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("millrace.tune.ray_workers", "millrace.train.ray_cluster"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    job = build_job().model_copy(update={"launcher": "ray"})

    with pytest.raises(SpecError, match=r"pip install 'millrace\[ray\]'"), placed(job):
        pass
