"""What shards cost over their life at each zstd level and frame size, and which is the cheapest."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from millrace.cost import StoragePrice
from millrace.data.frontier import IN_FLIGHT, Link, Point
from millrace.data.order import CHUNK_BYTES
from millrace.spec import PipelineSpec

DEFAULT_LEVEL, DEFAULT_FRAME_BYTES = 3, 2**20
LEAST_SHARE, LEAST_USD = 0.05, 0.01  # of saving, both, before the default is left
NEAR_SHARE = 0.02  # bills this near to the lowest are as good: the lowest level is taken
# Of the steps of a full trial, what a trial takes on average when the better third passes each of
# two rungs at a ninth and a third: 1/9 + 1/3 * 2/9 + 1/9 * 2/3.
STEPS_SHARE_OF_A_TRIAL = 7 / 27
_GIB = 2**30


@dataclass(frozen=True)
class Life:
    """What happens to the shards as long as they are kept, and at which prices."""

    raw_bytes: float
    """Of all splits."""
    train_share: float
    """Of the raw bytes, those that each read takes: the train split."""
    reads: float
    """How often the train split is read."""
    shard_bytes: int
    """Raw bytes in a shard: an object that is written."""
    storage: StoragePrice
    cache_bytes: int
    """What this machine keeps of a remote store: what fits is fetched once; 0 keeps nothing."""
    usd_per_hour: float
    """Of the machine."""
    num_cores: int


@dataclass(frozen=True)
class Bill:
    """US dollars over the whole life, by what they are paid for."""

    encode: float
    storage: float
    writes: float
    transfer: float
    requests: float
    decode: float
    wait: float

    @property
    def total(self) -> float:
        """All of it."""
        return math.fsum(asdict(self).values())


@dataclass(frozen=True)
class Choice:
    """The point to pack with, its bill, and why, in a sentence."""

    point: Point
    bill: Bill
    reason: str


def expected_reads(spec: PipelineSpec, num_train_samples: float) -> float:
    """How often one run of the pipeline reads each sample of the train split; at least once.

    Samples that the training and the study's trials take, by the samples there are.
    """
    return max(1.0, num_samples_taken(spec) / max(1.0, num_train_samples))


def num_samples_taken(spec: PipelineSpec) -> float:
    """Samples that one run of the pipeline takes from the train split."""
    trial_steps = spec.search.trials * spec.search.steps * STEPS_SHARE_OF_A_TRIAL
    return spec.train.batch * (spec.train.steps + trial_steps)


def make_bill(point: Point, life: Life, link: Link) -> Bill:
    """What the shards cost at this point, in US dollars.

    With core = usd_per_hour / 3600 / cores (dollars per CPU second), stored = raw / ratio (bytes):

        encode    raw / encode speed * core
        storage   stored / GiB * usd_per_gib_month * months_kept
        writes    raw / shard_bytes / 1000 * usd_per_1000_writes

    for each read, of the train split's share of the bytes:

        decode    raw / decode speed * core

    and for each fetch, one where that share fits into the cache, else as many as reads:

        transfer  stored / GiB * usd_per_gib_read
        requests  raw / bytes of a chunk (or of a larger frame) / 1000 * usd_per_1000_reads
        wait      seconds that the link takes longer than all cores need to decode, times the
                  machine's price: link = stored / bandwidth + requests * request_seconds / 2 in
                  flight. As if the training itself took no time, so an upper bound.
    """
    core_usd = life.usd_per_hour / 3600 / life.num_cores
    read_bytes = life.raw_bytes * life.train_share
    num_fetches = 1.0 if read_bytes / point.ratio <= life.cache_bytes else life.reads
    num_requests = read_bytes / max(point.frame_bytes, CHUNK_BYTES)
    decode_seconds = read_bytes / point.decode_bytes_per_second
    link_seconds = (
        read_bytes / point.ratio / link.read_bytes_per_second
        + num_requests * link.request_seconds / IN_FLIGHT
    )
    wait_seconds = max(0.0, link_seconds - decode_seconds / life.num_cores)
    price = life.storage
    fetched_gib = num_fetches * read_bytes / point.ratio / _GIB
    return Bill(
        encode=life.raw_bytes / point.encode_bytes_per_second * core_usd,
        storage=life.raw_bytes / point.ratio / _GIB * price.usd_per_gib_month * price.months_kept,
        writes=life.raw_bytes / life.shard_bytes / 1000 * price.usd_per_1000_writes,
        transfer=fetched_gib * price.usd_per_gib_read,
        requests=num_fetches * num_requests / 1000 * price.usd_per_1000_reads,
        decode=life.reads * decode_seconds * core_usd,
        wait=num_fetches * wait_seconds / 3600 * life.usd_per_hour,
    )


def cheapest(points: Sequence[Point], life: Life, link: Link) -> Point:
    """The point with the smallest bill; of equal ones the lowest level."""
    return min(points, key=lambda point: (make_bill(point, life, link).total, point.level))


def can_win(point: Point, points: Sequence[Point], life: Life, link: Link) -> bool:
    """Whether the point, or one of a higher level, may be the cheapest beside these points.

    Not once its encoding alone costs as much as the cheapest in all: with the level it only rises.
    """
    lowest = make_bill(cheapest(points, life, link), life, link).total
    return make_bill(point, life, link).encode < lowest


def decide(points: Sequence[Point], default: tuple[int, int], life: Life, link: Link) -> Choice:
    """The cheapest point, unless it saves too little to leave the default (level, frame size).

    Less than 5 % or less than a cent in all is no reason: measurements wobble by as much, and
    data sets too small to matter get the same shards on every machine and store. For the same
    reason, of points within 2 % of the cheapest the lowest level is taken, which encodes fastest,
    and of its frame sizes the default one, or else the cheapest.
    """
    usual = next(point for point in points if (point.level, point.frame_bytes) == default)
    best = cheapest(points, life, link)
    usual_bill, best_bill = make_bill(usual, life, link), make_bill(best, life, link)
    most = usual_bill.total - max(LEAST_USD, LEAST_SHARE * usual_bill.total)
    limit = min(most, (1 + NEAR_SHARE) * best_bill.total)
    near = [point for point in points if make_bill(point, life, link).total <= limit]
    if near and best != usual:
        chosen = min(
            near,
            key=lambda point: (
                point.level,
                point.frame_bytes != usual.frame_bytes,
                make_bill(point, life, link).total,
            ),
        )
        bill = make_bill(chosen, life, link)
        told = f"against {usd(usual_bill.total)} at {name(usual)}: {_parts(bill, usual_bill)}"
        return Choice(chosen, bill, f"{name(chosen)}: {_reads(bill, life)} {told}")
    told = f"{name(usual)}, the default: {_reads(usual_bill, life)}"
    saved = usual_bill.total - best_bill.total
    if usual_bill.total < LEAST_USD:
        told += ", so that no other can save a cent"
    elif saved > 0:
        told += (
            f": {_parts(usual_bill)}; the cheapest, {name(best)}, would save {usd(saved)} "
            f"({saved / usual_bill.total:.1%}), less than {LEAST_SHARE:.0%} or a cent"
        )
    else:
        told += f": {_parts(usual_bill)}; no other is cheaper"
    return Choice(usual, usual_bill, told)


def _reads(bill: Bill, life: Life) -> str:
    return f"{usd(bill.total)} in all for {life.reads:.3g} read{'s' if life.reads > 1 else ''}"


def name(point: Point) -> str:
    """A point in words."""
    return f"level {point.level}, {size_in_words(point.frame_bytes)}"


def size_in_words(num_bytes: int) -> str:
    """A frame size as people say it: 256 KiB, 1 MiB."""
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size and num_bytes % (size // 4) == 0:
            return f"{num_bytes / size:g} {unit}"
    return f"{num_bytes} bytes"


def usd(amount: float) -> str:
    """Dollars with cents, or with two digits that count below a dollar."""
    if 0 < amount < 1e-6:
        return "under $0.000001"
    if amount >= 1 or amount <= 0:
        return f"${amount:,.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}"


def _parts(bill: Bill, other: Bill | None = None) -> str:
    """What most of the money goes to, largest first; beside another bill where there is one."""
    paid = sorted(asdict(bill).items(), key=lambda item: -item[1])
    others = asdict(other) if other else {}
    shown = [
        f"{what} {usd(amount)}" + (f" ({usd(others[what])})" if others else "")
        for what, amount in paid
        if max(amount, others.get(what, 0)) > 0.01 * bill.total
    ]
    return ", ".join(shown) or "all of it is free"
