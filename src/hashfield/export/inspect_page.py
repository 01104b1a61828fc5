"""The page of `hashfield inspect`: findings, a plan of the cameras, and every photo with its figures. No scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

from hashfield.export.report import page_start, picture_uri, write_page

_PICTURE: Final = 240  # pixels of the longer side of a photo on the page
_MOST_POINTS: Final = 1500

_STYLE: Final = """
:root { --bad: #b3261e; --bad-card: #fbeceb; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --bad-card: #3a1f1e; } }
ul.findings { list-style: none; padding: 0; margin: 0; }
ul.findings li { border-left: 4px solid var(--bad); background: var(--card); padding: .55rem .9rem; margin: 0 0 .5rem;
  border-radius: 0 .4rem .4rem 0; overflow-wrap: anywhere; }
ul.findings b { font-weight: 600; }
ul.findings span { color: var(--soft); display: block; }
.none { color: var(--soft); }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(215px, 1fr)); gap: .9rem; }
.photo { background: var(--card); border-radius: .6rem; padding: .6rem; font-size: .82rem; line-height: 1.35; }
.photo.bad { background: var(--bad-card); outline: 2px solid var(--bad); }
.photo img { width: 100%; height: 150px; object-fit: contain; background: transparent; margin-bottom: .4rem; }
.photo h3 { font-size: .88rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.photo dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: 0; }
.photo dt { color: var(--soft); }
.photo dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.bad-value, .why { color: var(--bad); font-weight: 600; }
.why { margin: .3rem 0 0; }
.plan { max-width: 640px; overflow: visible; }
.plan .box { fill: none; stroke: var(--soft); stroke-dasharray: 6 4; stroke-width: 1.5; }
.plan .point { fill: var(--soft); opacity: .35; }
.plan .camera { stroke: var(--mark); stroke-width: 1.6; fill: var(--mark); fill-opacity: .25; }
.plan .camera.bad { stroke: var(--bad); fill: var(--bad); fill-opacity: .6; }
"""


@dataclass(frozen=True)
class PageFinding:
    """Something wrong, for people."""

    about: str
    """Names of photos, or empty."""
    text: str
    remedy: str


@dataclass(frozen=True)
class PhotoCard:
    """One photo on the page."""

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    figures: Sequence[tuple[str, str, bool]]
    """Name, value, and whether the value is a bad one."""
    why: Sequence[str] = ()
    """What is wrong with it."""


@dataclass(frozen=True)
class Plan:
    """Cameras and the training box from above; x to the right, y up."""

    positions: Float64[np.ndarray, "n 2"]
    directions: Float64[np.ndarray, "n 2"]
    names: Sequence[str]
    is_bad: Bool[np.ndarray, " n"]
    box: Float64[np.ndarray, "8 2"]
    """The corners of the training box, in any order."""
    points: Float64[np.ndarray, "m 2"] | None = None


def write_inspection(
    path: Path,
    title: str,
    findings: Sequence[PageFinding],
    facts: Sequence[tuple[str, str]],
    plan: Plan,
    photos: Sequence[PhotoCard],
) -> Path:
    """Write the page and return its path.

    Args:
        path: Is replaced where it is there.
        title: Heading.
        findings: What is wrong, the gravest first.
        facts: Name and value of what is known about the whole.
        plan: Cameras from above.
        photos: Every photo.

    Raises:
        DataError: the page cannot be written.
    """
    parts = page_start(title, _STYLE)
    parts.append(f"<h2>Findings ({len(findings)})</h2>")
    if findings:
        rows = []
        for f in findings:
            about = f"<b>{escape(f.about)}</b> " if f.about else ""
            rows.append(f"<li>{about}{escape(f.text)}<span>{escape(f.remedy)}</span></li>")
        parts.append(f'<ul class="findings">{"".join(rows)}</ul>')
    else:
        parts.append('<p class="none">Nothing that needs a remedy was found.</p>')
    parts.append(
        f"<h2>Cameras from above</h2><figure>{plan_svg(plan)}<figcaption>{_caption(plan)}</figcaption></figure>"
    )
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    parts.append(f"<h2>Facts</h2><table>{rows}</table>")
    parts.append(f'<h2>Photos ({len(photos)})</h2><div class="photos">{"".join(map(_card, photos))}</div>')
    return write_page(path, parts)


def _card(photo: PhotoCard) -> str:
    image = Image.fromarray(photo.picture)
    image.thumbnail((_PICTURE, _PICTURE), reducing_gap=2.0)
    figures = "".join(
        f"<dt>{escape(name)}</dt><dd{' class=bad-value' if is_bad else ''}>{escape(value)}</dd>"
        for name, value, is_bad in photo.figures
    )
    why = "".join(f'<p class="why">{escape(text)}</p>' for text in photo.why)
    name = escape(photo.name, quote=True)
    kind, source = "photo bad" if photo.why else "photo", picture_uri(np.asarray(image), quality=75)
    return f'<div class="{kind}"><img alt="{name}" src="{source}"><h3>{name}</h3><dl>{figures}</dl>{why}</div>'


def _caption(plan: Plan) -> str:
    points = ", grey: points of the sparse model" if plan.points is not None else ""
    bad = ", red: photos with findings" if plan.is_bad.any() else ""
    return f"Dashed: the training box{points}{bad}. Cameras far outside are drawn at the edge."


def plan_svg(plan: Plan) -> str:
    """Cameras, points and box from above as an SVG element: x to the right, y up."""
    side, margin = 600.0, 30.0
    middle = plan.box.mean(axis=0)
    half = float(np.abs(plan.box - middle).max())
    reach = np.abs(plan.positions - middle).max(axis=1)
    # as far as nearly all cameras; the box where it is not much larger than that
    extent = float(np.quantile(reach, 0.9)) * 1.25 if len(reach) else half
    extent = max(extent, min(half * 1.05, 2 * extent)) or 1.0

    def place(xy: np.ndarray) -> np.ndarray:
        flat = np.clip((xy - middle) / extent, -1.08, 1.08) * (side / 2 - margin)
        return np.stack([side / 2 + flat[:, 0], side / 2 - flat[:, 1]], axis=1)

    out = [f'<svg class="plan" viewBox="0 0 {side:.0f} {side:.0f}" role="img" aria-label="cameras from above">']
    if plan.points is not None and len(plan.points):
        some = plan.points[:: max(1, len(plan.points) // _MOST_POINTS)]
        some = some[np.abs(some - middle).max(axis=1) <= extent]
        out += [f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="1.4"/>' for x, y in place(some)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in place(_outline(plan.box)))
    out.append(f'<polygon class="box" points="{corners}"/>')
    length = np.linalg.norm(plan.directions, axis=1, keepdims=True)
    ahead = plan.directions / np.maximum(length, 1e-9) * np.minimum(1, length + 0.25)
    for k in np.argsort(plan.is_bad, kind="stable").tolist():  # those with findings on top
        (x, y), (a, b) = place(plan.positions[k : k + 1])[0], ahead[k] * (1, -1) * 16
        ends = ((x, y), (x + a - 0.45 * b, y + b + 0.45 * a), (x + a + 0.45 * b, y + b - 0.45 * a))
        corners = " ".join(f"{u:.1f},{v:.1f}" for u, v in ends)
        kind = "camera bad" if plan.is_bad[k] else "camera"
        out.append(f'<polygon class="{kind}" points="{corners}"><title>{escape(plan.names[int(k)])}</title></polygon>')
    out.append("</svg>")
    return "".join(out)


def _outline(points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    """The corners of the convex hull, in order around it."""
    order = points[np.lexsort((points[:, 1], points[:, 0]))]
    sides = []
    for row in (order, order[::-1]):
        side: list[np.ndarray] = []
        for point in row:
            while len(side) > 1 and _turn(side[-2], side[-1], point) <= 0:
                side.pop()
            side.append(point)
        sides += side[:-1]
    return np.array(sides)


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
