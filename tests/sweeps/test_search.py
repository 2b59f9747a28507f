"""The search of a tuned sweep: a planted optimum is found, with equal budgets, and a killed search ends the same."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_search import BEST_INDEXER_RATE, BEST_RATE, Planted, planted_loss, searched, sweep_of
from shell import Shell

from dsabench.errors import SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.run import RunSpec
from dsabench.store import TuningRecord, read_run, read_sweep, readable_sweeps
from dsabench.sweeps.search import search_of

RATE, INDEXER = "train.learning_rate", "attention.indexer.learning_rate"


@pytest.fixture(autouse=True)
def _no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained, so no model is looked at."""
    monkeypatch.setattr("dsabench.sweeps.schedule._refuse_leaks", lambda *_: None)


def tuning_of(store: Path, sweep_id: str) -> TuningRecord:
    tuning = read_sweep(store, sweep_id).tuning
    assert tuning is not None
    return tuning


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_the_planted_optimum_is_found_within_the_budget(sampler: str, corpus: Path, tmp_path: Path) -> None:
    """25 trials over three decades (of a grid 25 rates of dense, 5 x 5 of DSA); the seeds then have the best settings,
    each variant its own."""
    search = searched(sweep_of(corpus, trials=25, sampler=sampler), tmp_path, Planted(tmp_path))
    record = read_sweep(tmp_path, search.identity)
    decades = 0.4  # half a step of the grid of five is 0.375
    for study in tuning_of(tmp_path, search.identity).studies:
        assert study.best is not None
        settings = study.trials[study.best].settings
        assert abs(math.log10(settings[RATE] / BEST_RATE[study.attention])) < decades
        if study.attention == "dsa":
            assert abs(math.log10(settings[INDEXER] / BEST_INDEXER_RATE)) < decades
        losses = [trial.val_loss for trial in study.trials if trial.val_loss is not None]
        assert study.trials[study.best].val_loss == min(losses)
        runs = [read_run(tmp_path, run_id) for run_id in study.run_ids]
        assert [run.spec["seed"] for run in runs] == [1, 2, 3]
        assert {run.spec["train"]["learning_rate"] for run in runs} == {settings[RATE]}
        assert {run.status for run in runs} == {"done"}
        assert set(study.run_ids) <= set(record.run_ids)
    assert len(record.run_ids) == 6


def test_a_guided_search_beats_a_blind_one(corpus: Path, tmp_path: Path) -> None:
    """TPE is told the losses: of as many trials more lie near the optimum than random ones do."""
    near = {}
    for sampler in ("tpe", "random"):
        search = searched(sweep_of(corpus, trials=25, sampler=sampler), tmp_path / sampler, Planted(tmp_path / sampler))
        losses = [t.val_loss for s in tuning_of(tmp_path / sampler, search.identity).studies for t in s.trials]
        near[sampler] = sum(loss is not None and loss < 2.3 for loss in losses)
    assert near["tpe"] > 1.3 * near["random"] > 0


def test_budgets_are_equal_and_fields_that_a_variant_lacks_are_not_tuned(corpus: Path, tmp_path: Path) -> None:
    search = searched(sweep_of(corpus, trials=4, steps=10, seed=77), tmp_path, Planted(tmp_path))
    dense, dsa = tuning_of(tmp_path, search.identity).studies
    assert (dense.over, dense.lacks) == ([RATE], [INDEXER])
    assert (dsa.over, dsa.lacks) == ([RATE, INDEXER], [])
    for study in (dense, dsa):
        assert [trial.tokens for trial in study.trials] == [10 * 64] * 4
        for trial in study.trials:
            spec = read_run(tmp_path, trial.run_id).spec
            assert (spec["seed"], spec["train"]["steps"]) == (77, 10)
    short = search.studies[1]
    short.finals, search.studies[0].finals = [], []
    short.trials.pop()
    short.trials.append(search.studies[0].trials[0])  # a trial of other settings, but as many
    search.studies[0].trials.pop()
    with pytest.raises(AssertionError, match="different numbers of trials"):
        search._choose()


