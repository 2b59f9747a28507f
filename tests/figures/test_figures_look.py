"""Figures are legible, repeatable to the byte, and fit for a page."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import synthetic
from cases import others_slow
from figure_tools import DENSE, DSA, H200, SPARSE, at, boxes, pages

from dsabench.figures import forest, sheet, style
from dsabench.figures.catalogue import FIGURES, FORMATS, draw
from dsabench.figures.data import FigureData
from dsabench.spec.run import validate


def many(store: Path) -> None:
    """40 variants with long names: dense, and 13 k/L by 3 learning rates of the indexer."""
    ratios = [round(0.05 + 0.07 * i, 2) for i in range(13)]
    attentions: list[dict[str, Any]] = [DENSE]
    for ratio, rate in itertools.product(ratios, (3e-4, 1e-3, 3e-3)):
        attentions.append({"kind": "dsa", "top_k_ratio": ratio, "indexer": {"learning_rate": rate}})
    synthetic.experiment(store, lengths=(64, 1024), attentions=attentions, seeds=(1, 2), evaluations=3)


@functools.cache
def of_shape(shape: str, root: Path) -> FigureData:
    store = root / shape
    if shape == "two runs":
        synthetic.experiment(store, lengths=(128,), seeds=(1,))
    elif shape == "two runs of two lengths":
        synthetic.experiment(store, lengths=(64, 128), seeds=(1,), attentions=[DSA])
    elif shape == "children":
        synthetic.family(store, [DENSE, DSA, {"kind": "random"}], seeds=(1, 2))
    elif shape == "a task":
        synthetic.experiment(store, lengths=(64, 128), seeds=(1, 2), attentions=[DENSE, *SPARSE], **synthetic.TASK)
    elif shape == "several machines":
        synthetic.experiment(store, lengths=(64, 128), attentions=[DENSE, *SPARSE], seeds=(1, 2), sweep=None)
        for length, seed, attention in itertools.product((64, 128), (3, 4), (DENSE, *SPARSE)):
            spec = validate({"length": length, "seed": seed, "attention": attention})
            synthetic.finished(store, spec, 4.4, environment=H200, leak=True)
    else:
        many(store)
    return at(store)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("shapes")
    of_shape.cache_clear()


@pytest.mark.parametrize(
    "shape",
    others_slow(["two runs", "two runs of two lengths", "children", "a task", "several machines", "40 variants"], 3),
)
def test_no_text_lies_on_another_or_leaves_the_page(shape: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST_PAGES", 1)
    monkeypatch.setattr(forest, "MOST_PAGES", 1)
    data = of_shape(shape, root)
    for name in FIGURES:
        drawn = draw(name, data)
        if isinstance(drawn, str):
            continue
        for number, figure in enumerate(drawn.pages, 1):
            found = list(boxes(figure))
            assert len(found) > 10
            edge = figure.bbox.padded(1)
            for text, box in found:
                assert edge.contains(box.x0, box.y0), (name, number, text)
                assert edge.contains(box.x1, box.y1), (name, number, text)
            inner = [(text, box.padded(-1)) for text, box in found]
            for (a, one), (b, other) in itertools.combinations(inner, 2):
                assert not one.overlaps(other), (name, number, a, b)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_units_direction_and_seeds(
    name: str, shown: FigureData, of_tasks: FigureData, children: FigureData, of_sizes: FigureData
) -> None:
    kind = FIGURES[name]
    data = of_tasks if kind.of_tasks else children if kind.of_children else of_sizes if kind.of_sizes else shown
    figure = pages(name, data)[0]
    words = " ".join(" ".join(text for text, _ in boxes(figure)).split())
    assert "is better" in words
    assert "nats" in words or "ms" in words or "share of" in words
    assert re.search(r"n = 3 seeds|pairs", words)
    assert re.search(r"standard deviation|single seeds|lowest to highest|95 % interval", words)
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_subplotspec() is None or not axes.get_subplotspec().is_last_row()


def test_the_same_store_gives_the_same_bytes_whatever_the_user_set(
    usual: Path, shown: FigureData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "DPI", 50)
    names = ["forest"]
    first = {(name, form): style.render(pages(name, shown)[0], form) for name in names for form in FORMATS}
    shutil.copytree(usual, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("*.parquet", "*.gz"))
    user = {"font.size": 20, "svg.fonttype": "path", "savefig.dpi": 30, "axes.facecolor": "red", "pdf.compression": 0}
    with mpl.rc_context(user):
        before = dict(mpl.rcParams)
        again = at(tmp_path / "elsewhere")
        figures = {name: pages(name, again)[0] for name in names}
        # One figure for all formats, in another order: none depends on those written before it.
        second = {(name, form): style.render(figures[name], form) for name in names for form in FORMATS[::-1]}
        assert dict(mpl.rcParams) == before
    assert {key for key in first if first[key] != second[key]} == set()
    for content in first.values():
        assert not re.search(rb"20\d\d-\d\d-\d\d|D:20\d\d|matplotlib\.org", content.split(b"stream")[0])


@pytest.mark.slow
def test_an_svg_can_stand_in_a_page(shown: FigureData) -> None:
    """Text is text, nothing is painted behind it, ids are of this file alone, and colours are few and known."""
    svgs = [style.render(pages(name, shown)[0], "svg").decode() for name in ("flops", "indexer")]
    for svg in svgs:
        assert re.search(r"<text [^>]*>L = 64</text>", svg)
        assert "sans-serif" in svg
        assert "<style" not in svg
        assert "#ffffff" not in svg
        known = {style.INK, style.GREY, style.GRID, style.PAPER, *(colour.lower() for colour in style.COLOURS)}
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= known
        ids = re.findall(r' id="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert set(ids) == set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    assert not set(re.findall(r' id="([^"]+)"', svgs[0])) & set(re.findall(r' id="([^"]+)"', svgs[1]))


def test_the_formats_are_what_they_say(shown: FigureData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 50)
    figure = pages("forest", shown)[0]
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert {form: style.render(figure, form)[: len(start)] for form, start in starts.items()} == starts
