"""Charts as inline SVG for pages that need no network: text, lines, bars and points, in the page's colours.

Every chart is an image with a name and a description as alternative text. Colours come from the page's
variables ``--c0`` to ``--c5``, so that light and dark pages both work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
COLOURS = 6

Numbers = Sequence[float] | np.ndarray
Series = dict[str, tuple[Numbers, Numbers]]
"""Label -> (x, y)."""
MOST_POINTS = 400
"""Points of a line, at most: more than there are pixels would only make the page larger."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns about ``most`` round numbers between ``low`` and ``high``."""
    span = max(high - low, 1e-12)
    raw = span / most
    size = 10 ** np.floor(np.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * (1 - 1e-9))
    first = np.ceil(low / step - 1e-9) * step
    return [float(v) + 0.0 for v in np.arange(first, high + step * 1e-6, step)]  # -0.0 would show its sign


class Frame:
    """Maps data to the drawing: ``x`` and ``y`` turn values into coordinates."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_range, self.y_range = _opened(x_range), _opened(y_range)

    def x(self, value: float) -> float:
        """Returns the horizontal coordinate of a value."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Returns the vertical coordinate of a value."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[float] | None = None,
        shown: Callable[[float], str] = "{:g}".format,
    ) -> str:
        """Returns grid lines, numbers and labels. x_ticks: None for round numbers. shown: the text of such a number."""
        out = []
        for value in ticks(*self.y_range, most=5):
            y = self.y(value)
            out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(*self.x_range) if x_ticks is None else x_ticks:
            out.append(
                f'<text x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                f"{escape(shown(value))}</text>"
            )
        middle = (TOP + HEIGHT - BOTTOM) / 2
        out.append(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        out.append(
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )
        return "".join(out)


def line_chart(
    series: Series,
    name: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draws lines. series: label -> (x, y), up to six. y_range: None for that of the values."""
    xs, ys = (np.concatenate([np.asarray(s[i], float) for s in series.values()]) for i in (0, 1))
    frame = Frame((xs.min(), xs.max()), y_range or (min(ys.min(), 0), ys.max()))
    body, descriptions = [frame.axes(x_label, y_label)], []
    legend = legend_top(frame, series)
    for i, (label, (x_values, y_values)) in enumerate(series.items()):
        x, y = ([float(value) for value in values] for values in (x_values, y_values))
        some = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
        points = " ".join(f"{frame.x(x[j]):.1f},{frame.y(y[j]):.1f}" for j in some)
        body.append(f'<polyline class="line s{i % COLOURS}" points="{points}"/>')
        if len(some) <= 30:
            body += [
                f'<circle class="dot s{i % COLOURS}" cx="{frame.x(x[j]):.1f}" cy="{frame.y(y[j]):.1f}" r="2.5"/>'
                for j in some
            ]
        if len(series) > 1:
            legend_y, line_y = legend + 4 + 16 * i, legend + 16 * i
            body.append(f'<line class="line s{i}" x1="{WIDTH - 130}" x2="{WIDTH - 110}" y1="{line_y}" y2="{line_y}"/>')
            body.append(f'<text x="{WIDTH - 104}" y="{legend_y}">{escape(label)}</text>')
        descriptions.append(f"{label} from {y[0]:.3g} at {x[0]:g} to {y[-1]:.3g} at {x[-1]:g}")
    return drawing(name, f"{y_label} over {x_label}: {'; '.join(descriptions)}.", "".join(body))


def legend_top(frame: Frame, series: Series) -> float:
    """Returns where the legend begins: in the upper or the lower right corner, whichever fewer lines pass."""
    right = np.linspace(0.65, 1, 20) * (frame.x_range[1] - frame.x_range[0]) + frame.x_range[0]
    lines = [np.interp(right, x, y, left=np.nan, right=np.nan) for x, y in series.values() if np.all(np.diff(x) >= 0)]
    height = (np.concatenate([*lines, [np.nan]]) - frame.y_range[0]) / (frame.y_range[1] - frame.y_range[0])
    return HEIGHT - BOTTOM - 10 - 16 * len(series) if (height > 0.6).sum() > (height < 0.4).sum() else TOP + 10


def histogram(values: np.ndarray, edges: np.ndarray, name: str, x_label: str, y_label: str) -> str:
    """Draws how many values are between neighbouring edges; the last bin includes its upper edge."""
    counts, _ = np.histogram(values, edges)
    frame = Frame((edges[0], edges[-1]), (0, max(counts.max(), 1)))
    body = [frame.axes(x_label, y_label)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        x, width, y = frame.x(low) + 0.5, frame.x(high) - frame.x(low) - 1, frame.y(count)
        body.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{frame.y(0) - y:.1f}">'
            f"<title>{low:g} to {high:g}: {count}</title></rect>"
        )
    bins = ", ".join(
        f"{low:g} to {high:g}: {count}" for count, low, high in zip(counts, edges, edges[1:], strict=False)
    )
    return drawing(name, f"{y_label} by {x_label}: {bins}.", "".join(body))


def scatter(points: np.ndarray, groups: np.ndarray, filled: np.ndarray, titles: Sequence[str], name: str) -> str:
    """Draws points (N, 2) in [0, 1]. groups: the number of each point's group, shown by colour and shape.

    filled: whether each point is filled or a ring. titles: of the points, as tooltips.
    """
    side, edge, body = WIDTH, 14, []
    for (x, y), group, full, title in zip(points, groups, filled, titles, strict=True):
        cx, cy = edge + x * (side - 2 * edge), edge + (1 - y) * (side - 2 * edge)
        shape = SHAPES[group // COLOURS % len(SHAPES)]
        body.append(
            f'<path class="point s{group % COLOURS} {"full" if full else "ring"}" '
            f'transform="translate({cx:.1f} {cy:.1f})" d="{shape}"><title>{escape(title)}</title></path>'
        )
    description = f"{len(points)} images of {len(set(groups))} groups; similar images are close together."
    return drawing(name, description, "".join(body), side)


@dataclass(frozen=True)
class Point:
    """A value with its interval at a cost above 0. label: beside it; group: its colour; front: on the frontier."""

    x: float
    y: float
    low: float
    high: float
    label: str
    group: int
    front: bool
    title: str


def round_costs(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten between two numbers above 0; their ends if there are fewer than two."""
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    inside = [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= m * 10.0**power <= high]
    return inside if len(inside) > 1 else [low, high]


def interval_chart(points: Sequence[Point], name: str, x_label: str, y_label: str, legend: Sequence[str] = ()) -> str:
    """Draws values with their intervals over costs on a logarithmic axis, those on the frontier joined by steps.

    legend: names of the groups, none for one group.
    """
    room = 1.25  # beside the outermost points, for their labels
    low, high = min(p.x for p in points) / room, max(p.x for p in points) * room
    top, bottom = max(p.high for p in points), min(p.low for p in points)
    edge = max(0.08 * (top - bottom), 0.5)
    frame = Frame((np.log10(low), np.log10(high)), (max(bottom - edge, 0), min(top + edge, 100)))
    costs = round_costs(low, high)
    body = [frame.axes(x_label, y_label, [float(np.log10(cost)) for cost in costs], lambda v: f"{10**v:.3g}")]
    front = sorted((p for p in points if p.front), key=lambda p: p.x)
    steps = [(frame.x(np.log10(p.x)), frame.y(p.y)) for p in front]
    corners = [(x, y) for (_, y), (x, _) in zip(steps, steps[1:], strict=False)]
    path = [steps[0], *(point for pair in zip(corners, steps[1:], strict=True) for point in pair)] if steps else []
    body.append(f'<polyline class="frontier" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>')
    for p in points:
        x, colour = frame.x(np.log10(p.x)), p.group % COLOURS
        body.append(
            f'<line class="whisker line s{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(p.low):.1f}" '
            f'y2="{frame.y(p.high):.1f}"/><circle class="dot s{colour}" cx="{x:.1f}" cy="{frame.y(p.y):.1f}" r="4">'
            f"<title>{escape(p.title)}</title></circle>"
            f'<text class="halo" x="{x + 6:.1f}" y="{frame.y(p.y) - 6:.1f}">{escape(p.label)}</text>'
        )
    for i, label in enumerate(legend):
        y = HEIGHT - BOTTOM - 12 - 16 * (len(legend) - 1 - i)
        body.append(f'<circle class="dot s{i % COLOURS}" cx="{WIDTH - 110}" cy="{y - 4}" r="4"/>')
        body.append(f'<text x="{WIDTH - 102}" y="{y}">{escape(label)}</text>')
    description = "; ".join(f"{p.title}: {p.y:.1f} ({p.low:.1f} to {p.high:.1f}) at {p.x:.3g}" for p in points)
    return drawing(name, f"{y_label} over {x_label}: {description}.", "".join(body))


SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "M-4 -4h8v8h-8z", "M0 -5L5 4H-5z", "M0 -5L5 0L0 5L-5 0z")


def drawing(name: str, description: str, body: str, height: int = HEIGHT) -> str:
    """Returns the SVG element: an image with a name and a description."""
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}. '
        f'{escape(description)}">{body}</svg>'
    )


def _opened(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, limits)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