@pytest.mark.parametrize("after", [0, 3, 8, 11])
def test_a_killed_search_goes_on_and_ends_the_same(after: int, corpus: Path, tmp_path: Path) -> None:
    """Ctrl-C within a round, between rounds, and among the seeds; nothing is trained twice."""
    whole, killed = Planted(tmp_path / "whole"), Planted(tmp_path / "killed", most=after)
    sweep = sweep_of(corpus, trials=4)
    search = searched(sweep, whole.store, whole)
    with pytest.raises(KeyboardInterrupt):
        searched(sweep_of(corpus, trials=4), killed.store, killed)
    assert len(killed.trained) == after
    rest = Planted(killed.store)
    again = searched(sweep_of(corpus, trials=4), killed.store, rest)
    assert again.identity == search.identity
    assert tuning_of(killed.store, search.identity) == tuning_of(whole.store, search.identity)
    assert sorted([*killed.trained, *rest.trained]) == sorted(whole.trained)
    assert len(readable_sweeps(killed.store)[0]) == 1


def test_a_trial_that_fails_counts_as_tried_and_is_never_best(corpus: Path, tmp_path: Path) -> None:
    def loss(spec: RunSpec) -> float | None:
        return None if spec.train.learning_rate < 1e-2 and spec.seed == 1000 else planted_loss(spec)

    search = searched(sweep_of(corpus, trials=6), tmp_path, Planted(tmp_path, loss))
    for study in tuning_of(tmp_path, search.identity).studies:
        assert study.best is not None
        assert len(study.trials) == 6 and any(trial.val_loss is None for trial in study.trials)
        assert study.trials[study.best].settings[RATE] >= 1e-2
    with pytest.raises(SpecError, match=r"none of the 6 trials of dense at 32 ended with a finite loss"):
        searched(sweep_of(corpus, trials=6, seed=5), tmp_path, Planted(tmp_path, lambda spec: None))


def test_trials_go_by_what_they_are_until_their_settings_are_known(corpus: Path, tmp_path: Path) -> None:
    search = search_of(sweep_of(corpus, trials=3), tmp_path, retry_failed=False, on_oom="fail")
    assert search is not None
    names = [run.run_id for run in search.outlook()]
    assert len(names) == 2 * (3 + 3) and len(set(names)) == 12
    assert "dsa at 32, trial 2" in names and "dense at 32, seed 3 at its best" in names


def test_without_optuna_one_message_says_how_to_get_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r"pip install 'dsabench\[tune\]'") as raised:
        search_of(sweep_of(corpus, trials=4), tmp_path, retry_failed=False, on_oom="fail")
    assert "\n" not in str(raised.value)
    assert searched(sweep_of(corpus, trials=4, sampler="grid"), tmp_path, Planted(tmp_path)).is_final


def test_how_many_keys_a_query_reads_is_not_tuned(corpus: Path, tmp_path: Path) -> None:
    """Whatever the field is called by which a method reads more of them."""
    sweep = sweep_of(corpus, trials=4, sampler="grid", over={RATE: [1e-3, 1e-2], "attention.window": [4, 8]})
    del sweep.axes["attention.kind"]
    sweep.set("attention", {"kind": "nsa", "window": 4}, "")
    with pytest.raises(SpecError, match=r"tune\.over\.attention\.window = 8: a query of nsa at 32 would read"):
        search_of(sweep, tmp_path, retry_failed=False, on_oom="fail")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 2}, r"tune\.seed = 2 is one of the sweep's seeds"),
    ({"over": {INDEXER: [1e-3, 1e-2]}}, r"tune\.over has no field of dense at 32"),
    ({"over": {RATE: [1e-3], "attention.beta": [1, 2]}}, r"tune\.over\.attention\.beta: none of the sweep's variants"),
    ({"over": {RATE: {"low": -1.0, "high": 1.0, "scale": "linear"}}}, r"train\.learning_rate = -1"),
    ({"sampler": "grid", "trials": 5}, r"fields of dsa at 32 .* do not make 5 settings; they make 4 or 9"),
    ({"over": {"train.steps": [10, 20]}}, r"over\.train\.steps: trials must not change what is compared"),
    ({"over": {RATE: {"low": 1.0, "high": 0.1}}}, r"low = 1 is not below high = 0\.1"),
    ({"trials": 0}, r"tune\.trials = 0"),
]


