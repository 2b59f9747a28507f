"""Every figure of `dsabench plot` shows the store's numbers, names what it leaves out, is legible and repeatable."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from dsabench.analysis.scope import ScopeError, look_at
from dsabench.plots import data as data_module
from dsabench.plots import forest, sheet, style
from dsabench.plots.data import PER_PAGE, Drawn, FigureData, figure_data, paginate
from dsabench.plots.figures import FIGURES, FORMATS, draw
from dsabench.plots.positions import grouped
from dsabench.spec.sweep import validate
from dsabench.store import load_curves, load_runs

DENSE, DSA = {"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.5}
RATIOS = (0.1, 0.25, 0.5)
SPARSE = [{"kind": "dsa", "top_k_ratio": ratio} for ratio in RATIOS]
H200 = {"device_name": "NVIDIA H200 of another machine", "precision": "fp32"}


def pages(name: str, data: FigureData) -> list[Figure]:
    drawn = draw(name, data)
    assert isinstance(drawn, Drawn), drawn
    return drawn.pages


def reason(name: str, data: FigureData) -> str:
    drawn = draw(name, data)
    assert isinstance(drawn, str)
    return drawn


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def means(axes: Axes, marker: str) -> list[Any]:
    """The lines of means of a look, large markers on a line, in drawing order."""
    return [line for line in axes.lines if line.get_marker() == marker and line.get_linestyle() != "None"]


def at(store: Path, **choice: Any) -> FigureData:
    return figure_data(look_at(store, **choice))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lengths, dense and three k/L, three seeds."""
    store = tmp_path_factory.mktemp("usual")
    synthetic.experiment(store, lengths=(64, 128), attentions=[DENSE, *SPARSE], seeds=(1, 2, 3), evaluations=10)
    return store


@pytest.fixture(scope="module")
def shown(usual: Path) -> FigureData:
    return at(usual)


# What is drawn is what the store holds.


@pytest.mark.parametrize(("name", "cost"), [("flops", "flops"), ("seconds", "seconds")])
def test_curves_are_means_of_the_stored_evaluations(name: str, cost: str, usual: Path, shown: FigureData) -> None:
    (figure,) = pages(name, shown)
    runs = load_runs(usual)
    dense = runs[(runs["attention"] == "dense") & (runs["length"] == 128)]
    stored = load_curves(usual, dense["run_id"]).frame.groupby("step")[[cost, "val_loss"]].mean()
    for axes in (figure.axes[1], figure.axes[3]):  # the whole, and its end
        (line,) = means(axes, "o")
        label = axes.get_xlabel() or figure.axes[3].get_xlabel()
        unit = float(found[1]) if (found := re.search(r"\((1e\d+) FLOPs\)", label)) else 1.0
        assert line.get_xdata() * unit == pytest.approx(stored[cost].to_numpy())
        assert line.get_ydata() == pytest.approx(stored["val_loss"].to_numpy())
        thin = [other for other in axes.lines if other.get_linewidth() < 1 and other.get_color() == line.get_color()]
        assert len(thin) == 3


def test_many_seeds_are_a_band_from_the_lowest_to_the_highest(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE], seeds=range(13))
    (figure,) = pages("flops", at(tmp_path))
    whole, end = figure.axes
    assert "Bands (for more than 12 seeds)" in caption(figure)
    assert len(whole.lines) == 1
    stored = load_curves(tmp_path).frame.groupby("step")["val_loss"]
    corners = whole.collections[0].get_paths()[0].vertices[:, 1]
    assert set(np.round(corners, 9)) == set(np.round([*stored.min(), *stored.max()], 9))
    last = load_runs(tmp_path)["val_loss"]
    assert end.get_ylim()[0] < last.min()


def test_a_bin_of_several_positions_stands_at_their_place_and_counts_as_many() -> None:
    length, n = 1000, 256
    losses = np.random.default_rng(0).normal(size=length)
    bins = np.array([part.mean() for part in np.array_split(losses, n)])
    x, mean = grouped(bins, length)
    assert 10 < len(x) < 30
    assert (np.diff(x) > 0).all()
    edges = np.cumsum([0, *(len(part) for part in np.array_split(losses, n))])
    first = round(x[0] ** 2 / 1)  # geometric mean of 1 and the last position of the first group
    assert first in edges
    assert mean[0] == pytest.approx(losses[:first].mean())
    # Groups partition the window: weighted by their sizes they give its mean.
    sizes, start = [], 0
    for centre in x:
        end = round(centre**2 / (start + 1))
        sizes.append(end - start)
        start = end
    assert start == length
    assert np.average(mean, weights=sizes) == pytest.approx(losses.mean())
    short, same = grouped(np.arange(5.0), 5)
    assert short == pytest.approx([1, 2, 3, 4, 5])
    assert same == pytest.approx(np.arange(5.0))


