"""Plots as SVG files that stand alone: several curves, or labelled points with the best of them joined."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from hashfield.export.report import log_ticks, number_text, ticks

_COLORS: Final = (
    "#2a6fb0", "#d1662b", "#2f8f5b", "#b03a5b", "#7b57b8", "#8a6d1f", "#1f8a8a", "#5c6670",
)  # fmt: skip
_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 44, 52


@dataclass(frozen=True)
class Series:
    """What one colour of a plot shows."""

    name: str
    """Name in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y); those that are not finite are left out."""
    labels: Sequence[str] = ()
    """Text beside each point; without any the points are joined instead of drawn."""
    is_marked: bool = False
    """Labelled points that are also joined and filled: a front."""


def plot_svg(title: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """A plot as an SVG document.

    Args:
        title: Above it.
        series: Each in a colour of its own.
        x_label, y_label: With units.
        log_x: Logarithmic x axis; points with x <= 0 are left out.
    """
    drawn: list[tuple[Series, list[tuple[float, float, str]]]] = []
    for one in series:
        labels = list(one.labels) or [""] * len(one.points)
        kept = [
            (math.log10(x) if log_x else x, y, label)
            for (x, y), label in zip(one.points, labels, strict=True)
            if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)
        ]
        drawn.append((one, kept))
    every = [point for _, points in drawn for point in points]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#1d2126">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    if not every:
        out.append(f'<text x="{_LEFT}" y="{_HEIGHT // 2}">no values</text></svg>')
        return "\n".join(out) + "\n"
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs), 6)
    y_ticks = ticks(min(ys), max(ys), 6)

    def place_x(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - x_ticks[0]) / ((x_ticks[-1] - x_ticks[0]) or 1.0)

    def place_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - y_ticks[0]) / ((y_ticks[-1] - y_ticks[0]) or 1.0)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in y_ticks:
        y = place_y(tick)
        out.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dde2e7"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick)}</text>')
    for tick in x_ticks:
        x = place_x(tick)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="#eef1f4"/>')
        text = number_text(10.0**tick if log_x else tick)
        out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + right) / 2
    out.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>')
    out.append(
        f'<text transform="translate(18 {(_TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    for k, (one, points) in enumerate(drawn):
        color = _COLORS[k % len(_COLORS)]
        dashes = "" if k < len(_COLORS) else ' stroke-dasharray="5 3"'
        ordered = sorted(points) if one.is_marked else points
        if len(points) > 1 and (one.is_marked or not one.labels):
            path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y, _ in ordered)
            out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>')
        if one.labels or len(points) == 1:
            for x, y, label in points:
                px, py = place_x(x), place_y(y)
                fill = color if one.is_marked or not one.labels else "#ffffff"
                out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{fill}" stroke="{color}"/>')
                out.append(f'<text x="{px + 7:.1f}" y="{py - 6:.1f}" font-size="11">{escape(label)}</text>')
        top = _TOP + 10 + 18 * k
        out.append(f'<rect x="{right + 16}" y="{top - 8}" width="10" height="10" fill="{color}"/>')
        out.append(f'<text x="{right + 32}" y="{top + 1}">{escape(one.name)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
