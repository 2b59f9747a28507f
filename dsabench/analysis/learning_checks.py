"""The checks of what the models learnt: more than nothing, from a sound start, on text that was not repeated often."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dsabench.analysis.check_wording import count, missing, of, span
from dsabench.analysis.comparison import Check
from dsabench.analysis.selection_width import selects_everything
from dsabench.analysis.variants import START, display_name, variant_order
from dsabench.plain import is_or_are

START_TOLERANCE = 0.5
"""Nats by which the loss before training may lie off ln(vocabulary): logits that start near zero give no more."""

MOST_EPOCHS = 1.5
"""Times that a run may see its training text before a plan, a comparison and a report warn. Up to four times cost a
language model hardly more loss than new text would have (Muennighoff et al. 2023, arXiv:2305.16264), but a comparison
of attentions suffers sooner: what is measured then is memory, too."""

REPEATED = (
    "models memorise text that they see again, and an attention that disturbs memorising then looks better than it "
    "learns; take a longer text (such as data.source=packages) or fewer steps"
)
"""What repeated text does to a comparison, for warnings."""

RECALL_OVER_CHANCE = 0.02
"""Mass recall within this of its chance is no better than chance."""


def starts_at_chance(done: pd.DataFrame, curves: pd.DataFrame) -> Check:
    """A model that knows nothing yet has loss ln V; one that starts far off is badly initialised."""
    name = "Start of training"
    first = curves[(curves["step"] == 0) & np.isfinite(curves["val_loss"])].drop_duplicates("run_id")
    if "vocab_size" not in done or first.empty:
        return Check(name=name, outcome="not recorded", text="No evaluation before the first step is recorded.")
    drawn = done if START not in done else done[done[START].isna()]  # a trained model has learnt something
    if drawn.empty:
        return Check(name=name, outcome="ok", text="Every run starts from a trained model.")
    known = first.merge(drawn[["run_id", "vocab_size"]].dropna(), on="run_id")
    expected = np.log(known["vocab_size"].astype(float))
    off = known["val_loss"] - expected
    if known.empty:
        return Check(name=name, outcome="not recorded", text="The size of the vocabulary is not recorded.")
    rule = f"expected is ln(vocabulary) = {span(expected, '.3f')} within {START_TOLERANCE:g}"
    text = f"Before the first step the loss is {span(known['val_loss'], '.3f')} nats; {rule}."
    wrong = tuple(known.loc[off.abs() > START_TOLERANCE, "run_id"])
    if wrong:
        far = f"{of(len(wrong), len(known), 'run')} {is_or_are(len(wrong))} far off at the start."
        return Check(name=name, outcome="warn", text=f"{far} {text}", run_ids=wrong)
    return Check(name=name, outcome="ok", text=text + missing(len(drawn) - len(known)))


def learnt_nothing(runs: pd.DataFrame, prefix: str = "") -> pd.Series[bool]:
    """Which runs are no better than the unigram baseline of their windows; of a task, in loss or in accuracy no better
    than a solver that does not see what the task is about. Those that do not record it are not. `prefix`: of the
    columns, as in pairs."""
    found: pd.Series[bool] = runs[f"{prefix}val_loss"] >= runs[f"{prefix}unigram_loss"]
    return found | (runs[f"{prefix}task_accuracy"] <= runs[f"{prefix}chance_accuracy"])


def better_than_guessing(done: pd.DataFrame) -> Check:
    """Every model must beat the one that knows token frequencies alone, on a task the best solver that does not see
    what the task is about."""
    tasks = len(done) > 0 and bool(np.isfinite(done["task_accuracy"]).all())
    name = "Better than guessing" if tasks else "Better than token frequencies"
    baseline = "the floor of its task" if tasks else "its unigram baseline"
    known = done[np.isfinite(done["unigram_loss"])]
    if known.empty:
        return Check(name=name, outcome="not recorded", text="No finished run has a recorded unigram baseline.")
    ahead = known["unigram_loss"] - known["val_loss"]
    idle = tuple(known.loc[learnt_nothing(known), "run_id"])
    if idle:
        above = "the unigram baseline of the same windows"
        if tasks:
            above = "a solver that does not see what the task is about, in loss or accuracy"
        worst = f" (the worst by {-ahead.min():.3f} nats)" if ahead.min() < 0 else ""
        text = (
            f"{of(len(idle), len(known), 'run')} {is_or_are(len(idle))} no better than {above}{worst}. "
            "Such a model has learnt nothing, and comparing it says nothing."
        )
        return Check(name=name, outcome="fail", text=text, run_ids=idle, withholds=True)
    text = (
        f"Each of {count(len(known), 'run')} is below {baseline} ({span(known['unigram_loss'], '.3f')} "
        f"nats), by {span(ahead, '.3f')}."
    )
    return Check(name=name, outcome="ok", text=text + missing(len(done) - len(known)))


def indexer_learnt(done: pd.DataFrame) -> Check:
    """Mass recall above that of a random selection, of the runs that leave something out."""
    name = "The indexer learnt"
    known = done[np.isfinite(done["mass_recall"]) & np.isfinite(done["mass_recall_chance"])]
    known = known[~selects_everything(known)]  # there recall and its chance are both 1
    if known.empty:
        return Check(name=name, outcome="not recorded", text="No finished run has a recorded mass recall.")
    above = known["mass_recall"] - known["mass_recall_chance"]
    kinds = sorted(known["variant"].unique(), key=variant_order)
    means = known.groupby("variant")[["mass_recall", "mass_recall_chance"]].mean()
    said = "; ".join(
        f"{display_name(kind)} {means.at[kind, 'mass_recall']:.2f} (chance {means.at[kind, 'mass_recall_chance']:.2f})"
        for kind in kinds[:6]
    )
    said += f"; and {len(kinds) - 6} more" if len(kinds) > 6 else ""
    over = "over seeds" if known["length"].nunique() == 1 else "over all lengths and seeds (tables: at each length)"
    learning = known["attention"] != "random"  # the control: its recall is its chance by design
    n_learning = int(learning.sum())
    untrained = tuple(known.loc[learning & (above <= RECALL_OVER_CHANCE), "run_id"])
    if untrained:
        idle = f"{of(len(untrained), n_learning, 'run')} {is_or_are(len(untrained))} no better than a random selection"
        text = f"{idle}. Mass recall, {over}: {said}."
        return Check(name=name, outcome="warn", text=text, run_ids=untrained)
    if not n_learning:
        return Check(name=name, outcome="not recorded", text=f"Only random selections. Mass recall, {over}: {said}.")
    text = f"Mass recall of each of {count(n_learning, 'run')} is above its chance. Mean, {over}: {said}."
    return Check(name=name, outcome="ok", text=text)


def seldom_repeated(done: pd.DataFrame) -> Check:
    """The epochs of the runs, of those on a text: warns above MOST_EPOCHS."""
    name = "Training text not repeated often"
    known = done[np.isfinite(done["epochs"])]
    if known.empty:
        return Check(name=name, outcome="not recorded", text="No run has recorded how many tokens its text has.")
    seen = f"The training text was seen {span(known['epochs'], '.2g')} times"
    often = tuple(known.loc[known["epochs"] > MOST_EPOCHS, "run_id"])
    if often:
        text = f"{seen}, by {of(len(often), len(known), 'run')} more than {MOST_EPOCHS:g} times: {REPEATED}."
        return Check(name=name, outcome="warn", text=text, run_ids=often)
    return Check(name=name, outcome="ok", text=f"{seen}." + missing(len(done) - len(known)))
