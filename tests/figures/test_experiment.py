"""The four panels: every run is drawn, nothing overlaps, the same store gives the same bytes."""

from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figure_tools import drawn_ticks, title
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from dsabench.analysis.variants import label_variants
from dsabench.errors import ResultsError
from dsabench.figures.sequence_length import _draw, sequence_length_comparison
from dsabench.figures.style import COLOURS, looks, styled

KINDS = ("dense", "dsa", "random", "sliding_window", "strided", "topk_oracle")


def experiment(
    lengths: tuple[int, ...] = (64, 128, 256),
    kinds: tuple[str, ...] = ("dense", "dsa"),
    seeds: int = 3,
    fields: tuple[dict[str, Any], ...] = ({},),
    unigram: float = 6.4,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and metrics of a sweep that learnt."""
    runs, metrics = [], []
    every = itertools.product(enumerate(lengths), enumerate(kinds), range(seeds), enumerate(fields))
    for (i, length), (j, kind), seed, (k, extra) in every:
        run_id = f"{kind}-L{length}-s{seed}-{k}"
        loss = 4.5 - 0.1 * i + 0.02 * (j + k) + 0.01 * math.sin(7 * seed + i)
        measured = {"val_loss": loss, "val_accuracy": 0.2 + 0.01 * i, "step_ms": 3.0 + j + 0.1 * i}
        spec = {"run_id": run_id, "attention": kind, "length": length, "seed": seed, **extra}
        runs.append({**spec, "status": "done", "unigram_loss": unigram, **measured})
        for step in range(0, 1001, 100):
            value = loss + (9 - loss) * math.exp(-step / 200)
            metrics.append({"run_id": run_id, "kind": "eval", "step": step, "val_loss": value})
            metrics.append({"run_id": run_id, "kind": "train", "step": step, "loss": value})
    return pd.DataFrame(runs).convert_dtypes(), pd.DataFrame(metrics).convert_dtypes()


def drawn(runs: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    with styled():
        figure = _draw(label_variants(runs), metrics)
        figure.draw_without_rendering()
    return figure


@functools.cache
def shaped(shape: str) -> Figure:
    return drawn(*SHAPES[shape])


def boxes(artists: list[Any]) -> list[Bbox]:
    """Where the visible ones of `artists` are, in pixels."""
    shown = [a for a in artists if a.get_visible() and (not hasattr(a, "get_text") or a.get_text())]
    return [artist.get_window_extent() for artist in shown]


def apart(some: list[Bbox]) -> bool:
    return not any(a.overlaps(b) for a, b in itertools.combinations(some, 2))


RATIOS = tuple({"attention.top_k_ratio": ratio, "train.learning_rate": 1e-3 * ratio} for ratio in (0.125, 0.25, 0.5))
SHAPES = {
    "one length, one seed": experiment((256,), seeds=1),
    "the default": experiment(seeds=5),
    "eight lengths, ten seeds, six variants": experiment(tuple(2**n for n in range(6, 14)), KINDS, 10),
    "long lengths, six of them": experiment(tuple(2**n for n in range(12, 18))),
    "lengths that nearly touch": experiment((64, 96, 100, 128, 1000, 1024)),
    "long names": experiment((64, 128), ("dense", "dsa"), 2, RATIOS),
    "far lengths, one without dense": experiment((64, 1024), (*KINDS[1:], "zigzag", "other"), 1),
    "baseline near": experiment(unigram=4.7),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_touches_another_or_leaves_the_picture(shape: str) -> None:
    figure = shaped(shape)
    edge = figure.bbox
    outer: list[Artist] = [*figure.legends, *figure.texts]
    for axes in figure.axes:
        ticks = [tick.label1 for tick in drawn_ticks(axes)]
        titles = [axes.title, *title(axes, "right"), axes.xaxis.label, axes.yaxis.label]
        assert apart(boxes([*ticks, *titles])), [t.get_text() for t in ticks]
        outer.append(axes)
        assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 for box in boxes([*ticks, *titles]))
    around = [axes.get_tightbbox() for axes in figure.axes] + boxes([*figure.legends, *figure.texts])
    assert apart(around)
    assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1 for box in around)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_run_is_a_point_inside_its_panel(shape: str) -> None:
    runs, _ = SHAPES[shape]
    figure = shaped(shape)
    for axes, column, factor in zip(figure.axes[:3], ("val_loss", "val_accuracy", "step_ms"), (1, 100, 1), strict=True):
        single = runs.groupby(["attention", "length"]).size().max() == 1
        points = [
            line for line in axes.lines if (line.get_linestyle() == "None") != single and line.get_marker() != "None"
        ]
        points = [line for line in points if single or line.get_markersize() < 5]
        values = np.concatenate([line.get_ydata() for line in points])
        assert sorted(values) == pytest.approx(sorted(factor * runs[column].astype(float)))
        inside = axes.get_window_extent()
        for line in points:
            pixels = axes.transData.transform(line.get_xydata())
            assert all(inside.contains(x, y) for x, y in pixels)


def test_means_and_bars_are_over_seeds() -> None:
    runs, metrics = experiment((64,), ("dense",), 4)
    axes = drawn(runs, metrics).axes[0]
    losses = runs["val_loss"].astype(float)
    mean = next(line for line in axes.lines if line.get_markersize() > 6 and line.get_marker() == "o")
    assert mean.get_ydata() == pytest.approx([losses.mean()])
    bar = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert bar == pytest.approx([losses.mean() - losses.std(), losses.mean() + losses.std()])


def test_ticks_are_the_lengths_and_labels_are_left_out_rather_than_touch() -> None:
    axes = shaped("lengths that nearly touch").axes[0]
    assert list(axes.get_xticks()) == [64, 96, 100, 128, 1000, 1024]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["64", "96", "", "128", "", "1024"]


def test_the_same_store_gives_the_same_bytes_whatever_the_user_set(tmp_path: Path) -> None:
    runs, metrics = experiment(seeds=2)
    first = sequence_length_comparison(runs, metrics, tmp_path / "a" / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    shuffled = runs.sample(frac=1, random_state=1), metrics.sample(frac=1, random_state=1)
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 30, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        second = sequence_length_comparison(*shuffled, tmp_path / "second.png").read_bytes()
        assert dict(mpl.rcParams) == before
    assert second == first


@pytest.mark.slow
def test_nothing_of_pyplot_or_torch_is_loaded() -> None:
    code = (
        "import sys, dsabench.figures.sequence_length; "
        "import dsabench.cli.views.results_table_text, dsabench.cli.list_options; "
        "print(*{'torch', 'matplotlib.pyplot', 'click'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_the_baseline_is_drawn_where_it_says_something_and_named_where_not() -> None:
    far, near = shaped("the default"), shaped("baseline near")
    for figure, here in ((far, False), (near, True)):
        dotted = [
            line for line in figure.axes[0].lines if line.get_marker() == "None" and line.get_color() == "#595959"
        ]
        assert bool(dotted) == here
        assert ("lies above the first panel" in figure.get_supxlabel()) != here


@pytest.mark.slow
def test_failed_runs_are_counted_and_not_drawn(tmp_path: Path) -> None:
    runs, metrics = experiment(seeds=3)
    runs.loc[0, ["status", "val_loss"]] = ["failed", math.nan]
    runs.loc[1, "val_loss"] = math.inf
    figure = drawn(runs, metrics)
    caption = figure.get_supxlabel()
    assert "n = 1 to 3 seeds" in caption or "n = 2 to 3 seeds" in caption
    assert "Not shown: 2 of 18 runs" in caption
    only_random = experiment(kinds=("dense", "dsa", "random"), seeds=1)[0]
    only_random.loc[only_random["attention"] == "dsa", "status"] = "failed"
    handles = drawn(only_random, metrics).legends[0].legend_handles
    assert [handle.get_color() for handle in handles[:2]] == [COLOURS[0], COLOURS[2]]
    nothing = runs.assign(status="failed")
    for some in (nothing, runs.iloc[:0], pd.DataFrame()):
        assert sequence_length_comparison(some, metrics.iloc[:0], tmp_path / "empty.png").stat().st_size > 1000
    no_numbers = runs.assign(step_ms=math.nan, unigram_loss=math.nan, val_accuracy=None)
    assert sequence_length_comparison(no_numbers, pd.DataFrame(), tmp_path / "gaps.png").stat().st_size > 1000


def test_a_leak_is_marked_in_the_legend() -> None:
    runs, metrics = experiment(seeds=1)
    runs["leak"] = runs["attention"] == "dsa"
    assert [t.get_text() for t in drawn(runs, metrics).legends[0].get_texts()][:2] == ["dense", "DSA [LEAK]"]


def test_the_mean_curve_has_only_steps_that_every_seed_has() -> None:
    runs, metrics = experiment((64,), ("dense",), 2)
    metrics = metrics[~((metrics["run_id"] == "dense-L64-s1-0") & (metrics["step"] == 500))]
    curves = drawn(runs, metrics).axes[3]
    mean = next(line for line in curves.lines if line.get_marker() == "o")
    assert list(mean.get_xdata()) == [step for step in range(0, 1001, 100) if step != 500]


def test_variants_differ_in_more_than_colour_and_dense_looks_the_same_everywhere() -> None:
    many = looks([*KINDS, "dsa top_k=1", "dsa top_k=2"])
    assert len({(look.marker, look.line) for look in many.values()}) == len(many) == 8
    assert looks(["dsa", "dense"])["dense"] == looks(["dense"])["dense"] == many["dense"]
    assert looks(["dsa"])["dsa"] == looks(["dense", "dsa"])["dsa"]
    assert "#F0E442" not in COLOURS


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file"):
        sequence_length_comparison(*experiment(seeds=1), tmp_path / "file" / "x.png")


def test_means_of_different_seeds_are_said_to_be_that() -> None:
    runs, metrics = experiment((64, 128), seeds=3)
    assert "different seeds" not in drawn(runs, metrics).get_supxlabel()
    lost = (runs["attention"] == "dsa") & (runs["length"] == 128) & (runs["seed"] == 2)
    caption = " ".join(drawn(runs[~lost], metrics).get_supxlabel().split())
    assert "Means of different seeds at L = 128 (DSA lacks 1 of 3): dsabench compare takes differences" in caption