def test_positions_show_the_last_evaluation_and_the_paired_difference(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("positions", shown)
    runs = load_runs(usual)
    runs = runs[runs["length"] == 64].set_index("run_id")
    last = (
        load_curves(usual, runs.index).frame.dropna(subset="loss_by_position").set_index("run_id")["loss_by_position"]
    )
    stacked = {
        (run["attention.top_k_ratio"], run["seed"]): np.asarray(last[run_id], float) for run_id, run in runs.iterrows()
    }
    look = shown.pages[0]["dsa top_k_ratio=0.25"]
    x, expected = grouped(np.mean([stacked[0.25, seed] for seed in (1, 2, 3)], axis=0), 64)
    (loss,), (difference,) = means(figure.axes[0], look.marker), means(figure.axes[2], look.marker)
    assert loss.get_xdata() == pytest.approx(x)
    assert loss.get_ydata() == pytest.approx(expected)
    dense = {key[1]: value for key, value in stacked.items() if math.isnan(float(key[0]))}
    paired = np.mean([stacked[0.25, seed] - dense[seed] for seed in (1, 2, 3)], axis=0)
    assert difference.get_ydata() == pytest.approx(grouped(paired, 64)[1])


def test_sparsity_shows_paired_differences_and_recall_beside_chance(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("sparsity", shown)
    runs = load_runs(usual)
    runs = runs[runs["length"] == 64].set_index("seed")
    dense = runs.loc[runs["attention"] == "dense", "val_loss"]
    expected = [(runs.loc[runs["attention.top_k_ratio"] == r, "val_loss"] - dense).mean() for r in RATIOS]
    (losses,) = means(figure.axes[0], "s")
    assert losses.get_ydata() == pytest.approx(expected)
    assert losses.get_xdata() == pytest.approx([round(r * 64) / 64 for r in RATIOS])
    (recall,), (chance,) = means(figure.axes[2], "s"), means(figure.axes[2], "_")
    assert recall.get_ydata() == pytest.approx([0.9] * 3)
    assert chance.get_ydata() == pytest.approx([0.6] * 3)
    assert "dense (no difference)" in legend(figure)
    assert "margin, 0.02 nats" in legend(figure)


def test_without_dense_sparsity_shows_losses(usual: Path) -> None:
    data = at(usual, where="attention == 'dsa'")
    assert any("no dense run" in note for note in data.notes)
    (figure,) = pages("sparsity", data)
    runs = data.done[data.done["length"] == 64]
    (losses,) = means(figure.axes[0], "s")
    assert losses.get_ydata() == pytest.approx(list(runs.groupby("k")["val_loss"].mean()))
    assert "baseline" in reason("forest", data)
    with pytest.raises(ScopeError, match="dsaa"):
        figure_data(look_at(usual), baseline="dsaa")


def test_cost_is_the_stored_time_and_memory_on_logarithmic_axes(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("cost", shown)
    runs = load_runs(usual)
    for axes, column in zip(figure.axes, ("step_ms", "peak_memory_mb"), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        (dense,) = means(axes, "o")
        expected = runs[runs["attention"] == "dense"].groupby("length")[column].mean()
        assert dense.get_ydata() == pytest.approx(expected.to_numpy(float))
        guides = [line for line in axes.lines if to_hex(line.get_color()) == style.GREY and len(line.get_xdata()) == 2]
        slopes = [np.diff(np.log(g.get_ydata()))[0] / np.diff(np.log(g.get_xdata()))[0] for g in guides]
        assert slopes == pytest.approx([1, 2])


def test_indexer_curves_are_the_stored_ones_with_the_end_of_the_warm_up(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("indexer", shown)
    runs = load_runs(usual)
    mine = runs[(runs["length"] == 64) & (runs["attention.top_k_ratio"] == 0.1)]
    stored = load_curves(usual, mine["run_id"]).frame.groupby("step")[["val_kl", "mass_recall"]].mean()
    look = shown.pages[0]["dsa top_k_ratio=0.1"]
    for axes, column in ((figure.axes[0], "val_kl"), (figure.axes[2], "mass_recall")):
        (line,) = means(axes, look.marker)
        assert line.get_ydata() == pytest.approx(stored[column].to_numpy())
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 2] == [200]
    chance = [line for line in figure.axes[2].lines if line.get_color() == look.colour and line.get_linestyle() == ":"]
    assert chance[0].get_ydata() == pytest.approx(0.6 * (0.5 + 0.5 * np.linspace(0, 1, 11)))
    assert "dense" not in legend(figure)


def test_the_forest_is_the_comparison(shown: FigureData) -> None:
    (figure,) = pages("forest", shown)
    rows = shown.comparison.rows
    said = [text.get_text() for text in figure.axes[0].findobj(Annotation)]
    for row in rows:
        assert f"{row.difference.mean:+.3f} [{row.difference.low:+.3f}, {row.difference.high:+.3f}]" in said
        assert any(text.startswith(row.verdict) for text in said)
    points = {round(float(line.get_xdata()[0]), 12) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert {round(row.difference.mean, 12) for row in rows} <= points
    assert said.count("L = 64") == 3


# What is not to be seen, or not to be mixed, is left out and named.


def test_times_of_different_machines_are_never_one_point(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, seeds=(1, 2), sweep=None)
    for length, attention in itertools.product((64, 128, 256), (DENSE, DSA)):
        spec = validate({"length": length, "seed": 3, "attention": attention})
        synthetic.finished(tmp_path, spec, 4.4, environment=H200, step_ms=1000.0)
    data = at(tmp_path)
    (cost,) = pages("cost", data)
    titles = [" ".join(axes.get_title("left").split()) for axes in cost.axes]
    assert titles[:2] == [
        "NVIDIA H100 80GB HBM3, bf16, torch 2.11.0",
        "NVIDIA H200 of another machine, fp32, torch unknown",
    ]
    for axes, time in ((cost.axes[0], 4.0), (cost.axes[1], 1000.0)):
        assert means(axes, "o")[0].get_ydata() == pytest.approx([time] * 3)
    (experiment,) = pages("experiment", data)
    assert means(experiment.axes[2], "o")[0].get_ydata() == pytest.approx([4.0] * 3)
    assert "those of 6 runs on other machines are not in this panel" in caption(experiment)
    every = [axes for figure in pages("seconds", data) for axes in figure.axes if axes.get_title("left")]
    assert len(every) == 6, "a panel for each length and machine"
    two = next(axes for axes in every if "H100" in axes.get_title("left"))
    assert len([line for line in two.lines if line.get_linewidth() < 1]) == 4, "two seeds of two variants"
    (losses,) = pages("flops", data)
    assert len(losses.axes) == 6, "FLOPs and losses of any machine compare"


def test_a_leak_is_marked_in_every_legend_and_panel(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64, 128), attentions=[DENSE], seeds=(1, 2, 3), sweep=None)
    synthetic.experiment(
        tmp_path, lengths=(64, 128), attentions=SPARSE, seeds=(1, 2, 3), sweep=None, effect=lambda s: -2.0, leak=True
    )
    data = at(tmp_path)
    for name in FIGURES:
        for figure in pages(name, data):
            assert "sees later tokens" in caption(figure), name
            if name == "forest":
                said = [text.get_text() for text in figure.axes[0].findobj(Annotation)]
                assert sum(text.endswith("[LEAK]") for text in said) == 3
                assert said.count("LEAK") == 6
                assert "not worse" not in said
                continue
            assert any(text.endswith("[LEAK]") for text in legend(figure)), name
            assert not any(text == "dense [LEAK]" for text in legend(figure))
            assert all("LEAK" in axes.get_title("right") for axes in figure.axes), name


def test_a_leak_does_not_set_the_scale_of_the_forest(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE, DSA], sweep=None)
    synthetic.experiment(
        tmp_path, lengths=(64,), attentions=[SPARSE[0]], sweep=None, effect=lambda spec: -2.0, leak=True
    )
    (figure,) = pages("forest", at(tmp_path))
    assert figure.axes[0].get_xlim()[1] < 0.1


def test_failed_damaged_and_diverged_runs_are_named_and_not_drawn(tmp_path: Path) -> None:
    ids = synthetic.experiment(tmp_path, lengths=(64,), seeds=(1, 2, 3))
    spec = validate({"length": 64, "seed": 9, "attention": DSA})
    failed = synthetic.finished(tmp_path, spec, 4.4, status="failed", error="out of memory")
    record = tmp_path / "sweeps" / "synthetic-00000000.json"
    content = json.loads(record.read_text())
    content["run_ids"].append(failed)
    record.write_text(json.dumps(content))
    metrics = tmp_path / ids[0] / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], "{broken\n", *lines[1:]]))
    nan = tmp_path / ids[1] / "metrics.jsonl"
    nan.write_text(re.sub(r'"val_loss": [0-9.]+', '"val_loss": NaN', nan.read_text(), count=2))
    data = at(tmp_path)
    notes = "\n".join(data.notes)
    assert "1 of 7 runs are not shown: 1 failed" in notes
    assert f"evaluations of {ids[0]} cannot be read" in notes
    assert "2 of 30 evaluations have no finite validation loss" in notes
    drawn = draw("flops", data)
    assert isinstance(drawn, Drawn)
    assert drawn.notes == ["1 of 6 runs recorded no evaluation with its flops and are not shown"]
    axes = drawn.pages[0].axes[0]
    (dsa,) = means(axes, "s")
    assert len(dsa.get_xdata()) == 4, "the mean is where every seed has a value"
    assert np.isfinite(np.concatenate([line.get_ydata() for line in axes.lines])).mean() > 0.9


