"""Small pictures as SVG: lines, bars, intervals and frontiers, drawn from plain numbers."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44
COLORS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626")
QUIET, INK = "#94a3b8", "#1e293b"
Points = Sequence[tuple[float, float]]


def markdown(svg: str, title: str) -> str:
    """A picture as Markdown that the Dagster UI shows."""
    data = base64.b64encode(svg.encode()).decode()
    return f"![{title}](data:image/svg+xml;base64,{data})"


@dataclass(frozen=True)
class Axis:
    """A range of values laid along a stretch of pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = (self._scaled(x) for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values, about five of them."""
        span = self.high - self.low
        if not 1e-300 < span < math.inf:
            return [self.low]
        if self.log:
            exponents = range(
                math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
            )
            marks = [10.0**e * m for e in exponents for m in (1, 2, 5)]
            return [mark for mark in marks if self.low <= mark <= self.high][:8]
        step = 10 ** math.floor(math.log10(span / 4))
        while span / step > 6:
            step *= 2 if round(step / 10 ** math.floor(math.log10(step))) != 2 else 2.5
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    dots: frozenset[str] = frozenset(),
) -> str:
    """Lines over a common x axis; the series named in `dots` are drawn as points."""
    series = {
        name: [point for point in line if all(map(math.isfinite, point))]
        for name, line in series.items()
    }
    points = [point for line in series.values() for point in line]
    if not points:
        return _frame(title, [_text(WIDTH / 2, HEIGHT / 2, "nothing to show", anchor="middle")])
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log_y = log_y and min(ys) > 0
    margin = 0 if log_y else 0.05 * (max(ys) - min(ys) or 1.0)
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = Axis(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP, log_y)
    parts = _axes(x_axis, y_axis, x_label, y_label)
    for i, (name, line) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        spots = [(x_axis.place(x), y_axis.place(y)) for x, y in line]
        if name in dots:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in spots
            ]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
            )
        parts.append(_text(WIDTH - RIGHT - 4, TOP + 14 * (i + 1), name, anchor="end", color=color))
    return _frame(title, parts)


@dataclass(frozen=True)
class Bar:
    """A labelled value, with the ends of its interval where it has one."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    strong: bool = False


def bar_chart(title: str, bars: Sequence[Bar], *, unit: str) -> str:
    """Horizontal bars with their values and intervals."""
    left, row = 150, 26
    height = TOP + row * len(bars) + BOTTOM - 12
    tops = [bar.high if math.isfinite(bar.high) else bar.value for bar in bars]
    axis = Axis(0, max([*tops, 1e-12]) * 1.02, left, WIDTH - 110)
    parts = []
    for i, bar in enumerate(bars):
        y, end = TOP + row * i, axis.place(bar.value)
        color = COLORS[0] if bar.strong else QUIET
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(0, end - left):.1f}" height="16" '
            f'fill="{color}"/>'
        )
        shown = f"{bar.value:,.4g}" if bar.value < 1000 else f"{bar.value:,.0f}"
        if math.isfinite(bar.low):
            low, high = axis.place(bar.low), axis.place(bar.high)
            parts.append(
                f'<path d="M{low:.1f} {y + 8}H{high:.1f}M{low:.1f} {y + 4}v8M{high:.1f} {y + 4}v8" '
                f'stroke="{INK}" stroke-width="1.5" fill="none"/>'
            )
            end = max(end, high)
        parts.append(_text(left - 8, y + 12, bar.label, anchor="end"))
        parts.append(_text(end + 6, y + 12, shown))
    parts.append(_text((left + WIDTH - 110) / 2, height - 8, unit, anchor="middle", color=QUIET))
    return _frame(title, parts, height)


@dataclass(frozen=True)
class Spot:
    """A labelled point of a frontier; spots of one series share a color."""

    x: float
    y: float
    label: str
    series: str
    chosen: bool = False


def pareto(spots: Sequence[Spot]) -> list[Spot]:
    """Those that no other beats: none has more x at no more y. In order of x."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (-spot.x, spot.y)):
        if not best or spot.y < best[-1].y:
            best.append(spot)
    return best[::-1]


def frontier_chart(title: str, spots: Sequence[Spot], *, x_label: str, y_label: str) -> str:
    """Spots of which more x (logarithmic) and less y is better, with the line of the best ones.

    The chosen spot is ringed. Labels that would cover another one are left out, the chosen spot's
    and those of the best ones last.
    """
    spots = [spot for spot in spots if 0 < spot.x < math.inf and math.isfinite(spot.y)]
    if not spots:
        return _frame(title, [_text(WIDTH / 2, HEIGHT / 2, "nothing to show", anchor="middle")])
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    margin = 0.12 * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 1.0
    x_axis = Axis(min(xs) / 1.3, max(xs) * 1.5, LEFT, WIDTH - RIGHT, log=True)
    y_axis = Axis(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP + 10)
    places = {spot: (x_axis.place(spot.x), y_axis.place(spot.y)) for spot in spots}
    best = pareto(spots)
    line = [places[spot] for spot in best]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    parts = _axes(x_axis, y_axis, x_label, y_label)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{QUIET}" stroke-width="1.5"/>')
    series = list(dict.fromkeys(spot.series for spot in spots))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(series)}
    taken: list[Box] = []
    for i, name in enumerate(series):  # up left, where what is slow and large would lie
        parts.append(_text(LEFT + 8, TOP + 20 + 14 * i, name, color=colors[name]))
        taken.append(_box(LEFT + 8, TOP + 20 + 14 * i, name, "start"))
    for spot, (x, y) in places.items():
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colors[spot.series]}"/>')
        radius = 9 if spot.chosen else 4
        taken.append((x - radius, y - radius, x + radius, y + radius))
        if spot.chosen:
            ring = f'r="8" fill="none" stroke="{INK}" stroke-width="2"'
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {ring}/>')
    taken += _along(line)
    for spot in sorted(spots, key=lambda spot: (not spot.chosen, spot not in best)):
        color = INK if spot.chosen else colors[spot.series]
        parts += _label(spot, places[spot], taken, is_best=spot in best, color=color)
    return _frame(title, parts)


@dataclass(frozen=True)
class Upright:
    """One of the upright axes of parallel coordinates, with the value that each line has there."""

    name: str
    values: Sequence[float | str]
    log: bool = False

    def places(self) -> list[float]:
        """Pixel of each line's value: by size if all are finite numbers, else words in order."""
        top, bottom = TOP + 16, HEIGHT - BOTTOM
        numbers = self._numbers()
        if numbers:
            axis = Axis(min(numbers), max(numbers), bottom, top, self.log and min(numbers) > 0)
            return [axis.place(number) for number in numbers]
        words = sorted(set(map(str, self.values)))
        axis = Axis(0, len(words) - 1, bottom, top)
        return [axis.place(words.index(str(value))) for value in self.values]

    def ends(self) -> tuple[str, str]:
        """What stands at the top and at the bottom."""
        if numbers := self._numbers():
            return f"{max(numbers):.4g}", f"{min(numbers):.4g}"
        words = sorted(set(map(str, self.values)))
        return words[-1], words[0]

    def _numbers(self) -> list[float]:
        is_number = all(isinstance(v, int | float) and math.isfinite(v) for v in self.values)
        return [float(value) for value in self.values] if is_number else []


