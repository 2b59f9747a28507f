"""The figure of conversions: whose loss stands where, labels that do not touch, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
from figure_tools import DENSE, at, boxes, caption, pages, reason
from hypothesis import given
from hypothesis import strategies as st

from dsabench.figures.catalogue import fitting
from dsabench.figures.data import FigureData
from dsabench.figures.end_labels import spread
from dsabench.store import load_curves, load_runs


def names(figure: object) -> list[str]:
    return [text.get_text() for text in figure.axes[1].texts]  # type: ignore[attr-defined]


def test_the_parents_curve_comes_first_and_children_part_from_its_end(children: FigureData) -> None:
    (figure,) = pages("conversion", children)
    whole, since = figure.axes
    store = children.scope.store
    runs = load_runs(store).set_index("run_id")
    past = 2000 * 4096 / 1e6
    parents = runs.index[~runs.index.isin(children.runs["run_id"])]
    curve = load_curves(store, list(parents)).frame
    curve = curve[curve["step"] > 0].groupby("step")["val_loss"].mean()
    drawn = whole.lines[0]
    assert drawn.get_xdata() == pytest.approx(curve.index * 4096 / 1e6)
    assert drawn.get_ydata() == pytest.approx(curve)
    assert drawn.get_xdata()[-1] == pytest.approx(past)
    starts = [line.get_xdata()[0] for line in whole.lines[1:6] if line.get_linestyle() == "-"]
    assert starts == pytest.approx([past] * 3)
    means = [line for line in since.lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert sorted(line.get_ydata()[-1] for line in means) == pytest.approx([0.0, 0.1, 0.1])
    assert (
        names(figure) == ["dense, from scratch (below)", "DSA, from scratch (below)"][::-1] or len(names(figure)) == 5
    )


def test_every_line_has_its_name_beside_it(children: FigureData) -> None:
    (figure,) = pages("conversion", children)
    assert {name.replace("\n", " ") for name in names(figure)} == {
        "dense continued", "DSA", "random", "dense, from scratch", "DSA, from scratch",
    }  # fmt: skip
    assert "n = 3 seeds; bands: lowest to highest seed" in caption(figure)


def test_it_is_drawn_of_children_alone(children: FigureData, shown: FigureData) -> None:
    assert "conversion" in fitting(children)
    assert "conversion" not in fitting(shown)
    assert "no finished run starts from a trained model" in reason("conversion", shown)


def test_a_parent_of_another_store_has_no_curve_and_its_loss_still_counts(tmp_path: Path) -> None:
    ids = synthetic.family(tmp_path, scratch=False)
    for path in tmp_path.glob("dense-L*"):
        if path.name not in ids:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    (figure,) = pages("conversion", at(tmp_path))
    assert "its curve is not here" in caption(figure)
    ends = [
        line.get_ydata()[-1]
        for line in figure.axes[1].lines
        if line.get_linestyle() == "-" and line.get_marker() == "o"
    ]
    assert ends == pytest.approx([-0.1] * 3)


@pytest.mark.parametrize(("worst", "scale"), [(0.09, "linear"), (0.11, "symlog"), (1.3, "symlog"), (-0.3, "symlog")])
def test_a_control_that_fails_leaves_room_for_the_margin(tmp_path: Path, worst: float, scale: str) -> None:
    """Differences within the margin have a quarter of the panel at least, and every end is inside."""
    synthetic.family(tmp_path, gain=lambda spec: worst if spec.attention.kind == "random" else 0.0, scratch=False)
    (figure,) = pages("conversion", at(tmp_path))
    right = figure.axes[1]
    inside = right.transScale + right.transLimits
    low, high, end = (inside.transform((0, y))[1] for y in (-0.02, 0.02, worst))
    assert right.get_yscale() == scale
    assert high - low > 0.25 and 0 <= end <= 1
    assert ("logarithmic" in caption(figure)) == (scale == "symlog")


def test_many_variants_are_spread_over_pages_and_no_label_touches_another(tmp_path: Path) -> None:
    attentions = [
        DENSE,
        *(
            {"kind": "dsa", "top_k": k, "indexer": {"learning_rate": r}}
            for k in (4, 8, 16, 32)
            for r in (1e-3, 3e-4, 1e-4, 3e-5)
        ),
    ]
    synthetic.family(tmp_path, attentions, seeds=(1,), scratch=False)
    figures = pages("conversion", at(tmp_path))
    assert [len(figure.axes[1].texts) for figure in figures] == [12, 5]
    for figure in figures:
        found = list(boxes(figure))
        edge = figure.bbox.padded(1)
        for i, (text, box) in enumerate(found):
            assert edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1), text
            assert not any(box.padded(-1).overlaps(other.padded(-1)) for _, other in found[:i]), text


@given(
    places=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    size=st.floats(0.01, 0.08),
)
def test_labels_are_apart_in_order_and_inside(places: list[float], size: float) -> None:
    wanted = np.sort(places)
    found = spread(wanted, np.full(len(wanted), size))
    assert (np.diff(found) >= size - 1e-9).all()
    assert found[0] >= size / 2 - 1e-9 and found[-1] <= 1 - size / 2 + 1e-9
    if len(wanted) == 1:
        assert found == pytest.approx(np.clip(wanted, size / 2, 1 - size / 2))