def test_runs_of_an_older_dsabench_have_no_flops_and_it_is_said(tmp_path: Path) -> None:
    ids = synthetic.experiment(tmp_path, lengths=(64,), seeds=(1, 2))
    for run_id in ids[:3]:
        path = tmp_path / run_id / "metrics.jsonl"
        path.write_text(re.sub(r', "flops": [0-9.e+]+', "", path.read_text()))
    drawn = draw("flops", at(tmp_path))
    assert isinstance(drawn, Drawn)
    assert drawn.notes == ["3 of 4 runs recorded no evaluation with its flops and are not shown"]
    path = tmp_path / ids[3] / "metrics.jsonl"
    path.write_text(re.sub(r', "flops": [0-9.e+]+', "", path.read_text()))
    assert "older dsabench" in reason("flops", at(tmp_path))


def test_what_cannot_be_drawn_says_what_it_needs(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path / "dense", lengths=(64,), attentions=[DENSE], seeds=(1, 2))
    dense = at(tmp_path / "dense")
    assert "--top-k-ratios 0.1 0.25 0.5" in reason("sparsity", dense)
    assert "--lengths 64 128 256" in reason("cost", dense)
    assert "--attentions dense dsa" in reason("indexer", dense)
    assert "another attention" in reason("forest", dense)
    spec = validate({"length": 64, "seed": 1, "attention": DENSE})
    synthetic.finished(tmp_path / "failed", spec, 4.4, status="failed")
    failed = at(tmp_path / "failed")
    for name in FIGURES:
        assert reason(name, failed), name