def parallel_chart(
    title: str, uprights: Sequence[Upright], *, good: frozenset[int], chosen: int
) -> str:
    """Lines across upright axes, one for each thing that has a value on all of them.

    The lines in `good` are in color, above the others; the chosen one is thick, above them all.
    """
    if not uprights or not uprights[0].values:
        return _frame(title, [_text(WIDTH / 2, HEIGHT / 2, "nothing to show", anchor="middle")])
    across = Axis(0, len(uprights) - 1, LEFT + 16, WIDTH - RIGHT - 48)
    columns = [upright.places() for upright in uprights]
    numbers = range(len(columns[0]))
    parts = []
    for i in sorted(numbers, key=lambda i: (i == chosen, i in good)):
        spots = [(across.place(at), column[i]) for at, column in enumerate(columns)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        color = COLORS[1] if i == chosen else COLORS[0] if i in good else QUIET
        width = 3 if i == chosen else 1.2
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'
        )
    for at, upright in enumerate(uprights):
        x, (most, least) = across.place(at), upright.ends()
        parts.append(f'<path d="M{x:.1f} {TOP + 16}V{HEIGHT - BOTTOM}" stroke="{INK}"/>')
        parts.append(_text(x, TOP + 8, most, anchor="middle"))
        parts.append(_text(x, HEIGHT - BOTTOM + 14, least, anchor="middle"))
        parts.append(_text(x, HEIGHT - 8, upright.name, anchor="middle", color=QUIET))
    return _frame(title, parts)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _along(line: Points) -> list[Box]:
    """Small boxes that cover a line."""
    boxes = []
    for (x, y), (next_x, next_y) in pairwise(line):
        count = int(max(abs(next_x - x), abs(next_y - y)) // 4) + 1
        for i in range(count):
            at_x, at_y = x + (next_x - x) * i / count, y + (next_y - y) * i / count
            boxes.append((at_x - 1, at_y - 1, at_x + 1, at_y + 1))
    return boxes


def _label(
    spot: Spot, place: tuple[float, float], taken: list[Box], *, is_best: bool, color: str
) -> list[str]:
    """The spot's label at the first side where it covers nothing; the room it takes is noted.

    Below the line of the best ones there is nothing, so their labels go there first.
    """
    (x, y), gap = place, 12 if spot.chosen else 6
    below = [
        (x + gap, y + gap + 6, "start"),
        (x, y + gap + 10, "middle"),
        (x + gap, y + 4, "start"),
    ]
    above = [(x - gap, y - gap + 2, "end"), (x, y - gap - 1, "middle"), (x - gap, y + 4, "end")]
    near = [(x - gap, y + gap + 6, "end"), (x + gap, y - gap + 2, "start")]
    far = [(x, y + gap + 24, "middle"), (x, y - gap - 14, "middle")]
    sides = [*below, *near, *above, *far] if is_best else [*above, *near, *below, *far]
    for at_x, at_y, anchor in sides:
        box = _box(at_x, at_y, spot.label, anchor)
        is_inside = box[0] >= LEFT and box[2] <= WIDTH and TOP <= box[1] <= HEIGHT - BOTTOM - 10
        if is_inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return [_text(at_x, at_y, spot.label, anchor=anchor, color=color)]
    return []


def _box(x: float, y: float, text: str, anchor: str) -> Box:
    """The room of a text in the font's size; its letters are 6.2 pixels wide on average."""
    width = 6.2 * len(text)
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return (left, y - 9, left + width, y + 2)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _axes(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    below = HEIGHT - BOTTOM + 16
    parts = [
        _text(x_axis.place(tick), below, f"{tick:g}", anchor="middle") for tick in x_axis.ticks()
    ]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e2e8f0"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:.4g}", anchor="end"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 8, x_label, anchor="middle", color=QUIET))
    parts.append(_text(10, TOP - 8, y_label, color=QUIET))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", color: str = INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{color}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Fit for XML, which has no form for control characters and lone surrogates."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))


def _frame(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{WIDTH / 2}" y="16" text-anchor="middle" font-size="13" '
            f'font-weight="bold" fill="{INK}">{_escaped(title)}</text>',
            *parts,
            "</svg>",
        ]
    )