@pytest.mark.parametrize(("tune", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_unfair_search_is_refused(tune: dict[str, Any], message: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        search_of(sweep_of(corpus, **{"trials": 4, **tune}), tmp_path, retry_failed=False, on_oom="fail")


def test_a_field_that_would_change_the_parent_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Each trial would train a parent of its own; one whose parent fixes the field is accepted."""

    def search(parent: dict[str, Any]) -> Callable[[], object]:
        sweep = sweep_of(corpus, trials=4)
        sweep.base["start"] = {"parent": {"attention.kind": "dense", **parent}}
        return lambda: search_of(sweep, tmp_path, retry_failed=False, on_oom="fail")

    with pytest.raises(SpecError, match=r"tune\.over\.train\.learning_rate: it would change the parent"):
        search({})()
    assert search({RATE: 1e-3})() is not None


def test_axes_ladders_and_smaller_micro_batches_are_no_part_of_a_search(corpus: Path, tmp_path: Path) -> None:
    sweep = sweep_of(corpus, trials=4)
    with pytest.raises(SpecError, match="--on-oom accumulate"):
        search_of(sweep, tmp_path, retry_failed=False, on_oom="accumulate")
    sweep.set_axis(RATE, [1e-3, 1e-2], "")
    with pytest.raises(SpecError, match=r"train\.learning_rate is an axis and a field of the search"):
        search_of(sweep, tmp_path, retry_failed=False, on_oom="fail")
    ladder = load_sweep("convert_quick")
    ladder.set_tune({"trials": 2}, lambda path: "")
    with pytest.raises(SpecError, match="ladder"):
        search_of(ladder, tmp_path, retry_failed=False, on_oom="fail")


def test_a_config_says_the_search_and_flags_change_it(shell: Shell, corpus: Path, tmp_path: Path) -> None:
    """The plan of `--dry-run` has the search; a mistake in the file is named with its line."""
    sweep = sweep_of(corpus, trials=4, sampler="grid").plain()
    sweep.pop("verdict")
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps(sweep), encoding="utf-8")  # JSON is YAML
    over = ("--tune-over", f"{RATE}=1e-3..1e-1", "--tune-over", f"{INDEXER}=1e-3|1e-2")
    plan = json.loads(shell("sweep", "--config", str(config), "--dry-run", "--json")[1])
    assert len(plan["runs"]) == 2 * 4 + 6
    more = ("--tune", "2", "--set", "tune.sampler=random", *over)
    plan = json.loads(shell("sweep", "--config", str(config), "--dry-run", "--json", *more)[1])
    assert plan["sweep"]["tune"]["over"] == {
        RATE: {"low": 1e-3, "high": 1e-1, "scale": "log"},
        INDEXER: [1e-3, 1e-2],
    }
    assert (plan["sweep"]["tune"]["trials"], plan["sweep"]["tune"]["sampler"]) == (2, "random")
    code, _, err = shell("sweep", "--config", "quick", "--dry-run", *over)
    assert code == 2 and "give their number too" in err
    config.write_text("tune:\n  trials: 4\n  sampler: best\n", encoding="utf-8")
    code, _, err = shell("sweep", "--config", str(config), "--dry-run")
    assert code == 2 and f"{config}:3: tune.sampler = 'best'" in err
