"""The report: whole, self-contained, escaped, and drawn to scale."""

import base64
import io
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashfield.errors import DataError
from hashfield.export.report import curve_svg, picture_uri, write_report
from hashfield.export.video import write_mp4

VOID = {"meta", "img", "line", "polyline", "circle", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong order; collects every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


def parsed(text: str) -> Balanced:
    page = Balanced()
    page.feed(text)
    page.close()
    assert not page.open
    return page


@pytest.fixture
def page(tmp_path: Path) -> str:
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    write_mp4(tmp_path / "v.mp4", [picture[:16, :16]] * 3)
    path = write_report(
        tmp_path / "out" / "report.html",
        "run <1> & more",
        [("scene", "a & b <script>alert(1)</script>")],
        {"loss": [(i, 1.0 / i) for i in range(1, 50)], "none": []},
        [('a "view"', picture), ("grey", picture[..., :1]), ("clear", np.dstack([picture, picture[..., :1]]))],
        tmp_path / "v.mp4",
        headline=[("PSNR", "31.2 dB")],
    )
    assert os.listdir(path.parent) == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_holds_everything(page: str):
    found = parsed(page)
    assert {"svg", "img", "video", "table"} <= set(found.tags)
    assert found.tags.count("img") == 3 and "31.2 dB" in page


def test_nothing_is_loaded_and_nothing_runs(page: str):
    found = parsed(page)
    assert "script" not in found.tags
    for name, value in found.attributes:
        assert name not in ("href", "onload", "onclick")
        if name == "src":
            assert value.startswith("data:")
    assert "http://" not in page and "https://" not in page and "url(" not in page
    assert "default-src 'none'" in page


def test_text_is_escaped(page: str):
    assert "<h1>run &lt;1&gt; &amp; more</h1>" in page
    assert "a &amp; b &lt;script&gt;" in page and 'alt="a &quot;view&quot;"' in page


def test_light_and_dark_are_both_styled(page: str):
    assert "prefers-color-scheme: dark" in page and "color-scheme: light dark" in page


def test_pictures_survive_inside():
    picture = np.full((8, 9, 3), (200, 30, 90), np.uint8)
    head, data = picture_uri(picture).split(",")
    assert re.fullmatch(r"data:image/(webp|png);base64", head)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert back.shape == picture.shape and np.abs(back.astype(int) - picture).max() < 12


def points_of(svg: str) -> list[tuple[float, float]]:
    found = re.search(r'points="([^"]+)"', svg)
    assert found
    return [tuple(float(v) for v in pair.split(",")) for pair in found.group(1).split()]  # type: ignore[misc]


def test_a_straight_line_is_drawn_straight_and_inside():
    placed = np.array(points_of(curve_svg("y", [(x, 3.0 * x + 7.0) for x in range(11)])))
    assert np.allclose(np.diff(placed, axis=0), np.diff(placed, axis=0)[0], atol=0.11)
    assert (placed[:, 0] >= 58).all() and (placed[:, 0] <= 460).all()
    assert (placed[:, 1] >= 34).all() and (placed[:, 1] <= 210).all()
    assert placed[0, 1] > placed[-1, 1]  # up is up


def test_an_exponential_gets_a_logarithmic_axis():
    svg = curve_svg("loss", [(i, 10.0**-i) for i in range(6)])
    placed = np.array(points_of(svg))
    assert np.allclose(np.diff(placed[:, 1]), np.diff(placed[:, 1])[0], atol=0.11)
    assert ">0.01<" in svg and ">1<" in svg


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(3, 4)],
        [(1, 5.0), (2, 5.0), (3, 5.0)],
        [(1, math.nan), (2, math.inf), (3, 1.0), (4, 2.0)],
        [(0, 0.0), (1, 0.0)],
        [(0, -1e-9), (1e9, 1e12)],
        [(0, 1e-300), (1, 1e300)],
    ],
)
def test_odd_curves_are_drawn_too(points: list[tuple[float, float]]):
    svg = curve_svg("<odd>", points)
    parsed(svg)
    assert "&lt;odd&gt;" in svg and "nan" not in svg and "inf" not in svg


def test_long_curves_are_averaged_and_keep_their_ends():
    placed = points_of(curve_svg("y", [(i, float(i % 7)) for i in range(20_000)]))
    assert len(placed) == 300
    assert placed[0][0] == pytest.approx(58, abs=0.1)


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="cannot read the video"):
        write_report(tmp_path / "r.html", "x", [], video=tmp_path / "none.mp4")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(tmp_path / "file" / "r.html", "x", [])
    assert os.listdir(tmp_path) == ["file"]
