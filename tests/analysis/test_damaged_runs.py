"""Damaged runs in a comparison: named, left out, and of no influence on what is said of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import hurt
import pytest
from resealed import reseal
from synthetic import experiment

from dsabench.analysis import compare as judging
from dsabench.analysis.damaged_runs import damage_sentence
from dsabench.analysis.record_checks import check_alone
from dsabench.analysis.scope import look_at
from dsabench.figures.data import figure_data
from dsabench.store import Curves, load_curves, load_runs, remove_runs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for run_id in experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2, 3, 4), evaluations=2):
        reseal(tmp_path / "runs" / run_id)
    return tmp_path / "runs"


def learning_rate(folder: Path) -> None:
    """Another digit in a field of the spec, which would be a setting of its own."""
    path = folder / "run.json"
    text = path.read_text()
    assert '"learning_rate": 0.001' in text
    path.write_text(text.replace('"learning_rate": 0.001', '"learning_rate": 0.002'))


@pytest.mark.parametrize("damage", [*hurt.ALL, learning_rate], ids=lambda f: f.__name__)
def test_the_others_are_judged_as_if_it_were_not_there(store: Path, damage: Callable[[Path], None]) -> None:
    folder = sorted(store.glob("dsa-*"))[1]
    damage(folder)
    found = judging.compare(look_at(store, everything=True))
    assert sum(folder.name in warning for warning in found.warnings) == 1
    remove_runs(store, [folder.name])
    without = judging.compare(look_at(store, everything=True))
    assert [t.model_dump_json() for t in found.tables] == [t.model_dump_json() for t in without.tables]
    assert found.answer.startswith(without.answer) and "damaged" not in without.answer
    assert not any("damaged" in warning for warning in without.warnings)


def test_a_run_that_goes_bad_while_it_is_read_is_not_half_judged(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is whole, its evaluations are not."""
    bad = sorted(store.glob("dsa-*"))[1].name
    scope = look_at(store)

    def curves(place: Path, ids: list[str], **more: object) -> Curves:
        found = load_curves(place, ids, columns=None)
        is_asked = bad in ids
        return Curves(found.frame[found.frame["run_id"] != bad], {bad: "metrics.jsonl is gone"} if is_asked else {})

    for module in ("analysis.compare", "analysis.record_checks", "figures.data"):
        monkeypatch.setattr(f"dsabench.{module}.load_curves", curves)
    found = judging.compare(scope)
    assert len(found.rows[0].seeds) == 3 and any(f"{bad} (metrics.jsonl is gone)" in w for w in found.warnings)
    data = figure_data(scope)
    assert bad not in set(data.done["run_id"]) and any(bad in note for note in data.notes)
    assert any(bad in check.text for check in check_alone(scope))


def test_many_damaged_runs_are_counted(store: Path) -> None:
    for folder in store.glob("dsa-*"):
        hurt.metrics_end(folder)
    text = damage_sentence(load_runs(store))
    assert text.startswith("4 runs are damaged and were left out: dsa-") and " and 1 more; " in text
    assert damage_sentence(load_runs(store)[:4]) == ""


def test_seals_are_counted_where_none_is_damaged(store: Path) -> None:
    check = judging.compare(look_at(store)).checks[-1]
    assert (check.outcome, "all 8 runs are what was written" in check.text) == ("ok", True)
    path = next(store.glob("dsa-*")) / "run.json"
    document = json.loads(path.read_text())
    del document["seal"]
    path.write_text(json.dumps({**document, "version": "0.2.0"}))
    check = judging.compare(look_at(store)).checks[-1]
    assert check.outcome == "not recorded" and "7 of 8 runs are what was written" in check.text
