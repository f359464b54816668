"""Figures of trainings of one shape on one kind of machine: measured once, kept on the store.

<pipeline>/timings/<digest of machine, torch, network and shapes>.json <--> Timings <-- Probe

With all of them known nothing is measured, and no network is built to measure on: the choice that
rests on them is the same whether the machine is busy or idle.
"""

import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ConfigDict, ValidationError

from millrace import manifest as manifests
from millrace.errors import CorruptError, NotFoundError
from millrace.frozen import Frozen, digest
from millrace.job import Job
from millrace.models.source import source_digest
from millrace.storage import Storage
from millrace.telemetry import log
from millrace.train.loop import TrainingData
from millrace.train.probe import Probe, free_bytes, seconds_per_flop
from millrace.train.strategy import Needs, Strategy
from millrace.train.world import World

NOUN = "timings"
_NEEDS = ("state_bytes", "sample_bytes", "recomputed_bytes")


class Figures(Frozen):
    """What is kept, and of what."""

    machine: str
    torch: str
    figures: dict[str, float]
    """Seconds of a microbatch by the words of its strategy (infinite: out of memory), and more."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")


class Timings:
    """Figures of a job's shape: those that are known, and a probe for those that are not.

    Each is that of the slowest rank. Every rank must ask for the same, in the same order.

    Args:
        job: What will be trained.
        data: Its splits.
        world: This process among the ranks.
        storage: Where figures are kept.
    """

    def __init__(self, job: Job, data: TrainingData, world: World, storage: Storage) -> None:
        self._job, self._data, self._world, self._storage = job, data, world, storage
        self._machine = machine(world.device)
        shape = _shape(job, data, world, self._machine)
        self.path = f"{manifests.folder(job.pipeline, NOUN, shape)}.json"
        self._known = self._read()
        self._is_new = False
        self._probe: Probe | None = None

    def needs(self) -> Needs:
        """The most bytes that any rank needs, and the least that any has free now."""

        def measure(probe: Probe) -> list[float]:
            needs = probe.needs().model_dump()
            return [float(needs[name]) for name in _NEEDS]

        most = self._figures(_NEEDS, measure)
        (free,) = self._slowest([-float(free_bytes(self._world.device))])
        told = dict(zip(_NEEDS, map(int, most), strict=True))
        return Needs(**told, free_bytes=int(-free))

    def flops_per_sample(self) -> float:
        """Floating-point operations of one sample's forward and backward."""
        return self._figures(["flops_per_sample"], lambda probe: [probe.flops_per_sample()])[0]

    def is_divisible(self) -> bool:
        """Whether a batch may be cut for speed alone: batch norm would see fewer samples."""
        (has_batch_norm,) = self._figures(
            ["has_batch_norm"], lambda probe: [float(probe.has_batch_norm)]
        )
        return not has_batch_norm

    def peak_flops_per_second(self, precision: str) -> float:
        """What a rank reaches in a large matrix product of this precision."""
        name = f"seconds of a TFLOP, {precision}"
        told = self._figures([name], lambda _: [1e12 * seconds_per_flop(self._device, precision)])
        return 1e12 / told[0]

    def seconds(self, strategies: Sequence[Strategy]) -> list[float]:
        """Seconds of a microbatch, forward and backward, under each strategy.

        Those that are not known are measured in turn with the others, and told in proportion to
        them: a machine that has become busy meanwhile does not make the later ones look slow.
        """
        names = [strategy.words for strategy in strategies]
        if not all(name in self._known for name in names):
            told = self._slowest(self._probed().paces(strategies))
            scale = _scale([self._known.get(name, math.inf) for name in names], told)
            for name, seconds in zip(names, told, strict=True):
                self._known.setdefault(name, scale * seconds)
            self._is_new = True
        return [self._known[name] for name in names]

    def compile_seconds(self, strategy: Strategy) -> tuple[float, str]:
        """What compiling for this strategy takes; infinite, with the reason, where it fails."""
        name, failure = f"{strategy.words}: compiling", ""

        def measure(probe: Probe) -> list[float]:
            nonlocal failure
            try:
                return [probe.compile_seconds(strategy)]
            except Exception as error:  # noqa: BLE001  compilers fail in many ways; each is a reason
                failure = f"{type(error).__name__}: {error}"[:200]
                return [math.inf]

        (seconds,) = self._figures([name], measure)
        if math.isinf(seconds):  # what is missing today may be there tomorrow
            del self._known[name]
        return seconds, failure or "on another rank"

    def most_threads(self) -> int:
        """The threads that every rank may use on the CPU; 1 where their number is not ours."""
        is_ours = self._device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ
        (told,) = self._slowest([-float(torch.get_num_threads() if is_ours else 1)])
        return int(-told)

    def keep(self) -> None:
        """Write the figures down, if there are new ones; for the first rank to call."""
        if self._is_new:
            kept = Figures(machine=self._machine, torch=torch.__version__, figures=self._known)
            self._storage.write(self.path, kept.model_dump_json(indent=1).encode())

    @property
    def _device(self) -> torch.device:
        return self._world.device

    def _probed(self) -> Probe:
        if self._probe is None:
            self._probe = Probe(self._job, self._data, self._world)
        return self._probe

    def _figures(
        self, names: Sequence[str], measure: Callable[[Probe], Sequence[float]]
    ) -> list[float]:
        if not all(name in self._known for name in names):
            told = self._slowest(measure(self._probed()))
            self._known.update(zip(names, told, strict=True))
            self._is_new = True
        return [self._known[name] for name in names]

    def _slowest(self, values: Sequence[float]) -> list[float]:
        """Each of the values as the slowest rank found it, on every rank."""
        told = torch.tensor(values, dtype=torch.float64, device=self._device)
        found: list[float] = self._world.rows(told).amax(0).tolist()
        return found

    def _read(self) -> dict[str, float]:
        """The figures that are kept; none unless every rank has read the same."""
        known: dict[str, float] = {}
        try:
            known = Figures.model_validate_json(self._storage.read(self.path)).figures
        except NotFoundError:
            pass
        except (CorruptError, ValidationError) as error:
            log(f"a training's shape is measured anew: {self.path}: {error}")
        mark = int(digest(sorted(known.items()))[:12], 16)
        marks = self._world.rows(torch.tensor([mark], device=self._device))
        return known if bool((marks == mark).all()) else {}


def machine(device: torch.device) -> str:
    """The device as its maker names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _shape(job: Job, data: TrainingData, world: World, machine: str) -> str:
    """Address of all that a microbatch's seconds depend on, but for the strategy."""
    spec, facts = job.spec, data.facts
    return digest(
        NOUN,
        [machine, torch.get_num_threads(), torch.__version__],
        [spec.network.model_dump(), source_digest(spec.network, job.folder)],
        [spec.task.kind, facts.num_classes, facts.shape],
        [spec.train.batch // world.size, world.size],
    )


def _scale(known: Sequence[float], told: Sequence[float]) -> float:
    """What brings seconds told now to the first of them that is known from before."""
    for before, now in zip(known, told, strict=True):
        if math.isfinite(before) and math.isfinite(now):
            return before / now
    return 1.0
