"""The audit finds what is planted, one defect a test, and is content with runs that have none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import experiment

from dsabench.analysis import record_checks as audit_module
from dsabench.analysis.comparison import Check
from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.record_checks import audit
from dsabench.analysis.variants import label_variants
from dsabench.store import load_curves, load_runs

NAMES = {
    "leak": "Look-ahead",
    "win": "No win too large to believe",
    "position": "Loss by position",
    "everything": "Selections leave something out",
    "start": "Start of training",
    "chance": "Better than token frequencies",
    "recall": "The indexer learnt",
    "repeats": "Training text not repeated often",
    "data": "Same text, same tokens",
    "size": "Same size but for the indexer",
    "machine": "Same machine",
    "times": "Step times",
    "complete": "No run missing",
    "as_written": "No run damaged",
}


class Recorded:
    """What 12 honest runs recorded: tables to plant a defect in."""

    def __init__(self, runs: pd.DataFrame, curves: pd.DataFrame) -> None:
        self.runs, self.curves = runs.copy(), curves.copy()

    def rows(self, attention: str, n: int | None = None) -> list[int]:
        """Index of the runs of an attention, the first n."""
        return list(self.runs.index[self.runs["attention"] == attention][:n])

    def ids(self, attention: str, n: int | None = None) -> tuple[str, ...]:
        return tuple(self.runs.loc[self.rows(attention, n), "run_id"])

    def checks(self, audited: int = 0) -> dict[str, Check]:
        labelled = label_variants(self.runs)
        found = audit(labelled, find_pairs(labelled, "dense").frame, self.curves, audited=audited)
        assert [check.name for check in found] == list(NAMES.values())
        return dict(zip(NAMES, found, strict=True))

    def only(self, name: str, outcome: str, *words: str) -> Check:
        """The check `name` has this outcome and all others are content."""
        found = self.checks(audited=len(self.runs))
        assert {key: check.outcome for key, check in found.items() if check.outcome != "ok"} == {name: outcome}
        for word in words:
            assert word in found[name].text
        return found[name]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "runs"
    experiment(folder, lengths=(64, 128), seeds=(1, 2, 3))
    return folder


@pytest.fixture
def recorded(store: Path) -> Recorded:
    runs = load_runs(store)
    return Recorded(runs, load_curves(store, columns=["val_loss", "loss_by_position"]).frame)


def test_honest_runs_pass_with_their_numbers(recorded: Recorded) -> None:
    found = recorded.checks(audited=12)
    assert {check.outcome for check in found.values()} == {"ok"}
    assert not any(check.run_ids for check in found.values())
    starts = recorded.curves.loc[recorded.curves["step"] == 0, "val_loss"]
    assert f"{starts.min():.3f} to {starts.max():.3f} nats" in found["start"].text
    assert "9.011" in found["start"].text
    assert f"{math.log(8192):.3f}" == "9.011"
    assert "6.750 nats" in found["chance"].text
    assert "same 9,400,000 parameters; an indexer has 332,288 more" in found["size"].text
    assert "DSA 0.90 (chance 0.60)" in found["recall"].text
    d = recorded.runs.set_index(["attention", "length", "seed"])["val_loss"]
    assert f"{(d['dsa'] - d['dense']).min():+.3f} nats" in found["win"].text
    assert "All 12 runs" in found["complete"].text
    assert "same corpus, tokenizer and number of tokens" in found["data"].text


def test_without_an_audit_it_says_so(recorded: Recorded) -> None:
    found = recorded.checks()
    assert found["leak"].outcome == "not recorded"
    assert "No causality audit is recorded in these runs" in found["leak"].text
    assert recorded.checks(audited=5)["leak"].outcome == "warn"


def test_a_marked_leak(recorded: Recorded) -> None:
    recorded.runs["leak"] = pd.array([False] * len(recorded.runs), dtype="boolean")
    recorded.runs.loc[recorded.rows("dsa", 2), "leak"] = True
    assert recorded.only("leak", "fail", "2 runs marked LEAK").run_ids == recorded.ids("dsa", 2)


def test_a_win_that_is_absurd(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dsa", 1), "val_loss"] -= 2
    assert recorded.only("win", "fail", "1 of 6 pairs", "a bug until shown otherwise").run_ids == recorded.ids("dsa", 1)


@pytest.mark.parametrize(("nats", "outcome"), [(0.3, "warn"), (3.0, "fail")])
def test_an_advantage_early_in_the_window(recorded: Recorded, nats: float, outcome: str) -> None:
    """What a leak does: the loss falls at the positions before k, and a little in the mean."""
    leaking = recorded.curves["run_id"].isin(recorded.ids("dsa")) & recorded.curves["loss_by_position"].notna()
    for i in recorded.curves.index[leaking]:
        losses = np.array(recorded.curves.at[i, "loss_by_position"])
        losses[: len(losses) // 8] -= nats
        recorded.curves.at[i, "loss_by_position"] = losses
    recorded.only("position", outcome, "DSA", "part 1 of 8", f"-{nats:.1f}")


def test_a_first_loss_far_from_that_of_guessing(recorded: Recorded) -> None:
    mine = recorded.curves["run_id"].isin(recorded.ids("dense", 1)) & (recorded.curves["step"] == 0)
    recorded.curves.loc[mine, "val_loss"] = 236.0
    found = recorded.only("start", "warn", "1 of 12 runs", "to 236.000", "9.011")
    assert found.run_ids == recorded.ids("dense", 1)


def test_a_run_that_learnt_nothing(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dense", 1), "unigram_loss"] = 4.0
    assert recorded.only("chance", "fail", "1 of 12 runs", "learnt nothing").run_ids == recorded.ids("dense", 1)


@pytest.mark.parametrize("column", ["tokens", "fingerprint.tokenizer"])
def test_a_pair_on_different_data(recorded: Recorded, column: str) -> None:
    """Digests that differ make settings of their own, so such a pair can only come from a caller's own frame."""
    labelled = label_variants(recorded.runs)
    pairs = find_pairs(labelled, "dense").frame
    pairs[f"a.{column}"] = pairs[f"a.{column}"].astype(object)
    pairs.loc[0, f"a.{column}"] = "other"
    found = next(check for check in audit(labelled, pairs, recorded.curves) if check.name == NAMES["data"])
    assert found.outcome == "fail"
    assert found.run_ids == (pairs.loc[0, "a.run_id"],)
    assert ("tokenizer" if "." in column else "number of tokens") in found.text


