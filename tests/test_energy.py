from pathlib import Path

import pytest

from millrace.plan.energy import Counters, EnergyMeter, gpu_watts


def build_package(folder: Path, number: int, microjoules: int) -> Path:
    package = folder / f"intel-rapl:{number}"
    package.mkdir()
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("1000000000\n")
    part = folder / f"intel-rapl:{number}:0"
    part.mkdir()
    (part / "energy_uj").write_text("7\n")
    return package


def test_energy_is_the_sum_over_packages_since_the_start(tmp_path: Path) -> None:
    first, second = build_package(tmp_path, 0, 500), build_package(tmp_path, 1, 0)
    counters = Counters(tmp_path)

    (first / "energy_uj").write_text("2000500\n")
    (second / "energy_uj").write_text("3000000\n")

    assert counters.joules() == pytest.approx(5.0)


def test_a_counter_that_has_turned_over_counts_on(tmp_path: Path) -> None:
    package = build_package(tmp_path, 0, 999_000_000)
    counters = Counters(tmp_path)

    (package / "energy_uj").write_text("1000000\n")

    assert counters.joules() == pytest.approx(2.0)


def test_a_machine_without_counters_tells_nothing(tmp_path: Path) -> None:
    assert Counters(tmp_path / "none").joules() == 0


def test_a_gpus_power_is_asked_of_its_tool(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '100.5\\n99.5\\n'\n")
    tool.chmod(0o755)

    assert gpu_watts(str(tool)) == 200
    assert gpu_watts(str(tmp_path / "none")) == 0


def test_a_meter_adds_up_the_gpus_power_over_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert EnergyMeter().joules() > 0
