"""The figure of sizes: the numbers of compare, at the sizes and FLOPs that they are of."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from figure_tools import at, caption, legend, pages, reason
from matplotlib.axes import Axes
from size_store import sizes

from dsabench.figures.catalogue import fitting
from dsabench.figures.data import FigureData


def points(axes: Axes, marker: str) -> np.ndarray:
    (line,) = (line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) > 1)
    return np.array(line.get_xydata())


def test_points_are_those_of_compare(of_sizes: FigureData) -> None:
    (figure,) = pages("sizes", of_sizes)
    gap, equal, loss = figure.axes
    (ladder,) = of_sizes.comparison.sizes
    assert points(gap, "s") == pytest.approx(np.array([(p.size, p.difference.mean) for p in ladder.points]))
    same = [(p.flops, p.same_flops.mean) for p in ladder.points if p.same_flops.n]
    assert points(equal, "s") == pytest.approx(np.array(same))
    assert points(loss, "o") == pytest.approx(np.array([(p.baseline_flops, p.baseline_mean) for p in ladder.points]))
    assert points(loss, "s") == pytest.approx(np.array([(p.flops, p.mean) for p in ladder.points]))
    assert legend(figure) == ["dense", "DSA", "no difference", "margin"]
    assert gap.get_ylim() == equal.get_ylim()
    assert "3 seeds a size" in caption(figure)


def test_the_line_has_the_slope_that_is_tested(of_sizes: FigureData) -> None:
    (figure,) = pages("sizes", of_sizes)
    (slope,) = (one.slope for one in of_sizes.comparison.sizes)
    (line,) = (line for line in figure.axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 5)
    x, y = np.array(line.get_xydata()).T
    assert slope is not None
    assert (y[-1] - y[0]) / np.log10(x[-1] / x[0]) == pytest.approx(slope.slope)


def test_the_fitted_curve_passes_the_means(of_sizes: FigureData) -> None:
    (figure,) = pages("sizes", of_sizes)
    loss = figure.axes[2]
    lines = [line for line in loss.lines if len(line.get_xdata()) == 100]
    for line, marker in zip(lines, "os", strict=True):
        x, y = points(loss, marker).T
        assert np.interp(x, *np.array(line.get_xydata()).T) == pytest.approx(y, abs=0.01)


def test_a_curve_that_failed_is_not_drawn(tmp_path: Path) -> None:
    sizes(tmp_path / "runs", gap=lambda x: 0.0, curve=(3.0, -0.1, 0.3))
    (figure,) = pages("sizes", at(tmp_path / "runs"))
    assert not [line for line in figure.axes[2].lines if len(line.get_xdata()) == 100]


def test_labels_of_sizes_do_not_touch(of_sizes: FigureData) -> None:
    (figure,) = pages("sizes", of_sizes)
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        assert len(labels) >= 3
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_it_is_drawn_of_sizes_alone(of_sizes: FigureData, shown: FigureData) -> None:
    assert "sizes" in fitting(of_sizes)
    assert "sizes" not in fitting(shown)
    assert "at least three sizes" in reason("sizes", shown)
