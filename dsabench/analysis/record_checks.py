"""Checks of a store's records: reasons to believe, or not to believe, its comparison, each with its numbers.

Only what was recorded is looked at; nothing is trained or loaded. A check that passes shows that one mistake was not
made, not that none was.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from dsabench.analysis.check_wording import count, difference, listed, missing, of, span
from dsabench.analysis.pairing import DIFFERENT_MACHINES
from dsabench.analysis.variants import display_name, variant_order
from dsabench.store.curves import BY_POSITION

Outcome = Literal["ok", "warn", "fail", "not recorded"]

START_TOLERANCE = 0.5
"""Nats by which the loss before training may lie off ln(vocabulary): logits that start near zero give no more."""

ABSURD_WIN = 0.5
"""Nats per token: a variant that beats its baseline by more, in all or in an eighth of the window, is looked into."""

LARGE_WIN = 0.1
"""Nats per token, in an eighth of the window, mean over seeds: far above what seeds do."""

RECALL_OVER_CHANCE = 0.02
"""Mass recall within this of its chance is no better than chance."""

_LEARNT = " On a task it may be that the variant has learnt it and the baseline has not: see their accuracies."
"""Another possible cause of a large difference on a task, whose loss falls all at once when it is learnt."""

_PARTS = 8
"""Parts of the window in which losses by position are compared."""


class Check(NamedTuple):
    """One thing that was checked."""

    name: str
    outcome: Outcome
    text: str
    """What was found, with its numbers."""
    run_ids: tuple[str, ...] = ()
    """The runs that it concerns, when not all."""


def audit(runs: pd.DataFrame, pairs: pd.DataFrame, curves: pd.DataFrame, audited: int = 0) -> list[Check]:
    """The checks, in the order in which a reader should doubt.

    runs: of `label_variants`. pairs: the frame of `find_pairs`. curves: evaluations of the finished runs, as
    `load_curves` gives them, with val_loss and loss_by_position. audited: how many of the runs' records say
    whether the run leaks.
    """
    done = runs[runs["finished"]]
    return [
        _look_ahead(runs, audited),
        large_wins(pairs),
        _by_position(pairs, curves),
        _start(done, curves),
        _above_chance(done),
        _same_data(done, pairs),
        _parameters(pairs),
        _machines(pairs),
        _recall(done),
        _complete(runs),
    ]


def _look_ahead(runs: pd.DataFrame, audited: int) -> Check:
    name = "Look-ahead"
    marked = tuple(runs.loc[runs["leak"], "run_id"])
    if marked:
        text = f"{count(len(marked), 'run')} marked LEAK: the attention sees later tokens. Such a run is never judged."
        return Check(name, "fail", text, marked)
    if audited:
        text = f"The causality audit of {of(audited, len(runs), 'run')} is recorded, and found no leak."
        return Check(name, "ok" if audited == len(runs) else "warn", text)
    return Check(
        name,
        "not recorded",
        "No causality audit is recorded in these runs, and none is marked LEAK: they were trained before dsabench "
        "audited every run. `dsabench audit RUN` looks at one with its trained weights.",
    )


def large_wins(pairs: pd.DataFrame) -> Check:
    """Pairs in which the variant ends so far below its baseline that it must be looked into; `fail` when there are."""
    name = "No win too large to believe"
    d = difference(pairs, "val_loss")
    if d.empty:
        return Check(name, "not recorded", "There is no pair to compare.")
    low = f"{d.min():+.3f}"
    wins = tuple(pairs.loc[d.index[d < -ABSURD_WIN], "a.run_id"])
    if wins:
        text = (
            f"{of(len(wins), len(d), 'pair')} end more than {ABSURD_WIN:g} nats per token below the baseline "
            f"(largest {low}). That is a bug until shown otherwise, most likely a look-ahead leak."
        )
        if _are_of_tasks(pairs):
            return Check(name, "warn", text.replace("per token", "per answer") + _LEARNT, wins)
        return Check(name, "fail", text, wins)
    unit = "answer" if _are_of_tasks(pairs) else "token"
    text = f"The largest advantage over the baseline is {low} nats per {unit}, of {count(len(d), 'pair')}."
    if d.min() >= 0:
        text = f"In none of {count(len(d), 'pair')} is the variant ahead of the baseline."
    return Check(name, "ok", f"{text} More than {ABSURD_WIN:g} would be taken for a bug.")


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
        return Check(name, "not recorded", "No pair has a recorded loss by position, where a leak shows first.")
    advantage, part, variant, length, run_ids = min(found)
    where = f"{display_name(variant)} at {length} tokens, part {part + 1} of {min(_PARTS, length)} of the window"
    if advantage > -LARGE_WIN:
        text = (
            f"In no part of the window is a variant far ahead: the largest advantage over the baseline, mean over "
            f"seeds, is {min(advantage, 0.0):+.3f} nats ({where}). A look-ahead leak would show here first."
        )
        return Check(name, "ok", text)
    text = f"{where}: {advantage:+.3f} nats against the baseline, mean over seeds. A look-ahead leak looks like this."
    if _are_of_tasks(pairs):
        return Check(name, "warn", text + _LEARNT, run_ids)
    return Check(name, "fail" if advantage < -ABSURD_WIN else "warn", text, run_ids)


def _are_of_tasks(pairs: pd.DataFrame) -> bool:
    """Whether every pair is of runs on a task."""
    return len(pairs) > 0 and bool(np.isfinite(pairs["a.task_accuracy"].astype(float)).all())


def _start(done: pd.DataFrame, curves: pd.DataFrame) -> Check:
    """A model that knows nothing yet has loss ln V; one that starts far off is badly initialised."""
    name = "Start of training"
    first = curves[(curves["step"] == 0) & np.isfinite(curves["val_loss"])].drop_duplicates("run_id")
    if "vocab_size" not in done or first.empty:
        return Check(name, "not recorded", "No evaluation before the first step is recorded.")
    known = first.merge(done[["run_id", "vocab_size"]].dropna(), on="run_id")
    expected = np.log(known["vocab_size"].astype(float))
    off = known["val_loss"] - expected
    if known.empty:
        return Check(name, "not recorded", "The size of the vocabulary is not recorded.")
    rule = f"expected is ln(vocabulary) = {span(expected, '.3f')} within {START_TOLERANCE:g}"
    text = f"Before the first step the loss is {span(known['val_loss'], '.3f')} nats; {rule}."
    wrong = tuple(known.loc[off.abs() > START_TOLERANCE, "run_id"])
    if wrong:
        return Check(name, "warn", f"{of(len(wrong), len(known), 'run')} start far off. {text}", wrong)
    return Check(name, "ok", text + missing(len(done) - len(known)))


def _above_chance(done: pd.DataFrame) -> Check:
    """Every model must beat the one that knows token frequencies alone, on a task the guess without the targets."""
    tasks = len(done) > 0 and bool(np.isfinite(done["task_accuracy"]).all())
    name = "Better than guessing" if tasks else "Better than token frequencies"
    baseline = "guess without the targets" if tasks else "unigram baseline"
    known = done[np.isfinite(done["unigram_loss"])]
    if known.empty:
        return Check(name, "not recorded", "No finished run has a recorded unigram baseline.")
    ahead = known["unigram_loss"] - known["val_loss"]
    learnt_nothing = tuple(known.loc[ahead <= 0, "run_id"])
    if learnt_nothing:
        text = (
            f"{of(len(learnt_nothing), len(known), 'run')} are no better than the {baseline} of their windows "
            f"(the worst by {-ahead.min():.3f} nats): they learnt nothing, and comparing them says nothing."
        )
        return Check(name, "fail", text, learnt_nothing)
    text = (
        f"Each of {count(len(known), 'run')} is below its {baseline} ({span(known['unigram_loss'], '.3f')} "
        f"nats), by {span(ahead, '.3f')}."
    )
    return Check(name, "ok", text + missing(len(done) - len(known)))


def _same_data(done: pd.DataFrame, pairs: pd.DataFrame) -> Check:
    name = "Same text, same tokens"
    names = {"fingerprint.corpus": "corpus", "fingerprint.tokenizer": "tokenizer", "tokens": "number of tokens"}
    recorded = [column for column in names if f"a.{column}" in pairs and done[column].notna().any()]
    if pairs.empty or not recorded:
        return Check(name, "not recorded", "No pair has recorded digests of its corpus and tokenizer.")
    # NA equals nothing: a pair of which one side says nothing is not shown to agree.
    agree = {c: (pairs[f"a.{c}"].astype("string") == pairs[f"b.{c}"].astype("string")).fillna(False) for c in recorded}
    differ = ~pd.DataFrame(agree).all(axis=1)
    if differ.any():
        what = ", ".join(names[column] for column, same in agree.items() if not same.all())
        text = f"{of(int(differ.sum()), len(pairs), 'pair')} differ, or say nothing, in: {what}."
        return Check(name, "fail", text, tuple(pairs.loc[differ, "a.run_id"]))
    text = f"In all {count(len(pairs), 'pair')} both runs have the same {listed([names[c] for c in recorded])}."
    digests = {c: done[c].dropna().nunique() for c in recorded if c.startswith("fingerprint.")}
    several = {names[column]: n for column, n in digests.items() if n > 1}
    if several:
        there = listed([f"{n} {word if word != 'corpus' else 'corpora'}" for word, n in several.items()])
        there = there.replace("tokenizer", "tokenizers")
        return Check(name, "warn", f"{text} Among the runs there are {there}: settings of their own, never pooled.")
    return Check(name, "ok", text)


def _parameters(pairs: pd.DataFrame) -> Check:
    name = "Same size but for the indexer"
    columns = ["a.params", "b.params", "a.indexer_params", "b.indexer_params"]
    known = pairs.dropna(subset=columns) if set(columns) <= set(pairs) else pairs.iloc[:0]
    if known.empty:
        return Check(name, "not recorded", "No pair has recorded parameter counts.")
    ours, theirs = (known[f"{side}.params"] - known[f"{side}.indexer_params"].astype(float) for side in "ab")
    differ = ours != theirs
    if differ.any():
        text = (
            f"{of(int(differ.sum()), len(known), 'pair')} differ in parameters outside the indexer, by up to "
            f"{(ours - theirs).abs().max():,.0f}: the models differ in more than their attention."
        )
        return Check(name, "fail", text, tuple(known.loc[differ, "a.run_id"]))
    text = (
        f"In all {count(len(known), 'pair')} the models have the same {span(theirs, ',.0f')} parameters; an indexer "
        f"has {span(known['a.indexer_params'].astype(float), ',.0f')} more."
    )
    return Check(name, "ok", text)


def _machines(pairs: pd.DataFrame) -> Check:
    name = "Same machine"
    if pairs.empty:
        return Check(name, "not recorded", "There is no pair to compare.")
    apart = ~pairs["timed"]
    if apart.any():
        text = (
            f"{of(int(apart.sum()), len(pairs), 'pair')} ran on {DIFFERENT_MACHINES}: "
            "their losses are compared, their times and memory are not."
        )
        return Check(name, "warn", text, tuple(pairs.loc[apart, "a.run_id"]))
    return Check(name, "ok", f"Both runs of each of {count(len(pairs), 'pair')} ran on one kind of machine.")


def _recall(done: pd.DataFrame) -> Check:
    name = "The indexer learnt"
    known = done[np.isfinite(done["mass_recall"]) & np.isfinite(done["mass_recall_chance"])]
    if known.empty:
        return Check(name, "not recorded", "No finished run has a recorded mass recall.")
    above = known["mass_recall"] - known["mass_recall_chance"]
    kinds = sorted(known["variant"].unique(), key=variant_order)
    means = known.groupby("variant")[["mass_recall", "mass_recall_chance"]].mean()
    said = "; ".join(
        f"{display_name(kind)} {means.at[kind, 'mass_recall']:.2f} (chance {means.at[kind, 'mass_recall_chance']:.2f})"
        for kind in kinds[:6]
    )
    said += f"; and {len(kinds) - 6} more" if len(kinds) > 6 else ""
    untrained = tuple(known.loc[above <= RECALL_OVER_CHANCE, "run_id"])
    if untrained:
        text = f"{of(len(untrained), len(known), 'run')} select no better than at random. Mass recall: {said}."
        return Check(name, "warn", text, untrained)
    text = f"Mass recall of each of {count(len(known), 'run')} is above its chance. Means: {said}."
    return Check(name, "ok", text)


def _complete(runs: pd.DataFrame) -> Check:
    """A result from the runs that happened to finish is not the result that was planned."""
    name = "No run missing"
    left_out = runs.loc[~runs["finished"] & ~runs["reason"].str.startswith("superseded"), ["run_id", "reason"]]
    if left_out.empty:
        return Check(name, "ok", f"All {count(int(runs['finished'].sum()), 'run')} finished.")
    reasons = ", ".join(f"{n} {reason}" for reason, n in left_out["reason"].value_counts(sort=True).items())
    text = f"{of(len(left_out), len(runs), 'run')} did not finish ({reasons}); what is compared is the rest."
    return Check(name, "warn", text, tuple(left_out["run_id"]))
