"""Plots as SVG documents."""

import math
import xml.etree.ElementTree as xml

from hashfield.export.plots import Series, plot_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_curves_and_points_lie_where_they_should() -> None:
    series = [
        Series("front", [(1e6, 30.0), (1e3, 20.0)], ["large", "small"], True),
        Series("others", [(1e5, 22.0)], ["mid <"]),
        Series("curve", [(1e3, 20.0), (1e4, 25.0), (1e5, math.nan), (-1.0, 3.0), (1e6, 30.0)]),
    ]
    root = xml.fromstring(plot_svg("Quality & size", series, "numbers", "dB", log_x=True))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"]), c.attrib["fill"]) for c in root.iter(f"{SVG}circle")]
    (large, small, mid) = circles
    assert small[0] < mid[0] < large[0] and large[1] < mid[1] < small[1]
    # Decades are equally wide: 1e5 lies at two thirds.
    assert abs((mid[0] - small[0]) / (large[0] - small[0]) - 2 / 3) < 1e-3
    assert large[2] == small[2] != mid[2] == "#ffffff"
    front, curve = (line.attrib["points"].split() for line in root.iter(f"{SVG}polyline"))
    assert len(front) == 2 and len(curve) == 3
    assert float(front[0].split(",")[0]) < float(front[1].split(",")[0])
    assert front[0] == curve[0] and front[-1] == curve[-1]
    texts = {t.text for t in root.iter(f"{SVG}text")}
    assert {"Quality & size", "numbers", "dB", "front", "others", "curve", "mid <", "small", "large"} <= texts


def test_nothing_to_draw() -> None:
    root = xml.fromstring(plot_svg("Empty", [Series("a", [(math.nan, 1.0), (0.0, 2.0)])], "x", "y", log_x=True))
    assert any(t.text == "no values" for t in root.iter(f"{SVG}text"))


def test_one_point_and_equal_values() -> None:
    root = xml.fromstring(plot_svg("One", [Series("a", [(5.0, 2.0)], ["only"]), Series("b", [(5.0, 2.0)])], "x", "y"))
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert len(places) == 2 and places[0] == places[1] and all(0 < x < 760 and 0 < y < 460 for x, y in places)
