"""A ladder's runs in compare, sweep tables and plots: one dense-sparse pair a rung, in order, by the rung's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic
from cases import others_slow
from figure_tools import at, caption, legend, pages, report_with
from shell import Shell

from dsabench.analysis.compare import compare
from dsabench.analysis.results_table import experiment_table
from dsabench.analysis.scope import look_at
from dsabench.analysis.variants import display_name, within
from dsabench.report.report_page import write_report
from dsabench.spec.run import validate
from dsabench.store import SweepRecord, write_sweep

RUNGS = [
    ("as published", {"data": {"split": "overlapping"}}, ("dense", "random"), -1.5),
    ("causal mask mended", {"data": {"split": "overlapping"}}, ("dense", "dsa"), 0.1),
    ("documents held out", {}, ("dense", "dsa"), 0.2),
    *((f"step {i} of a ladder", {"model": {"dropout": i / 100}}, ("dense", "dsa"), 0.01 * i) for i in range(4, 11)),
]
"""The random selection stands for a leak: it needs no plugin."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("ladder") / "runs"
    rungs: dict[str, list[str]] = {}
    for name, fields, kinds, effect in RUNGS:
        rungs[name] = []
        for kind in kinds:
            for seed in (1, 2, 3):
                spec = validate({"length": 64, "seed": seed, "attention": {"kind": kind}, **fields})
                loss = 4.4 + 0.01 * seed + (0 if kind == "dense" else effect + 0.002 * seed)
                leak = {"leak": True} if kind == "random" else {}
                rungs[name].append(synthetic.finished(store, spec, loss, sweep="ladder-00000000", **leak))
    ids = list(dict.fromkeys(run for ids in rungs.values() for run in ids))
    write_sweep(store, SweepRecord(id="ladder-00000000", spec={"verdict": {"margin": 0.02}}, run_ids=ids, rungs=rungs))
    return store


NAMES = [f"{i} {name}" for i, (name, *_) in enumerate(RUNGS, 1)]


def test_every_rung_is_one_pair_in_the_ladders_order(store: Path) -> None:
    found = compare(look_at(store))
    assert [table.setting for table in found.tables] == found.rungs == NAMES
    for table, (_, _, kinds, effect) in zip(found.tables, RUNGS, strict=True):
        (row,) = table.rows
        assert display_name(row.variant, table.setting) == display_name(kinds[1])
        assert row.seeds == [1, 2, 3]
        assert row.difference.mean == pytest.approx(effect + 0.004)
        assert row.verdict == ("LEAK" if kinds[1] == "random" else row.verdict)
    assert found.tables[0].rows[0].verdict == "LEAK"
    assert found.tables[2].rows[0].verdict == "worse"
    assert found.left_out == []
    assert found.best_rates == []


def test_overlapping_splits_are_warned_of(store: Path) -> None:
    (note,) = (note for note in compare(look_at(store)).warnings if "overlap" in note)
    n = look_at(store).runs["run_id"].nunique()
    assert note.startswith(f"9 of {n} runs have data.split = overlapping")
    assert "memory, not generalisation" in note


def test_the_table_fits_100_columns_and_names_the_rungs(shell: Shell, store: Path) -> None:
    code, out, err = shell("compare", "--store", str(store))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(name)) for name in NAMES]
    assert places == list(range(places[0], places[0] + len(NAMES))), "one line a rung"
    assert max(len(line.rstrip()) for line in lines[places[0] - 3 : places[-1] + 1]) <= 100
    assert "random" in lines[places[0]] and "LEAK" in lines[places[0]] and "-1.496" in lines[places[0]]
    assert "DSA" in lines[places[1]] and "LEAK" not in lines[places[1]]
    assert not any(line.startswith(("p:", "x:", "gap:")) for line in lines), "columns that are not shown"
    code, out, _ = shell("compare", "--store", str(store), "--json")
    assert json.loads(out)["rungs"] == NAMES
    code, out, _ = shell("compare", "--store", str(store), "--markdown")
    assert "| 1 as published | random |" in out


def test_the_experiments_table_has_dense_beside_sparse_of_each_rung(store: Path) -> None:
    table = experiment_table(look_at(store).runs)
    assert list(table["setting"]) == [name for name in NAMES for _ in range(2)]
    assert list(table["n"]) == [3] * 2 * len(NAMES)
    assert table["diff_mean"].iloc[1] == pytest.approx(-1.496)


def test_loss_by_position_has_a_panel_a_rung_and_marks_the_leak(store: Path) -> None:
    figures = pages("positions", at(store))
    titles = [axes.get_title(loc="left").split("\n") for figure in figures for axes in figure.axes]
    assert [title[0] for title in titles if len(title) == 2] == NAMES
    assert [title[1] for title in titles if len(title) == 2] == ["LEAK; lower is better", *["lower is better"] * 9]
    assert "rung 1 as published" in caption(figures[0])
    assert legend(figures[0])[:3] == ["dense", "DSA", "random [LEAK]"]
    assert legend(figures[1])[:2] == ["dense", "DSA"]
    assert "random" not in " ".join(legend(figures[1])), "it stands on none of these rungs"
    (upper, *_) = figures[0].axes
    random_line, dense_line = (
        next(line for line in upper.lines if line.get_color() == colour and len(line.get_xdata()) > 5)
        for colour in (look_colour(figures[0], "random [LEAK]"), look_colour(figures[0], "dense"))
    )
    assert (dense_line.get_ydata() - random_line.get_ydata()).mean() == pytest.approx(1.496, abs=0.01)


def look_colour(figure: object, name: str) -> object:
    legend = figure.legends[0]  # type: ignore[attr-defined]
    return next(
        h.get_color()
        for h, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
        if text.get_text() == name
    )


@pytest.mark.parametrize("figure", others_slow(["experiment", "flops", "forest", "sparsity", "indexer", "cost"], 2))
def test_the_other_figures_take_a_ladder(store: Path, figure: str) -> None:
    from dsabench.figures.catalogue import draw

    assert draw(figure, at(store))


def test_a_kind_named_like_a_word_of_its_rung_stays() -> None:
    assert within("dsa 3 dsa taught", "3 dsa taught") == "dsa"
    assert within("dsa d_model=64 top_k=3", "d_model=64") == "dsa top_k=3"


def test_a_run_of_two_rungs_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = [
        validate({"length": 64, "seed": seed, "attention": {"kind": kind}})
        for kind in ("dense", "dsa", "random")
        for seed in (1, 2, 3)
    ]
    ids = [synthetic.finished(tmp_path / "runs", one, 4.4, sweep="ladder-00000000") for one in spec]
    rungs = {"first": ids[:6], "second": [*ids[:3], *ids[6:]]}
    write_sweep(tmp_path / "runs", SweepRecord(id="ladder-00000000", spec={}, run_ids=ids, rungs=rungs))
    found = compare(look_at(tmp_path / "runs"))
    assert [[row.variant for row in table.rows] for table in found.tables] == [["dsa 1 first"], ["random 2 second"]]
    report_with(monkeypatch)  # no figure: they have tests of their own
    checks = write_report(look_at(tmp_path / "runs"), tmp_path / "out", selection=False).checks
    said = " ".join(check.text for check in checks)
    assert "9 of 9 runs" in said or "all 9 runs" in said.lower(), said
    assert "12" not in said
