"""Notes and the check of a sweep's search: who chose, for whom a field was not tuned, and equal budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dsabench.analysis.comparison import Check
from dsabench.analysis.scope import Scope
from dsabench.plain import count
from dsabench.spec.tune import RangeSpec
from dsabench.store import TuningRecord


def search_notes(scope: Scope) -> list[str]:
    """What chose the settings, and which fields were not tuned for whom, a line each; none without a search."""
    if scope.sweep is None or scope.sweep.tuning is None:
        return []
    tuning = scope.sweep.tuning
    steps = f" of {tuning.steps:,} steps" if tuning.steps is not None else ""
    lines = [
        f"validation loss chose the settings: for each variant the best of {count(tuning.trials, 'trial')}{steps} "
        f"({tuning.sampler}), all of seed {tuning.seed}, which is none of the seeds compared; the "
        "windows that chose are those that judge"
    ]
    for path in dict.fromkeys(path for study in tuning.studies for path in study.lacks):
        lacking = list(dict.fromkeys(study.attention for study in tuning.studies if path in study.lacks))
        lines.append(f"{path} was not tuned for {', '.join(lacking)}, which do{'es' * (len(lacking) == 1)} not have it")
    return [*lines, *_at_an_end(tuning, scope.sweep.spec)]


def equal_budgets(scope: Scope) -> list[Check]:
    """Whether every variant had as many trials as the others; none without a search."""
    tuning = None if scope.sweep is None else scope.sweep.tuning
    if tuning is None:
        return []
    name = "Equal search budgets"
    short = [study for study in tuning.studies if len(study.trials) != tuning.trials]
    if short:
        text = (
            f"The search of {short[0].name} had {count(len(short[0].trials), 'trial')}, not {tuning.trials}: the best "
            "settings of some variants were looked for longer than those of others."
        )
        return [Check(name=name, outcome="fail", text=text)]
    failed = {study.name: n for study in tuning.studies if (n := sum(t.val_loss is None for t in study.trials))}
    text = f"Every variant had {count(tuning.trials, 'trial')} at each length."
    if failed:
        text += f" Trials that failed count as tried: {', '.join(f'{n} of {who}' for who, n in failed.items())}."
    return [Check(name=name, outcome="ok", text=text)]


def _at_an_end(tuning: TuningRecord, spec: Mapping[str, Any]) -> Iterator[str]:
    """A line for each field whose best value lies within a twentieth of an end of its range."""
    searched = spec.get("tune")
    over = searched.get("over") if isinstance(searched, dict) else None
    for path, values in over.items() if isinstance(over, dict) else ():
        try:
            within = RangeSpec.model_validate(values)
        except ValidationError:  # choices
            continue
        at = [
            study.name
            for study in tuning.studies
            if study.best is not None and not 0.05 < within.share(study.trials[study.best].settings.get(path)) < 0.95
        ]
        if at:
            yield f"the best {path} of {', '.join(at)} lies at an end of its range: a wider one may hold a better one"
