"""What is not to be drawn, or not to be mixed, is left out and named; what spreads over pages is all there."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from figure_tools import DENSE, DSA, H200, SPARSE, at, caption, legend, means, pages, reason
from matplotlib.text import Annotation
from resealed import write

from dsabench.figures import data as data_module
from dsabench.figures import sheet
from dsabench.figures.catalogue import FIGURES, draw, fitting
from dsabench.figures.data import PER_PAGE, Drawn, FigureData, paginate
from dsabench.spec.run import validate


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
    assert "those of 6 runs on others are not in this panel" in caption(experiment)
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
    for name in fitting(data):
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
    write(record, content)
    metrics = tmp_path / ids[0] / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], "{broken\n", *lines[1:]]))
    nan = tmp_path / ids[1] / "metrics.jsonl"
    nan.write_text(re.sub(r'"val_loss": [0-9.]+', '"val_loss": NaN', nan.read_text(), count=2))
    data = at(tmp_path)
    notes = "\n".join(data.notes)
    assert "2 of 7 runs are not shown: 1 damaged, 1 failed" in notes
    assert f"1 run is damaged and was left out: {ids[0]} (metrics.jsonl" in notes
    assert "2 of 30 evaluations have no finite validation loss" in notes
    drawn = draw("flops", data)
    assert isinstance(drawn, Drawn)
    assert drawn.notes == []
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


@pytest.mark.slow
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
