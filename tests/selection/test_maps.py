"""The maps: every cell is what it says, nothing overlaps, the same inspection gives the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from figure_tools import drawn_ticks, title
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from selections import asking, inspection, random_layer

from dsabench.errors import ResultsError
from dsabench.figures.style import styled
from dsabench.selection import maps
from dsabench.selection.maps import cell_size, cells, draw, selection_map


def drawn(length: int, k: int, n_layers: int = 1, source: str = "validation document 0 (one) from token 0") -> Figure:
    layers = [random_layer(length, k, layer, layer) for layer in range(n_layers)]
    with styled():
        figure = draw(inspection(layers, source=source))
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in [*figure.texts, *(axes.title for axes in figure.axes)]] + [
        axes.get_title(loc="left") for axes in figure.axes
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 23), st.integers(1, 6), st.integers(0, 1000))
def test_a_cell_is_the_mean_of_its_causal_pairs(length: int, side: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((length, length)).astype(np.float32)
    causal = np.tri(length, dtype=bool)
    got = cells(values, causal, side)
    for i, j in itertools.product(range(got.shape[0]), range(got.shape[1])):
        pairs = [
            float(values[t, s])
            for t in range(i * side, min(length, (i + 1) * side))
            for s in range(j * side, min(length, (j + 1) * side))
            if s <= t
        ]
        assert np.isnan(got[i, j]) if not pairs else got[i, j] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_maps_stay_below_the_number_of_cells_that_can_be_told_apart() -> None:
    assert [cell_size(length) for length in (16, 512, 513, 4096)] == [1, 1, 2, 8]


@pytest.mark.parametrize(("length", "k", "n_layers"), [(2, 1, 1), (16, 4, 2), (64, 64, 1), (40, 10, 3), (999, 9, 1)])
def test_no_text_touches_another_or_leaves_the_picture(length: int, k: int, n_layers: int) -> None:
    figure = drawn(length, k, n_layers, source="validation document 17 (" + "a long name " * 8 + ") from token 0")
    edge = figure.bbox
    boxes = []
    for axes in figure.axes:
        labels = [tick.label1 for tick in drawn_ticks(axes)]
        named = [*title(axes, "left"), axes.title, axes.xaxis.label, axes.yaxis.label]
        shown = [text for text in [*named, *labels] if text.get_text()]
        boxes += [text.get_window_extent() for text in shown if text.get_visible()]
    boxes += [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.width and b.width and a.overlaps(b)]
    assert all(edge.x0 <= b.x0 and b.x1 <= edge.x1 and edge.y0 <= b.y0 and b.y1 <= edge.y1 for b in boxes)


def test_titles_say_layer_recall_and_chance_and_the_caption_what_a_cell_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\n".join(texts(drawn(40, 10)))
    assert "Layer 0: selected keys\nmass recall 0." in said
    assert "(chance 0.4" in said
    assert "A cell is one query and one key" in said
    monkeypatch.setattr(maps, "CELLS", 16)
    assert "A cell is 3 queries x 3 keys, their mean" in "\n".join(texts(drawn(40, 10)))
    assert "everything is selected" in "\n".join(texts(drawn(8, 8)))


def test_of_many_layers_evenly_spaced_ones_are_drawn_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MOST_LAYERS", 3)
    said = texts(drawn(8, 2, 5))
    assert [text.split(":")[0] for text in said if "selected keys\n" in text] == ["Layer 0", "Layer 2", "Layer 4"]
    assert "Drawn are 3 of 5 layers" in "\n".join(said)


def test_selected_and_not_differ_in_grey_and_from_the_future() -> None:
    left, right = drawn(16, 4).axes[:2]
    for axes in (left, right):
        image = axes.images[0]
        colours = image.cmap(image.norm(np.array([image.norm.vmin, image.norm.vmax])))
        grey = colours[:, :3] @ [0.299, 0.587, 0.114]
        future = np.array(image.cmap.get_bad())[:3] @ [0.299, 0.587, 0.114]
        assert grey[0] - grey[1] > 0.7
        assert min(abs(grey - future)) > 0.1


def test_the_same_inspection_gives_the_same_bytes_whatever_the_user_set(tmp_path: Path) -> None:
    seen = inspection([random_layer(16, 4)], source="a $hostile_name$ \u202e \U0001f600\n")
    first = selection_map(seen, tmp_path / "a" / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    with mpl.rc_context({"font.size": 20, "image.cmap": "jet", "savefig.dpi": 30}):
        assert selection_map(seen, tmp_path / "second.png").read_bytes() == first


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="file"):
        selection_map(inspection([random_layer(4, 2)]), tmp_path / "file" / "x.png")


def test_targets_are_ringed_where_selected_and_crossed_where_not() -> None:
    layer = random_layer(30, 9)
    questions = asking(30, {12: [3, 5], 25: [2, 8, 9]})
    with styled():
        figure, plain = draw(inspection([layer], questions=questions)), draw(inspection([layer]))
    for axes in figure.axes[:2]:
        marks = {line.get_marker(): set(zip(*line.get_data(), strict=True)) for line in axes.lines}
        listed = {(key, query) for query in (12, 25) for key in questions.targets(query)}
        assert marks["o"] | marks["x"] == listed
        assert marks["o"] == {(key, query) for key, query in listed if layer.member_TS[query, key]}
    assert "targets" in figure.axes[0].get_title("left") and "Rings" in figure.get_supxlabel()
    assert not any(axes.lines for axes in plain.axes[:2])
    assert "argets" not in plain.axes[0].get_title("left") + plain.get_supxlabel()