def test_two_corpora_are_named(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.runs["seed"] == 3, "fingerprint.corpus"] = "c1"
    recorded.only("data", "warn", "2 corpora", "never pooled")


def test_models_of_another_size(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dsa", 1), "params"] += 1024
    assert recorded.only("size", "fail", "1 of 6 pairs", "1,024").run_ids == recorded.ids("dsa", 1)


def test_pairs_of_two_machines(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dense", 2), "environment.device_name"] = "another"
    recorded.only("machine", "warn", "2 of 6 pairs", "times and memory are not")


def test_a_selection_at_chance(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dsa", 1), "mass_recall"] = 0.61
    assert recorded.only("recall", "warn", "1 of 6 runs", "than a random selection").run_ids == recorded.ids("dsa", 1)


@pytest.mark.parametrize(("controls", "outcome"), [(1, "ok"), (5, "ok"), (6, "not recorded")])
def test_the_random_control_is_at_chance_by_design(recorded: Recorded, controls: int, outcome: str) -> None:
    recorded.runs.loc[recorded.rows("dsa", controls), ["mass_recall", "attention"]] = [0.61, "random"]
    found = recorded.checks()["recall"]
    assert (found.outcome, found.run_ids) == (outcome, ())
    assert ("random 0.61" in found.text) and (outcome != "ok" or f"each of {6 - controls} run" in found.text)


@pytest.mark.parametrize(("k", "outcome"), [(127, "ok"), (128, "fail"), (500, "fail")])
def test_a_selection_that_keeps_everything(recorded: Recorded, k: int, outcome: str) -> None:
    """At 128 tokens; at 64 each of these keeps everything."""
    recorded.runs.loc[recorded.rows("dsa"), ["attention.top_k", "attention.top_k_ratio"]] = [k, None]
    recorded.runs = recorded.runs[recorded.runs["length"] == 128]
    found = recorded.checks(audited=6)["everything"]
    assert (found.outcome, found.withholds) == (outcome, outcome == "fail")
    assert found.run_ids == (recorded.ids("dsa") if outcome == "fail" else ())
    assert ("DSA at 128 tokens selects everything" in found.text) == (outcome == "fail")
    assert recorded.checks(audited=6)["recall"].outcome == ("ok" if outcome == "ok" else "not recorded")


@pytest.mark.parametrize(("epochs", "outcome"), [(1.5, "ok"), (1.51, "warn"), (math.nan, "not recorded")])
def test_text_that_was_repeated_often(recorded: Recorded, epochs: float, outcome: str) -> None:
    recorded.runs["epochs"] = epochs
    if outcome == "warn":
        found = recorded.only("repeats", "warn", "12 of 12 runs more than 1.5 times", "disturbs memorising")
        assert len(found.run_ids) == 12
    else:
        assert recorded.checks()["repeats"].outcome == outcome


def test_step_times_of_a_busy_machine(recorded: Recorded) -> None:
    """The times of a real sweep on a busy CPU."""
    rows = [i for i in recorded.rows("dense") if recorded.runs.at[i, "length"] == 64]
    recorded.runs.loc[rows, "step_ms"] = [264.0, 218.0, 100.0]
    found = recorded.only("times", "warn", "2.64-fold between seeds", "in brackets")
    assert set(found.run_ids) == set(recorded.runs.loc[rows, "run_id"])


@pytest.mark.parametrize(
    ("load", "threads", "device", "busy"),
    [
        *((0.4, 2, "cpu", False), (0.6, 2, "cpu", True)),  # nothing is left idle of two cores
        *((1.4, 1, "cpu", False), (1.6, 1, "cpu", True)),  # one core is
        *((1.4, 2, "cuda:0", False), (1.6, 2, "cuda:0", True)),  # beside a GPU one thread launches its work
    ],
)
def test_step_times_beside_other_programs(
    recorded: Recorded, load: float, threads: int, device: str, busy: bool
) -> None:
    recorded.runs = recorded.runs.assign(**{"environment.cpu_count": 2, "environment.threads": threads})
    recorded.runs["environment.device"], recorded.runs["other_load"] = device, load
    assert recorded.checks(audited=12)["times"].outcome == ("warn" if busy else "ok")
    if busy:
        assert "other programs took up to 0.6 of the cores" in recorded.only("times", "warn").text.lower()


def test_runs_that_did_not_finish(recorded: Recorded) -> None:
    recorded.runs.loc[recorded.rows("dsa", 1), "status"] = "failed"
    recorded.only("complete", "warn", "1 of 12 runs did not finish (1 failed)")


def test_nothing_finished_is_not_a_pass(recorded: Recorded) -> None:
    recorded.runs["status"] = "failed"
    outcomes = {name: check.outcome for name, check in Recorded(recorded.runs, recorded.curves[:0]).checks().items()}
    assert (outcomes.pop("complete"), outcomes.pop("as_written")) == ("warn", "ok")
    assert set(outcomes.values()) == {"not recorded"}


def test_a_store_that_records_little(recorded: Recorded) -> None:
    """As a plugin's or an older version's may: every check says so and none passes for want of numbers."""
    keep = ["run_id", "status", "attention", "length", "seed", "val_loss", "updated", "attention.kind"]
    found = Recorded(recorded.runs[keep], recorded.curves.assign(loss_by_position=None)).checks()
    assert {name for name, check in found.items() if check.outcome == "ok"} == {
        *("everything", "win", "machine", "complete")
    }
    assert {check.outcome for check in found.values()} == {"ok", "not recorded"}


def test_the_limits_are_far_from_what_seeds_do() -> None:
    """On an H100, 20 pairs of the shipped experiment: eighths of the window differ by at most 0.013 nats."""
    assert 5 * 0.013 < audit_module.LARGE_WIN < audit_module.ABSURD_WIN
