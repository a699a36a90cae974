"""Charts: any data draw, the marks are where the numbers say, and the theme is legible."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fedsys.report
from fedsys.records import EpsilonPoint, Epsilons
from fedsys.report.charts import epsilon_chart
from fedsys.report.facts import Facts
from fedsys.report.plots import MAX_POINTS, SIZES, WIDE, Chart, Series, draw

STYLE = (Path(fedsys.report.__file__).parent / "templates" / "report.css").read_text()


def _series(*values: float) -> Series:
    return Series(label="x", value="", x=range(1, len(values) + 1), y=values)


def _chart(*series: Series, kind: str = "line", scale: str = "linear") -> Chart:
    return Chart(title="t", summary="s", series=series, kind=kind, scale=scale)


def _line(svg: str, colour: str = "--c1") -> list[tuple[float, float]]:
    """The points of the first path in a colour."""
    path = re.search(rf'<path d="([^"]*)"[^>]*stroke: var\({colour}\)', svg)
    assert path is not None
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.group(1))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("scale", ["linear", "percent", "log"])
@pytest.mark.parametrize(
    "values",
    [
        (0.5,),
        (0.0, 0.0, 0.0),
        (1.0, 1.0),
        (math.nan, 0.2, math.nan, 0.4),
        (math.nan, math.nan),
        (1e-300, 1e-290),
    ],
)
def test_any_values_draw(values: tuple[float, ...], scale: str) -> None:
    for svg in draw(_chart(_series(*values), scale=scale), "t").values():
        ElementTree.fromstring(svg)
        assert "nan" not in svg.lower()


def test_a_line_is_drawn_to_scale() -> None:
    svg = draw(_chart(_series(0.0, 1.0, 3.0)), "t")["desktop"]
    (x0, y0), (x1, y1), (x2, y2) = _line(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y2 - y1 == pytest.approx(2 * (y1 - y0), abs=0.4)
    assert y1 < y0  # upwards is larger


def test_a_gap_in_the_data_is_a_gap_in_the_line() -> None:
    svg = draw(_chart(_series(1.0, 2.0, math.nan, 2.0, 1.0)), "t")["desktop"]
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--c1\)', svg)
    assert path is not None
    assert path.group(1).count("M") == 2


def test_bars_stack() -> None:
    svg = draw(_chart(_series(1.0, 2.0), _series(3.0, 0.0), kind="bars"), "t")["desktop"]
    heights = {}
    for colour in ("--c1", "--c2"):
        first = re.search(rf'<path d="([^"]*)"[^>]*fill: var\({colour}\)', svg)
        assert first is not None
        ys = [float(number) for number in re.findall(r"-?[\d.]+", first.group(1))][1::2]
        heights[colour] = (min(ys), max(ys))
    assert heights["--c2"][1] == pytest.approx(heights["--c1"][0], abs=0.2)
    low, high = heights["--c2"]
    assert high - low == pytest.approx(3 * (heights["--c1"][1] - heights["--c1"][0]), abs=0.4)


def test_many_points_are_thinned_and_the_ends_kept() -> None:
    values = [float(t) for t in range(100_000)]
    points = _line(draw(_chart(_series(*values)), "t")["phone"])
    assert len(points) <= MAX_POINTS
    whole = _line(draw(_chart(_series(0.0, 99_999.0)), "t")["phone"])
    assert points[-1][1] == pytest.approx(whole[-1][1], abs=0.2)


def test_drawing_is_reproducible_and_sizes_are_as_stated() -> None:
    chart = _chart(_series(1.0, 2.0))
    for wide, sizes in ((False, SIZES), (True, WIDE)):
        drawings = draw(chart, "t", wide=wide)
        assert drawings == draw(chart, "t", wide=wide)
        for size, (width, height) in sizes.items():
            assert f'viewBox="0 0 {width} {height}"' in drawings[size]


def _facts(budget: float | None = 10.0) -> Facts:
    return Facts(
        mechanism="distributed-gaussian",
        unit="client",
        protocol="secure",
        sampling="poisson",
        participation=1.0,
        clip=0.3,
        noise_multiplier=0.7,
        guarantee="outsider",
        colluders=0,
        delta=1e-5,
        budget=budget,
        spent=None,
        reproducible=False,
        private=True,
        neighbours={},
        withheld=None,
        total=None,
    )


def test_views_far_apart_share_a_logarithmic_axis() -> None:
    def curve(server: float) -> list[EpsilonPoint]:
        spent = Epsilons(outsider=5.0, participant=10.0, server=server)
        return [EpsilonPoint(round=1, spent=spent)]

    (near,), (far,) = epsilon_chart(curve(20.0), _facts()), epsilon_chart(curve(200.0), _facts())
    assert (near.scale, far.scale) == ("linear", "log")
    assert "Logarithmic" in far.note
    (endless,) = epsilon_chart(curve(math.inf), _facts(budget=math.inf))
    assert [each.label for each in endless.series] == ["outsider", "participant"]
    assert "infinite: server" in endless.note
    assert endless.reference is None
    assert epsilon_chart([], _facts()) == []


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_both_themes_meet_wcag_contrast(theme: int) -> None:
    """WCAG 2.2, 1.4.3 (text 4.5:1) and 1.4.11 (marks 3:1)."""
    block = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("bg", "surface"):
        for text in ("ink", "muted", "accent", "chart-text"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for mark in ("c1", "c2", "c3", "c4", "c5", "c6", "chart-reference"):
            assert _contrast(colours[mark], colours[ground]) >= 3, (mark, ground)
    for tone in ("good", "warning", "danger", "note", "unknown"):
        assert _contrast(colours[tone], colours[f"{tone}-bg"]) >= 4.5, tone
        assert _contrast(colours["ink"], colours[f"{tone}-bg"]) >= 4.5, tone
        assert _contrast(colours[tone], colours["bg"]) >= 4.5, tone
