"""Energy: what the machine's own counters say, else power times time and said to be so.

Intel and AMD processors count microjoules in /sys/class/powercap (RAPL), which most kernels show to
root alone; an NVIDIA GPU tells its power through nvidia-smi, which is asked now and then.
"""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
ASK_SECONDS = 5.0
PATIENCE_SECONDS = 5.0


class Counters:
    """RAPL's counters of whole processor packages; empty where the machine has none to read.

    Args:
        folder: Where the kernel shows them.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        # `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
        found = sorted(folder.glob("*rapl:*")) if folder.is_dir() else []
        packages = [path for path in found if path.name.count(":") == 1]
        self._packages = [path for path in packages if os.access(path / "energy_uj", os.R_OK)]
        self._start = self._read()

    def joules(self) -> float:
        """Since the counters were opened; 0 where there are none.

        A counter that has turned over counts on from its range: once, so for hours at most.
        """
        total = 0.0
        for path, start, now in zip(self._packages, self._start, self._read(), strict=True):
            turned = int((path / "max_energy_range_uj").read_text()) if now < start else 0
            total += (now - start + turned) / 1e6
        return total

    def _read(self) -> list[int]:
        return [int((path / "energy_uj").read_text()) for path in self._packages]


class EnergyMeter:
    """The energy of this machine from `start` to `joules`, as far as it tells."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._gpu_joules = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if command := shutil.which("nvidia-smi"):
            self._thread = threading.Thread(target=self._follow, args=(command,), daemon=True)
            self._thread.start()

    def joules(self) -> float:
        """Measured so far, of processors and GPUs; 0 where nothing tells. Ends the measurement."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)
        return self._counters.joules() + self._gpu_joules

    def _follow(self, command: str) -> None:
        last = time.monotonic()
        while True:
            is_over = self._ended.wait(ASK_SECONDS)
            watts, now = gpu_watts(command), time.monotonic()
            self._gpu_joules += watts * (now - last)
            last = now
            if is_over:
                return


def gpu_watts(command: str) -> float:
    """The power that all GPUs draw now; 0 where they do not tell."""
    asked = [command, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            asked, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        return sum(float(line) for line in told.stdout.splitlines() if line.strip())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0.0
