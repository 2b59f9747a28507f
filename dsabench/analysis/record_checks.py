"""Checks of a store's records: reasons to believe, or not to believe, its comparison, each with its numbers.

Only what was recorded is looked at; nothing is trained or loaded. A check that passes shows that one mistake was not
made, not that none was.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dsabench.analysis.check_wording import count, difference, listed, of, span
from dsabench.analysis.comparison import Check
from dsabench.analysis.damaged_runs import damage_sentence, damaged_ids
from dsabench.analysis.learning_checks import better_than_guessing, indexer_learnt, seldom_repeated, starts_at_chance
from dsabench.analysis.pairing import DIFFERENT_MACHINES
from dsabench.analysis.scope import Scope
from dsabench.analysis.search_checks import equal_budgets
from dsabench.analysis.selection_width import leaves_something_out
from dsabench.analysis.step_times_check import check_step_times
from dsabench.analysis.variants import display_name, label_variants
from dsabench.store import Curves, load_curves
from dsabench.store.curves import BY_POSITION
from dsabench.store.table import DAMAGED

ABSURD_WIN = 0.5
"""Nats per token: a variant that beats its baseline by more, in all or in an eighth of the window, is looked into."""

LARGE_WIN = 0.1
"""Nats per token, in an eighth of the window, mean over seeds: far above what seeds do."""

_LEARNT = " On a task it may be that the variant has learnt it and the baseline has not: see their accuracies."
"""Another possible cause of a large difference on a task, whose loss falls all at once when it is learnt."""

_SAME_MACHINE, _COMPLETE = "Same machine", "No run missing"
WIN = "No win too large to believe"

LOOKED_AT = ("val_loss", "train_loss", "task_accuracy", BY_POSITION)
"""The columns of evaluations that the checks look at."""

_PARTS = 8
"""Parts of the window in which losses by position are compared."""


def audit(runs: pd.DataFrame, pairs: pd.DataFrame, curves: pd.DataFrame, audited: int = 0) -> list[Check]:
    """The checks, in the order in which a reader should doubt: the same for `sweep`, `compare` and `report`.

    runs: of `label_variants`. pairs: the frame of `find_pairs`. curves: evaluations of the finished runs, as
    `load_curves` gives them, with the columns LOOKED_AT. audited: how many of the finished runs' records say
    whether the run leaks.
    """
    done = runs[runs["finished"]]
    return [
        _look_ahead(runs, audited),
        _large_wins(pairs),
        _by_position(pairs, curves),
        leaves_something_out(pairs),
        starts_at_chance(done, curves),
        better_than_guessing(done),
        indexer_learnt(done),
        seldom_repeated(done),
        _same_data(done, pairs),
        _parameters(pairs),
        _machines(pairs),
        check_step_times(done),
        _complete(runs),
        _as_written(runs),
    ]


def audit_scope(scope: Scope, labelled: pd.DataFrame, pairs: pd.DataFrame, curves: Curves) -> list[Check]:
    """The checks of the runs of a scope; a run that stands on several rungs of a ladder is one run."""
    finished = labelled.loc[labelled["finished"], "run_id"]
    said = scope.runs.loc[scope.runs["leak"].notna() & scope.runs["run_id"].isin(finished), "run_id"]
    checks = audit(labelled.drop_duplicates("run_id"), pairs, curves.frame, audited=said.nunique())
    return [*checks, *equal_budgets(scope)]


def check_alone(scope: Scope) -> list[Check]:
    """The checks of a scope whose runs have no baseline, and so no pairs."""
    labelled = label_variants(scope.runs)
    pairs = pd.DataFrame(columns=["setting", "length", "seed", "variant", "a.run_id", "b.run_id"])
    curves = load_curves(scope.store, list(labelled.loc[labelled["finished"], "run_id"]), columns=LOOKED_AT)
    if curves.damaged:
        return check_alone(scope.with_damaged(curves.damaged))
    return audit_scope(scope, labelled, pairs, curves)


def said_first(checks: list[Check]) -> list[str]:
    """What must be read before any number: the checks that failed, then those that warn, without those whose facts
    stand in the notes and in the list of runs that are in no pair."""
    found = [check for outcome in ("fail", "warn") for check in checks if check.outcome == outcome]
    return [check.text.removesuffix(".") for check in found if check.name not in (_SAME_MACHINE, _COMPLETE)]


def _look_ahead(runs: pd.DataFrame, audited: int) -> Check:
    name = "Look-ahead"
    marked = tuple(runs.loc[runs["leak"], "run_id"])
    if marked:
        text = f"{count(len(marked), 'run')} marked LEAK: the attention sees later tokens. Such a run is never judged."
        return Check(name=name, outcome="fail", text=text, run_ids=marked, withholds=True)
    if audited:
        finished = int(runs["finished"].sum())
        text = f"The causality audit of {of(audited, finished, 'run')} is recorded, and found no leak."
        return Check(name=name, outcome="ok" if audited >= finished else "warn", text=text)
    return Check(
        name=name,
        outcome="not recorded",
        text="No causality audit is recorded in these runs, and none is marked LEAK: they were trained before dsabench "
        "audited every run. `dsabench audit RUN` looks at one with its trained weights.",
    )


def _large_wins(pairs: pd.DataFrame) -> Check:
    """Pairs in which the variant ends so far below its baseline that it must be looked into; `fail` when there are."""
    name = WIN
    d = difference(pairs, "val_loss")
    if d.empty:
        return Check(name=name, outcome="not recorded", text="There is no pair to compare.")
    low = f"{d.min():+.3f}"
    wins = tuple(pairs.loc[d.index[d < -ABSURD_WIN], "a.run_id"])
    if wins:
        text = (
            f"{of(len(wins), len(d), 'pair')} end more than {ABSURD_WIN:g} nats per token below the baseline "
            f"(largest {low}). That is a bug until shown otherwise, most likely a look-ahead leak."
        )
        if _are_of_tasks(pairs):
            return Check(
                name=name, outcome="warn", text=text.replace("per token", "per answer") + _LEARNT, run_ids=wins
            )
        return Check(name=name, outcome="fail", text=text, run_ids=wins)
    unit = "answer" if _are_of_tasks(pairs) else "token"
    text = f"The largest advantage over the baseline is {low} nats per {unit}, of {count(len(d), 'pair')}."
    if d.min() >= 0:
        text = f"In none of {count(len(d), 'pair')} is the variant ahead of the baseline."
    return Check(name=name, outcome="ok", text=f"{text} More than {ABSURD_WIN:g} would be taken for a bug.")


def _by_position(pairs: pd.DataFrame, curves: pd.DataFrame) -> Check:
    """Differences to the baseline in each part of the window, mean over seeds: a leak is an advantage early in it."""
    name = "Loss by position"
    last = curves[curves[BY_POSITION].notna()].drop_duplicates("run_id", keep="last")
    losses = dict(zip(last["run_id"], (np.asarray(values, float) for values in last[BY_POSITION]), strict=True))
    found: list[tuple[float, int, str, int, tuple[str, ...]]] = []
    for _, group in pairs.groupby(["variant", "length"]):
        variant, length = str(group["variant"].iloc[0]), int(group["length"].iloc[0])
        both = [(a, b) for a, b in zip(group["a.run_id"], group["b.run_id"], strict=True) if {a, b} <= losses.keys()]
        both = [(a, b) for a, b in both if len(losses[a]) == len(losses[b]) > 0]
        if not both:
            continue
        mean = np.mean([losses[a] - losses[b] for a, b in both], axis=0)
        # Of a task some bins have no answer, and so no loss.
        scored = [part[np.isfinite(part)] for part in np.array_split(mean, min(_PARTS, len(mean)))]
        parts = [float(part.mean()) if len(part) else math.inf for part in scored]
        part = int(np.argmin(parts))
        if math.isfinite(parts[part]):
            found.append((parts[part], part, variant, length, tuple(a for a, _ in both)))
    if not found:
        return Check(
            name=name, outcome="not recorded", text="No pair has a recorded loss by position, where a leak shows first."
        )
    advantage, part, variant, length, run_ids = min(found)
    where = f"{display_name(variant)} at {length} tokens, part {part + 1} of {min(_PARTS, length)} of the window"
    groups = "Parts are of equal length; the figure of positions has narrower ones first."
    if advantage > -LARGE_WIN:
        text = (
            f"In no part of the window is a variant far ahead: the largest advantage over the baseline, mean over "
            f"seeds, is {min(advantage, 0.0):+.3f} nats ({where}). A look-ahead leak would show here first. {groups}"
        )
        return Check(name=name, outcome="ok", text=text)
    text = (
        f"{where}: {advantage:+.3f} nats against the baseline, mean over seeds. A look-ahead leak looks like this. "
        f"{groups}"
    )
    if _are_of_tasks(pairs):
        return Check(name=name, outcome="warn", text=text + _LEARNT, run_ids=run_ids)
    return Check(name=name, outcome="fail" if advantage < -ABSURD_WIN else "warn", text=text, run_ids=run_ids)


def _are_of_tasks(pairs: pd.DataFrame) -> bool:
    """Whether every pair is of runs on a task."""
    return len(pairs) > 0 and bool(np.isfinite(pairs["a.task_accuracy"].astype(float)).all())


def _same_data(done: pd.DataFrame, pairs: pd.DataFrame) -> Check:
    name = "Same text, same tokens"
    names = {"fingerprint.corpus": "corpus", "fingerprint.tokenizer": "tokenizer", "tokens": "number of tokens"}
    recorded = [column for column in names if f"a.{column}" in pairs and done[column].notna().any()]
    if pairs.empty or not recorded:
        return Check(
            name=name, outcome="not recorded", text="No pair has recorded digests of its corpus and tokenizer."
        )
    # NA equals nothing: a pair of which one side says nothing is not shown to agree.
    agree = {c: (pairs[f"a.{c}"].astype("string") == pairs[f"b.{c}"].astype("string")).fillna(False) for c in recorded}
    differ = ~pd.DataFrame(agree).all(axis=1)
    if differ.any():
        what = ", ".join(names[column] for column, same in agree.items() if not same.all())
        text = f"{of(int(differ.sum()), len(pairs), 'pair')} differ, or say nothing, in: {what}."
        return Check(name=name, outcome="fail", text=text, run_ids=tuple(pairs.loc[differ, "a.run_id"]))
    text = f"In all {count(len(pairs), 'pair')} both runs have the same {listed([names[c] for c in recorded])}."
    digests = {c: done[c].dropna().nunique() for c in recorded if c.startswith("fingerprint.")}
    several = {names[column]: n for column, n in digests.items() if n > 1}
    if several:
        there = listed([f"{n} {word if word != 'corpus' else 'corpora'}" for word, n in several.items()])
        there = there.replace("tokenizer", "tokenizers")
        return Check(
            name=name,
            outcome="warn",
            text=f"{text} Among the runs there are {there}: settings of their own, never pooled.",
        )
    return Check(name=name, outcome="ok", text=text)


def _parameters(pairs: pd.DataFrame) -> Check:
    name = "Same size but for the indexer"
    columns = ["a.params", "b.params", "a.indexer_params", "b.indexer_params"]
    known = pairs.dropna(subset=columns) if set(columns) <= set(pairs) else pairs.iloc[:0]
    if known.empty:
        return Check(name=name, outcome="not recorded", text="No pair has recorded parameter counts.")
    ours, theirs = (known[f"{side}.params"] - known[f"{side}.indexer_params"].astype(float) for side in "ab")
    differ = ours != theirs
    if differ.any():
        text = (
            f"{of(int(differ.sum()), len(known), 'pair')} differ in parameters outside the indexer, by up to "
            f"{(ours - theirs).abs().max():,.0f}: the models differ in more than their attention."
        )
        return Check(name=name, outcome="fail", text=text, run_ids=tuple(known.loc[differ, "a.run_id"]))
    text = (
        f"In all {count(len(known), 'pair')} the models have the same {span(theirs, ',.0f')} parameters; an indexer "
        f"has {span(known['a.indexer_params'].astype(float), ',.0f')} more."
    )
    return Check(name=name, outcome="ok", text=text)


def _machines(pairs: pd.DataFrame) -> Check:
    name = _SAME_MACHINE
    if pairs.empty:
        return Check(name=name, outcome="not recorded", text="There is no pair to compare.")
    apart = ~pairs["timed"]
    if apart.any():
        text = (
            f"{of(int(apart.sum()), len(pairs), 'pair')} ran on {DIFFERENT_MACHINES}: "
            "their losses are compared, their times and memory are not."
        )
        return Check(name=name, outcome="warn", text=text, run_ids=tuple(pairs.loc[apart, "a.run_id"]))
    return Check(
        name=name, outcome="ok", text=f"Both runs of each of {count(len(pairs), 'pair')} ran on one kind of machine."
    )


def _complete(runs: pd.DataFrame) -> Check:
    """A result from the runs that happened to finish is not the result that was planned."""
    name = _COMPLETE
    counted = runs["finished"] | runs["status"].isin(DAMAGED)  # damaged ones are named by a check of their own
    left_out = runs.loc[~counted & ~runs["reason"].str.startswith("superseded"), ["run_id", "reason"]]
    if left_out.empty:
        return Check(name=name, outcome="ok", text=f"All {count(int(counted.sum()), 'run')} finished.")
    reasons = ", ".join(f"{n} {reason}" for reason, n in left_out["reason"].value_counts(sort=True).items())
    text = f"{of(len(left_out), len(runs), 'run')} did not finish ({reasons}); what is compared is the rest."
    return Check(name=name, outcome="warn", text=text, run_ids=tuple(left_out["run_id"]))


def _as_written(runs: pd.DataFrame) -> Check:
    """Whether what is stored is what was written, by the seals of the runs."""
    name = "No run damaged"
    if text := damage_sentence(runs):
        return Check(name=name, outcome="warn", text=f"{text}.", run_ids=tuple(damaged_ids(runs)))
    seals = runs["seal"] if "seal" in runs else pd.Series("unsealed", index=runs.index)
    sealed = int((seals == "sealed").sum())
    if sealed < len(runs):
        text = (
            f"Record and metrics of {of(sealed, len(runs), 'run')} are what was written; the others were stored before "
            "dsabench 0.3, which began to seal them, and nothing in them contradicts itself."
        )
        return Check(name=name, outcome="not recorded", text=text)
    return Check(
        name=name, outcome="ok", text=f"Record and metrics of all {count(sealed, 'run')} are what was written."
    )
