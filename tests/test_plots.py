"""The report's drawings: lines and points where they belong, labels that can be read, and nothing that does not fit the page."""

import re

from longshort.report.pareto import Box, Point, cut, draw, front
from longshort.report.plots import Line, Series, curves, evenly, extremes, running_mean


def test_lines_by_hand():
    assert (
        running_mean([1, 3, 5, 9], 2) == [1, 2, 4, 7]
        and running_mean([4, 2], 1) == [4, 2]
        and running_mean([3, 5], 9) == [3, 4]
    )
    spike = Series(list(range(8)), [0, 0, 9, 0, 0, -9, 0, 1])
    assert evenly(spike, 3) == ([0, 4, 7], [0, 0, 1]) and evenly(spike, 8) == spike
    assert extremes(spike, 4) == ([0, 2, 5, 7], [0, 9, -9, 1])  # the lowest and highest of each half
    line = Line(smooth=Series([0, 1], [0, 1]), raw=Series([0, 1], [1, 0]), colour="long", dashed=True)
    drawing = curves("c", [line], title='Accuracy <"&', low=0, high=1, log=False)
    assert drawing.startswith(
        '<svg class="plot" viewBox="0 0 400 200" role="img" aria-label="Accuracy &lt;&#34;&amp;">'
    )
    assert "<title>Accuracy &lt;&#34;&amp;</title>" in drawing
    paths = re.findall(r'd="([^"]*)" style="fill: none; ([^"]*)"', drawing.replace("\n", " "))
    # 346 wide from 46, a twentieth free on both sides; 168 high from 176 up to 8
    assert (
        "M 61.7 176 L 376.3 8 ",
        "stroke-dasharray: 5.8,4; stroke-dashoffset: 0; stroke: var(--long); stroke-width: 1.8",
    ) in paths
    assert ("M 61.7 8 L 376.3 176 ", "stroke: var(--long); stroke-opacity: 0.3; stroke-width: 0.8; ") in paths
    assert not re.search(r"#[0-9a-f]{6}|DejaVu|<style|<metadata|rotate\(-0|clip", drawing)


def test_a_drawing_is_thinned_and_keeps_its_colours():
    lines = [
        Line(smooth=Series(range(20_000), [i % 7 + i % 11 for i in range(20_000)]), colour=f"run-{n}") for n in range(8)
    ]
    drawing = curves("c", lines, title="T", low=0, high=None, log=False)
    assert 10_000 < len(drawing) < 60_000 and all(f"var(--run-{n})" in drawing for n in range(8))
    assert 200 < max(path.count("L") for path in re.findall(r' d="([^"]*)"', drawing)) < 300  # 2,400 points for 8 lines


def point(x: float, y: float, label: str = "", **more) -> Point:
    return Point(
        **(
            {
                "x": x,
                "y": y,
                "low": y,
                "high": y,
                "title": f"{label} there",
                "label": label,
                "colour": "ink",
                "baseline": False,
            }
            | more
        )
    )


def test_the_front_by_hand():
    a, b, c, d, e = (point(x, y) for x, y in ((10, 0.5), (10, 0.6), (20, 0.6), (30, 0.9), (40, 0.8)))
    assert front([e, d, c, b, a]) == [b, d]  # a is beaten at its own cost, c costs more than b for the same
    assert Box(0, 0, 4, 4).shared(Box(3, 2, 9, 9)) == 2 and Box(0, 0, 1, 1).shared(Box(2, 0, 3, 1)) == 0
    assert cut("one\n two") == "one two" and cut("x" * 31) == "x" * 29 + "…"


def test_labels_keep_out_of_each_others_way():
    crowd = [
        point(20, 0.5, "first system"),
        point(21, 0.505, "second system"),
        point(20.4, 0.51, "third system"),
        point(80, 0.9, "<b>far"),
    ]
    drawing = draw(
        "s", [*crowd, point(80, 0.9, "<b>far"), point(30, 0.6)], title="T", x_label="cost", width=900, height=420
    )
    places = re.findall(
        r'<text style="font-size: 11px; text-anchor: (\w+)[^"]*" x="([\d.]+)" y="([\d.]+)">([^<]*)</text>', drawing
    )
    labels = {text: (anchor, float(x), float(y)) for anchor, x, y, text in places if "system" in text or "far" in text}
    assert list(labels) == [
        "&lt;b&gt;far",
        "third system",
        "second system",
        "first system",
    ]  # the best is placed first, twins once
    boxes = []
    for text, (anchor, x, y) in labels.items():
        width = 6.05 * len(text)
        left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
        boxes.append(Box(left, y - 9, left + width, y + 3))
    assert [one.shared(other) for i, one in enumerate(boxes) for other in boxes[:i]] == [0] * 6
    assert "<title>&lt;b&gt;far there</title>" in drawing and drawing.count("<g><title>") == 6
