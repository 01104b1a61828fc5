"""One self-contained HTML page about a run: facts, curves, pictures, a video. No scripts, nothing loaded."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from hashfield.aside import aside_of
from hashfield.errors import DataError

Points = Sequence[tuple[float, float]]

_MAX_POINTS: Final = 300
_LOG_RATIO: Final = 30.0  # largest to smallest value from which a curve gets a logarithmic axis

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1d2126; --soft: #5c6670; --line: #dde2e7; --page: #ffffff;
  --card: #f5f7f9; --mark: #2a6fb0; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --soft: #98a3ae; --line: #333b44;
  --page: #15181c; --card: #1d2228; --mark: #6db3f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem; }
.cards div { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.cards span { display: block; color: var(--soft); font-size: .85rem; }
.cards b { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 400; width: 15rem; }
td { font-variant-numeric: tabular-nums; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.2rem; }
figure { margin: 0 0 1.4rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .35rem; }
img, video { display: block; max-width: 100%; height: auto; border-radius: .4rem; background: #fff; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
svg .name { fill: var(--text); font-size: 14px; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .data { stroke: var(--mark); stroke-width: 2; fill: none; stroke-linejoin: round; }
svg .dot { fill: var(--mark); }
"""


def write_report(
    path: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    curves: Mapping[str, Points] | None = None,
    images: Sequence[tuple[str, UInt8[np.ndarray, "h w c"]]] = (),
    video: Path | None = None,
    *,
    headline: Sequence[tuple[str, str]] = (),
    x_label: str = "step",
) -> Path:
    """Write a page that holds everything inside itself, and return its path; it is written aside, then renamed.

    Args:
        path: its folder is made where missing, an old file is replaced.
        title: heading and window title.
        facts: (name, value) rows of the table.
        curves: name -> points (x, y); points that are not finite are left out. A curve whose values are all
            above 0 and far apart gets a logarithmic axis.
        images: (caption, picture of 1, 3 or 4 channels).
        video: an mp4 file to put inside.
        headline: (name, value) of the few figures shown large.
        x_label: what x of the curves counts.

    Raises:
        DataError: the video cannot be read or the page not written.
    """
    parts = page_start(title)
    if headline:
        cards = "".join(f"<div><span>{escape(n)}</span><b>{escape(v)}</b></div>" for n, v in headline)
        parts.append(f'<div class="cards">{cards}</div>')
    if video is not None:
        parts.append(f"<h2>Video</h2><figure>{_video_element(video)}</figure>")
    if images:
        parts.append("<h2>Pictures</h2>")
        for caption, picture in images:
            alt = escape(caption, quote=True)
            parts.append(
                f'<figure><img alt="{alt}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
                f'src="{picture_uri(picture)}"><figcaption>{escape(caption)}</figcaption></figure>'
            )
    if curves:
        drawn = "".join(f"<div>{curve_svg(name, points, x_label)}</div>" for name, points in curves.items())
        parts.append(f'<h2>Curves</h2><div class="curves">{drawn}</div>')
    if facts:
        rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in facts)
        parts.append(f"<h2>Facts</h2><table>{rows}</table>")
    return write_page(path, parts)


def page_start(title: str, style: str = "") -> list[str]:
    """The beginning of a page that holds everything inside itself, up to its heading.

    Args:
        title: Heading and window title.
        style: CSS rules beside those that all pages have.
    """
    return [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; media-src data:; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]


