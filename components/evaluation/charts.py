"""Pictures of the report as inline SVG: bars with intervals, lines. Same numbers, same bytes.

Drawn here rather than by a plotting library: text stays text, so the reader's own fonts show Chinese; no
font cache is built in a fresh home, and nothing depends on the fonts of the machine that ran the stage.
Colours are those of Okabe and Ito, told apart by colour-blind readers; the model is always the blue one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

MODEL_COLOUR = "#0072B2"
OTHER_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
INK, GRID = "#333", "#ddd"


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    is_model: bool = False


@dataclass(frozen=True)
class Line:
    name: str
    points: list[tuple[float, float]]


def number(value: float) -> str:
    """At most four significant digits, so that the text of a picture does not jitter."""
    return f"{value:.4g}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `wanted` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= min((m for m in (1, 2, 5, 10) if span / (step * m) <= wanted), default=10)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="inherit"><title>{escape(title)}</title>{"".join(body)}</svg>'
    )


def bars(title: str, rows: list[Bar], *, unit: str, width: int = 640) -> str:
    """Horizontal bars from zero, each with its figure and, where known, its interval as a whisker."""
    left, right, row_height, top = 190, 120, 30, 8
    height = top + row_height * len(rows) + 36
    values = [v for bar in rows for v in (bar.value, bar.high) if v is not None and math.isfinite(v)]
    high = max([*values, 1e-9]) * 1.02
    scale = (width - left - right) / high
    body = []
    for tick in ticks(0, high):
        x = left + tick * scale
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 32}" stroke="{GRID}"/>')
        body.append(_text(x, height - 18, number(tick), anchor="middle", size=11))
    body.append(_text(left + high * scale / 2, height - 3, unit, anchor="middle", size=11))
    for i, bar in enumerate(rows):
        y = top + row_height * i
        colour = MODEL_COLOUR if bar.is_model else "#b8b8b8"
        body.append(_text(left - 8, y + 19, bar.label, anchor="end"))
        body.append(
            f'<rect x="{left}" y="{y + 5}" width="{max(bar.value, 0) * scale:.1f}" height="{row_height - 11}" fill="{colour}"/>'
        )
        end = bar.value
        if bar.low is not None and bar.high is not None:
            x1, x2, middle = left + bar.low * scale, left + bar.high * scale, y + row_height / 2
            whisker = f"M{x1:.1f} {middle - 4}V{middle + 4}M{x1:.1f} {middle}H{x2:.1f}M{x2:.1f} {middle - 4}V{middle + 4}"
            body += [
                f'<path d="{whisker}" stroke="{stroke}" stroke-width="{thick}" fill="none"/>'
                for stroke, thick in (("#fff", 3), (INK, 1))
            ]
            end = max(end, bar.high)
        body.append(_text(left + end * scale + 8, y + 19, f"{bar.value:.3f}"))
    return _svg(width, height, title, body)


def columns(
    title: str,
    bins: list[str],
    series: dict[str, list[float]],
    *,
    x_label: str,
    y_label: str,
    width: int = 640,
    height: int = 280,
) -> str:
    """Upright bars side by side in each bin, one a series, with a legend above; the first is the blue one, the second hatched."""
    left, right, top, bottom = 60, 12, 34, 44
    high = max([v for values in series.values() for v in values] + [1e-9])
    scale = (height - top - bottom) / high
    step = (width - left - right) / max(len(bins), 1)
    thick = 0.8 * step / max(len(series), 1)
    body = [HATCH]
    for tick in ticks(0, high):
        y = height - bottom - tick * scale
        body.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        body.append(_text(left - 6, y + 4, number(tick), anchor="end", size=11))
    for s, (name, values) in enumerate(series.items()):
        fills = _fills(s)
        x = left + 130 * s
        body += [f'<rect x="{x}" y="6" width="14" height="14" fill="{fill}"/>' for fill in fills]
        body.append(_text(x + 20, 18, name))
        for i, value in enumerate(values):
            x = left + step * (i + 0.1) + thick * s
            box = f'x="{x:.1f}" y="{height - bottom - value * scale:.1f}" width="{thick:.1f}" height="{value * scale:.1f}"'
            body += [f"<rect {box} fill=\"{fill}\"/>" for fill in fills if value]
    for i, label in enumerate(bins):
        body.append(_text(left + step * (i + 0.5), height - bottom + 16, label, anchor="middle", size=11))
    body.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle", size=11))
    body.append(_text(width - right, 18, y_label, anchor="end", size=11))
    return _svg(width, height, title, body)


# A second mark besides colour, for print and for colour-blind readers.
HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="1.6" height="5" fill="#000" fill-opacity=".65"/></pattern></defs>'
)


def _fills(i: int) -> list[str]:
    colours = (MODEL_COLOUR, *OTHER_COLOURS)
    return [colours[i % len(colours)], *(["url(#hatch)"] if i % 2 else [])]


def lines(
    title: str, series: list[Line], *, x_label: str, y_label: str, width: int = 640, height: int = 280
) -> str:
    """Lines over a common x, named at the right; the first is the blue one."""
    series = [s for s in series if s.points]
    if not series:
        return ""
    left, right, top, bottom = 56, 150, 12, 40
    xs, ys = ([p[i] for s in series for p in s.points] for i in (0, 1))
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    y_low, y_high = y_low - 0.05 * (y_high - y_low or 1), y_high + 0.05 * (y_high - y_low or 1)
    x_scale = (width - left - right) / ((x_high - x_low) or 1)
    y_scale = (height - top - bottom) / (y_high - y_low)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x_low) * x_scale, height - bottom - (y - y_low) * y_scale

    body = []
    for tick in ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        body.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        body.append(_text(left - 6, y + 4, number(tick), anchor="end", size=11))
    for tick in ticks(x_low, x_high):
        body.append(
            _text(place(tick, y_low)[0], height - bottom + 16, number(tick), anchor="middle", size=11)
        )
    body.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle", size=11))
    body.append(_text(left, top - 1, y_label, size=11))
    names: list[float] = []
    for i, line in enumerate(series):
        colour = MODEL_COLOUR if i == 0 else OTHER_COLOURS[(i - 1) % len(OTHER_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line.points))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{_dash(i)}/>')
        y = place(*line.points[-1])[1] + 4
        while any(abs(y - other) < 14 for other in names):  # names do not lie over each other
            y += 2
        names.append(y)
        # beside a piece of the line rather than in its colour: orange letters on white cannot be read
        key = width - right + 6
        body.append(
            f'<line x1="{key}" x2="{key + 20}" y1="{y - 4:.1f}" y2="{y - 4:.1f}" stroke="{colour}" stroke-width="1.8"{_dash(i)}/>'
        )
        body.append(_text(key + 26, y, line.name))
    return _svg(width, height, title, body)


def _dash(i: int) -> str:
    """A second mark besides colour, for print."""
    return ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"', ' stroke-dasharray="8 3 2 3"')[i % 4]
