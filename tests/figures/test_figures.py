"""What a figure of `dsabench plot` draws is what the store holds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
from figure_tools import DENSE, RATIOS, SPARSE, at, caption, legend, means, pages, reason, typed
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from dsabench.analysis.scope import ScopeError, look_at
from dsabench.figures import style
from dsabench.figures.catalogue import draw, fitting
from dsabench.figures.data import FigureData, figure_data
from dsabench.figures.positions import grouped
from dsabench.store import load_curves, load_runs


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
    drawn = [line for axes in figure.axes[2:] for look in shown.pages[0].values() for line in means(axes, look.marker)]
    ends = [end(line.get_ydata()) for line in drawn for end in (min, max)]
    found = re.search(r"It lies between (\S+) \((.*?)\) and (\S+) nats \((.*?)\)", caption(figure))
    assert found is not None
    assert (found[1], found[3]) == (f"{min(ends):+.3f}", f"{max(ends):+.3f}"), "the gap that is drawn"
    assert re.fullmatch(r"DSA k=[0-9.]+L, L = \d+, position \d+", found[2])


def test_copies_show_each_distance_and_the_paired_difference(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("copies", shown)
    look = shown.pages[0]["dsa top_k_ratio=0.25"]
    (curve,) = means(figure.axes[0], look.marker)
    assert list(curve.get_xdata()) == [2, 3, 4, 5, 6], "no token is 1 token back"
    assert [0.0] in [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == look.marker], "new"
    (difference,) = means(figure.axes[2], look.marker)
    differences = difference.get_ydata()
    first, last = differences[0], differences[-1]
    assert differences == pytest.approx([first] * 3 + [first + 0.5] * 2), "k = 16 of 64: farther back it loses 0.5"
    assert last > first
    assert "Marks at the foot: k." in caption(figure)


def test_a_store_without_copies_has_no_figure_of_them_and_it_says_why(shown: FigureData) -> None:
    older = replace(shown, curves=shown.curves._replace(frame=shown.curves.frame.assign(loss_by_copy_distance=None)))
    assert "copies" not in fitting(older) and "copies" in fitting(shown)
    assert "version 0.7" in str(draw("copies", older))


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


def test_losses_over_training_and_their_gap_are_the_stored_ones(usual: Path, shown: FigureData) -> None:
    (figure,) = pages("learning", shown)
    runs = load_runs(usual)
    dense = runs[(runs["attention"] == "dense") & (runs["length"] == 64)]
    stored = load_curves(usual, dense["run_id"]).frame
    stored = stored[stored["step"] > 0].groupby("step")[["val_loss", "train_loss"]].mean()
    batches = load_curves(usual, dense["run_id"], kind="train").frame.groupby("step")["loss"].mean()
    expected = [stored["val_loss"], stored["train_loss"], stored["val_loss"] - stored["train_loss"], batches]
    columns = len(figure.axes) // len(expected)
    for row, values in enumerate(expected):
        (line,) = means(figure.axes[row * columns], "o")
        assert line.get_ydata() == pytest.approx(values.to_numpy())
    assert figure.axes[0].get_ylim() == figure.axes[columns].get_ylim(), "one scale for both losses"


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
    said = [typed(text.get_text()) for text in figure.axes[0].findobj(Annotation)]
    for row in rows:
        assert f"{row.difference.mean:+.3f} [{row.difference.low:+.3f}, {row.difference.high:+.3f}]" in said
        assert any(text.startswith(row.verdict) for text in said)
    points = {round(float(line.get_xdata()[0]), 12) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert {round(row.difference.mean, 12) for row in rows} <= points
    assert said.count("L = 64") == 3


def test_the_caption_names_where_a_leak_would_show(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE, *SPARSE[:1]], seeds=(1, 2, 3), noise=0)
    for path in tmp_path.glob("dsa-*/metrics.jsonl"):
        *lines, last = path.read_text().splitlines(keepends=True)
        record = json.loads(last)
        record["loss_by_position"][3] -= 0.4
        path.write_text("".join([*lines, json.dumps(record) + "\n"]))
    (figure,) = pages("positions", at(tmp_path))
    assert "It lies between -0.400 (DSA, L = 64, position 4) and " in caption(figure)