def test_runs_with_other_bins_of_positions_are_not_averaged(tmp_path: Path) -> None:
    ids = synthetic.experiment(tmp_path, lengths=(64,), seeds=(1, 2))
    path = tmp_path / ids[0] / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["loss_by_position"] = [4.0] * 32
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    drawn = draw("positions", at(tmp_path))
    assert isinstance(drawn, Drawn)
    assert drawn.notes == ["1 of 4 runs recorded no loss by position, or other bins: not shown"]
    (dense,) = means(drawn.pages[0].axes[0], "o")
    assert dense.get_ydata().min() > 4.2


def test_one_k_at_a_length_is_left_out_of_sparsity_by_name(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE, *SPARSE], seeds=(1, 2), sweep=None)
    synthetic.experiment(tmp_path, lengths=(128,), attentions=[DENSE, DSA], seeds=(1, 2), sweep=None)
    drawn = draw("sparsity", at(tmp_path))
    assert isinstance(drawn, Drawn)
    assert drawn.notes == ["not shown: length 128, of which runs have one k/L only"]


# Pages.


def many(store: Path) -> None:
    """40 variants with long names: dense, and 13 k/L by 3 learning rates of the indexer."""
    ratios = [round(0.05 + 0.07 * i, 2) for i in range(13)]
    attentions: list[dict[str, Any]] = [DENSE]
    for ratio, rate in itertools.product(ratios, (3e-4, 1e-3, 3e-3)):
        attentions.append({"kind": "dsa", "top_k_ratio": ratio, "indexer": {"learning_rate": rate}})
    synthetic.experiment(store, lengths=(64, 1024), attentions=attentions, seeds=(1, 2), evaluations=3)


def test_variants_are_spread_over_pages_none_lost_and_each_with_its_baseline() -> None:
    names = [("", "dense"), *(("", f"dsa top_k={i}") for i in range(39))]
    frame = pd.DataFrame(names, columns=["setting", "variant"])
    found = paginate(frame, ["dense"])
    assert len(found) == 7
    assert all(len(page) <= PER_PAGE and "dense" in page for page in found)
    assert set(itertools.chain(*found)) == set(frame["variant"])
    for page in found:
        assert len({look.colour for look in page.values()}) == len(page)
    # A baseline of a setting stands beside the variants of this setting.
    two = [(f"rate={r}", f"{kind} rate={r}") for r in (1, 2, 3) for kind in ("dense", "dsa a=1", "dsa a=2", "dsa a=3")]
    frame = pd.DataFrame(two, columns=["setting", "variant"])
    for page in paginate(frame, [f"dense rate={r}" for r in (1, 2, 3)]):
        rates = {name.rpartition("=")[2] for name in page}
        assert all(f"dense rate={rate}" in page for rate in rates)
    assert len(paginate(frame.iloc[:4], ["dense rate=1"])) == 1