def write_page(path: Path, parts: Sequence[str]) -> Path:
    """Write a page that `page_start` began; it is written aside, then renamed.

    Args:
        path: Its folder is made where missing, an old file is replaced.
        parts: The page, without its end.

    Raises:
        DataError: the page cannot be written.
    """
    aside = aside_of(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text("\n".join([*parts, "</body></html>\n"]), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise DataError(f"{path}: cannot write the report: {error.strerror or error}") from error
    return path


def picture_uri(picture: UInt8[np.ndarray, "h w c"], *, quality: int = 90) -> str:
    """A picture as a data URI: WebP where Pillow has it, else PNG."""
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    buffer = io.BytesIO()
    if features.check("webp"):
        image.save(buffer, format="WEBP", quality=quality, method=4)
        kind = "webp"
    else:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def curve_svg(name: str, points: Points, x_label: str = "step") -> str:
    """A curve as an SVG element with axes, ticks and labels; colours come from the page's style.

    Args:
        name: shown above it; its unit belongs into it.
        points: (x, y) by rising x; long lists are averaged down to 300 points.
        x_label: what x counts.
    """
    width, height = 460, 250
    left, right, top, bottom = 58, 28, 34, 40
    label = escape(name, quote=True)
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    out.append(f'<text class="name" x="{left}" y="18">{escape(name)}</text>')
    xs, ys = _averaged(points)
    if len(xs) == 0:
        out.append(f'<text x="{left}" y="{height / 2:.0f}">no values</text></svg>')
        return "".join(out)
    logarithmic = min(ys) > 0.0 and max(ys) / min(ys) > _LOG_RATIO
    values = [math.log10(y) for y in ys] if logarithmic else ys
    x_ticks = ticks(min(xs), max(xs), 6)
    y_ticks = log_ticks(min(values), max(values)) if logarithmic else ticks(min(values), max(values), 5)
    x_low, x_high = min(xs[0], x_ticks[0]), max(xs[-1], x_ticks[-1])
    y_low, y_high = min(min(values), y_ticks[0]), max(max(values), y_ticks[-1])

    def place_x(x: float) -> float:
        return left + (width - left - right) * (x - x_low) / ((x_high - x_low) or 1.0)

    def place_y(y: float) -> float:
        return height - bottom - (height - top - bottom) * (y - y_low) / ((y_high - y_low) or 1.0)

    for tick in y_ticks:
        y = place_y(tick)
        text = number_text(10.0**tick if logarithmic else tick)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        x = place_x(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{height - bottom}" y2="{height - bottom + 4}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{number_text(tick)}</text>')
    middle = (left + width - right) / 2
    out.append(f'<text x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    placed = [f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(xs, values, strict=True)]
    if len(placed) == 1:
        x, y = placed[0].split(",")
        out.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
    else:
        out.append(f'<polyline class="data" points="{" ".join(placed)}"/>')
    out.append("</svg>")
    return "".join(out)


def _video_element(video: Path) -> str:
    try:
        data = video.read_bytes()
    except OSError as error:
        raise DataError(f"{video}: cannot read the video: {error.strerror or error}") from error
    encoded = base64.b64encode(data).decode("ascii")
    return f'<video controls loop muted autoplay playsinline src="data:video/mp4;base64,{encoded}"></video>'


def _averaged(points: Points) -> tuple[list[float], list[float]]:
    """Finite points, in runs of equal length averaged to at most `_MAX_POINTS`; first and last stay."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= _MAX_POINTS:
        return [x for x, _ in finite], [y for _, y in finite]
    inner = np.array_split(np.array(finite[1:-1]), _MAX_POINTS - 2)
    mean = np.array([finite[0], *(part.mean(axis=0) for part in inner), finite[-1]])
    return mean[:, 0].tolist(), mean[:, 1].tolist()


def ticks(low: float, high: float, n: int) -> list[float]:
    """About n round numbers from low to high, both ends enclosed.

    Args:
        low: Least value shown.
        high: Largest value shown.
        n: How many steps are wanted, about.
    """
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Whole powers of ten that enclose [low, high] (both are logarithms), thinned to at most six steps."""
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    step = max(1, math.ceil((last - first) / 6))
    return [float(i) for i in range(first, last + step, step)]


def number_text(value: float) -> str:
    """A tick's label: no more digits than it needs."""
    if value != 0.0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.6g}"
