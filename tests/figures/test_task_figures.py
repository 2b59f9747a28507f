"""Figures of runs on a task: accuracy over training beside its floor, recall beside chance; losses where it asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
from figure_tools import DENSE, DSA, at, caption, legend, means, pages, reason

from dsabench.analysis.scope import look_at
from dsabench.figures.catalogue import FIGURES, draw, fitting
from dsabench.figures.data import FigureData
from dsabench.figures.positions import grouped
from dsabench.report import report_page
from dsabench.store import load_curves


def test_texts_have_no_figure_of_tasks_and_it_says_why_when_asked_for(shown: FigureData, of_tasks: FigureData) -> None:
    assert fitting(of_tasks) == [name for name in FIGURES if name not in ("conversion", "copies", "methods", "sizes")]
    assert fitting(shown) == [name for name in FIGURES if name not in ("task", "conversion", "methods", "sizes")]
    assert "no finished run is of a task; data.source: task:" in reason("task", shown)


def test_the_figure_is_the_stored_accuracy_and_recall_beside_chance(of_tasks: FigureData) -> None:
    (figure,) = pages("task", of_tasks)
    runs = of_tasks.done
    names = ("task_accuracy", "target_recall_best")
    for row, (name, chance) in enumerate(zip(names, ("chance_accuracy", "target_recall_chance"), strict=True)):
        for column, length in enumerate((64, 128)):
            axes = figure.axes[2 * row + column]
            for variant, look in of_tasks.pages[0].items():
                ids = runs.loc[(runs["variant"] == variant) & (runs["length"] == length), "run_id"]
                stored = (
                    load_curves(of_tasks.scope.store, list(ids), columns=[name])
                    .frame.groupby("step")[name]
                    .mean()
                    .dropna()
                )
                drawn = means(axes, look.marker)
                assert len(drawn) == (1 if len(stored) else 0)
                if drawn:
                    assert drawn[0].get_xdata() == pytest.approx(stored.index.to_numpy())
                    assert drawn[0].get_ydata() == pytest.approx(stored.to_numpy())
            level = synthetic.TASK[chance]
            flat = [line for line in axes.lines if list(line.get_ydata()) == pytest.approx([level] * 2)]
            assert flat and len({line.get_color() for line in flat}) == 1
            assert axes.get_ylim() == (0, 1.03)
    assert "in a variant's colour" not in caption(figure)


def test_chances_that_differ_have_the_colours_of_their_variants(tmp_path: Path) -> None:
    for i, attention in enumerate(({"kind": "dsa", "top_k_ratio": 0.25}, DSA)):
        task = synthetic.TASK | {"target_recall_chance": 0.2 + 0.1 * i}
        synthetic.experiment(tmp_path, lengths=(64,), attentions=[attention], seeds=(1, 2), sweep=None, **task)
    data = at(tmp_path)
    (figure,) = pages("task", data)
    flat = {line.get_ydata()[0]: line.get_color() for line in figure.axes[1].lines if len(line.get_ydata()) == 2}
    looks = data.pages[0]
    assert {round(level, 6): colour for level, colour in flat.items()} == {
        0.2: looks["dsa top_k_ratio=0.25"].colour, 0.3: looks["dsa top_k_ratio=0.5"].colour,
    }  # fmt: skip
    assert "in a variant's colour" in caption(figure)


def test_texts_among_tasks_are_named_as_left_out(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE], seeds=(1,), sweep=None, **synthetic.TASK)
    synthetic.experiment(tmp_path, lengths=(128,), attentions=[DENSE], seeds=(1,), sweep=None)
    drawn = draw("task", at(tmp_path))
    assert not isinstance(drawn, str)
    assert drawn.notes == ["1 of 2 runs is of a text: not shown"]
    assert len(drawn.pages[0].axes) == 1


@pytest.mark.parametrize("n_asked", [1, 2, 5, 40])
def test_positions_are_those_that_are_asked_and_each_is_seen(n_asked: int, tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE, DSA], seeds=(1, 2), noise=0.1, **synthetic.TASK)
    data = at(tmp_path)
    frame = data.curves.frame
    for i in frame.index:
        losses = np.full(64, np.nan)
        losses[64 - n_asked :] = 1.0 + 0.01 * np.arange(n_asked)
        frame.at[i, "loss_by_position"] = losses
    (figure,) = pages("positions", data)
    for axes in figure.axes[:2]:
        assert axes.get_xlim() == pytest.approx((64 - n_asked, 65)) or n_asked > 48
    for look in data.pages[0].values():
        (line,) = means(figure.axes[0], look.marker)
        x, y = line.get_data()
        assert np.isfinite(y).all() and x.min() == 65 - n_asked and x.max() <= 64
        at_, mean = grouped(losses, 64, 64 - n_asked)
        assert (list(x), list(y)) == (pytest.approx(at_), pytest.approx(mean))
        every = line.get_markevery()
        assert len(range(*slice(every[0], None, every[1]).indices(len(x)))) > 0
    assert "nan" not in caption(figure)
    assert "nats per answer" in figure.axes[0].get_ylabel()


def test_a_curve_goes_on_where_between_answers_nothing_is_asked(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path, lengths=(64,), attentions=[DENSE, DSA], seeds=(1, 2), **synthetic.TASK)
    data = at(tmp_path)
    losses = np.where(np.arange(64) % 16 >= 11, 2.0, np.nan)  # five answers in each sixteen positions
    for i in data.curves.frame.index:
        data.curves.frame.at[i, "loss_by_position"] = losses
    (figure,) = pages("positions", data)
    for axes, look in zip(figure.axes, data.pages[0].values(), strict=False):
        (line,) = means(axes, look.marker)
        assert len(line.get_xdata()) > 5
        assert np.isfinite(line.get_ydata()).all()
    assert "nan" not in caption(figure)


def test_the_units_of_every_figure_are_answers(of_tasks: FigureData) -> None:
    for name in ("experiment", "flops", "positions", "sparsity", "forest"):
        (figure,) = pages(name, of_tasks)
        words = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())]
        words += legend(figure) if figure.legends else []
        assert any("per answer" in word for word in words), name
        assert not [word for word in words if "per token" in word or "of tokens" in word or "unigram" in word], name


def test_the_report_of_a_task_has_its_figure_and_terms(
    of_tasks: FigureData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "_ORDER", ("experiment",))
    monkeypatch.setattr(report_page, "FIGURES", {name: FIGURES[name] for name in ("task", "experiment")})
    found = report_page.write_report(look_at(of_tasks.scope.store), tmp_path, selection=False)
    text = found.files[0].read_text(encoding="utf-8")
    assert 'id="figure-task-1"' in text
    for words in ("in nats per answer", "Target recall, best layer:", "Task accuracy at 64 tokens", ".80 (.30)"):
        assert words in text
    assert "nats per token" not in text and "unigram" not in text