def test_more_pages_than_are_drawn_are_named(shown: FigureData, monkeypatch: pytest.MonkeyPatch, usual: Path) -> None:
    monkeypatch.setattr(sheet, "MOST_PAGES", 1)
    monkeypatch.setattr(data_module, "PER_PAGE", 2)
    drawn = draw("flops", at(usual))
    assert isinstance(drawn, Drawn)
    assert len(drawn.pages) == 1
    assert drawn.notes == [
        "the first 1 of 3 pages are drawn, without 2 variants (DSA k=0.25L ... DSA k=0.5L); choose some with --where"
    ]


def test_more_lengths_than_columns_go_on_further_pages(tmp_path: Path) -> None:
    lengths = [16 * 2**i for i in range(6)]
    synthetic.experiment(tmp_path, lengths=lengths, seeds=(1,), evaluations=2)
    found = pages("positions", at(tmp_path))
    titles = [axes.get_title("left") for figure in found for axes in figure.axes if axes.get_title("left")]
    assert titles == [f"L = {length}" for length in lengths]
    assert [caption(figure).rpartition(". ")[2] for figure in found] == ["Page 1 of 2.", "Page 2 of 2."]


# Looks.


def boxes(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """All text that is seen, and where it is."""
    outside = {id(text) for axes in figure.findobj(Axes) for text in unseen_ticks(axes)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_visible() or not text.get_text().strip() or id(text) in outside:
            continue
        whole, (upper, _, last) = Text.get_window_extent(text), text.get_text().rpartition("\n")
        if upper and text.get_verticalalignment() == "baseline":  # a panel's title: lines of different lengths
            alone = Text.get_window_extent(copied(text, last or "X"))
            if last:
                yield last, alone
            yield upper, Bbox.from_extents(whole.x0, alone.y1, whole.x1, whole.y1)
        else:
            yield text.get_text(), whole


def copied(text: Text, content: str) -> Text:
    """`text` with other content, where it stands."""
    other = Text(*text.get_position(), content, ha=text.get_horizontalalignment(), va="baseline")
    other.set_fontproperties(text.get_fontproperties())
    other.set_transform(text.get_transform())
    other.set_figure(text.get_figure())
    return other


def unseen_ticks(axes: Any) -> Iterator[Text]:
    """Tick labels that matplotlib keeps but does not draw: outside of the axis, or those of a shared axis."""
    for axis in (axes.xaxis, axes.yaxis):
        drawn = {id(tick) for tick in axis._update_ticks()}
        for tick in [*axis.majorTicks, *axis.minorTicks]:
            for label in (tick.label1, tick.label2):
                if id(tick) not in drawn or not label.get_visible() or not tick.get_visible():
                    yield label


@functools.cache
def of_shape(shape: str, root: Path) -> FigureData:
    store = root / shape
    if shape == "two runs":
        synthetic.experiment(store, lengths=(128,), seeds=(1,))
    elif shape == "two runs of two lengths":
        synthetic.experiment(store, lengths=(64, 128), seeds=(1,), attentions=[DSA])
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


@pytest.mark.parametrize("shape", ["two runs", "two runs of two lengths", "several machines", "40 variants"])
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
def test_a_figure_says_units_direction_and_seeds(name: str, shown: FigureData) -> None:
    figure = pages(name, shown)[0]
    words = " ".join(" ".join(text for text, _ in boxes(figure)).split())
    assert "is better" in words
    assert "nats" in words or "ms" in words
    assert re.search(r"n = 3 seeds|pairs", words)
    assert re.search(r"standard deviation|single seeds|lowest to highest|95 % interval", words)
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_subplotspec() is None or not axes.get_subplotspec().is_last_row()


def test_the_same_store_gives_the_same_bytes_whatever_the_user_set(
    usual: Path, shown: FigureData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "DPI", 50)
    names = ["positions", "forest"]
    first = {(name, form): style.render(pages(name, shown)[0], form) for name in names for form in FORMATS}
    for clutter in ("index.parquet", "curves.parquet", ".index.json.gz"):
        (usual / clutter).unlink(missing_ok=True)
    shutil.copytree(usual, tmp_path / "elsewhere")
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
