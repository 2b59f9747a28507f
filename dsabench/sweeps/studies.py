"""The studies of a search: each variant at each length, the fields that it has, and the specs of its trials."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dsabench.errors import SpecError
from dsabench.spec import attention_axis
from dsabench.spec.messages import field_at
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.spec.tune import RangeSpec, TuneSpec
from dsabench.store import TrialRecord
from dsabench.sweeps.samplers import Over, Sampler, sampler_of


@dataclass
class Trial:
    """A trial that was asked for."""

    settings: dict[str, Any]
    spec: RunSpec
    run_id: str = ""
    told: TrialRecord | None = None
    """What came of it; None before it ended."""


@dataclass
class Study:
    """The search of one variant at one length."""

    sweep: Sweep
    """The sweep in which every axis but the seed has one value."""

    name: str
    over: Over
    """The fields of the search that it has."""

    lacks: list[str]
    sampler: Sampler
    trials: list[Trial] = field(default_factory=list)
    finals: list[RunSpec] = field(default_factory=list)
    """The seeds at its best settings, when it has chosen."""

    final_ids: list[str] = field(default_factory=list)

    def best(self) -> int:
        """The place of the trial with the lowest validation loss, the first of equal ones. Raises SpecError."""
        losses = [math.inf if trial.told is None else loss_told(trial.told) for trial in self.trials]
        place = min(range(len(losses)), key=lambda i: losses[i])
        if losses[place] == math.inf:
            raise SpecError(
                f"none of the {len(losses)} trials of {self.name} ended with a finite loss, so nothing is best "
                f"(the first: `dsabench runs show {self.trials[0].run_id}`); give tune.over ranges in which it learns"
            )
        return place


def loss_told(told: TrialRecord) -> float:
    """The loss that a sampler is told: one that failed is the worst."""
    return math.inf if told.val_loss is None else told.val_loss


def check_search(sweep: Sweep) -> None:
    """Raise SpecError for a sweep whose search would not be fair, or has no meaning."""
    if sweep.ladder:
        raise SpecError("a search (tune, --tune) and a ladder exclude each other: the rungs are settings of their own")
    if both := [path for path in sweep.tune.over if path in sweep.axes]:
        raise SpecError(f"{both[0]} is an axis and a field of the search (tune.over); keep one")
    seeds = sweep.axes.get("seed", [sweep.base.get("seed", RunSpec.model_fields["seed"].default)])
    if sweep.tune.seed in seeds:
        raise SpecError(
            f"tune.seed = {sweep.tune.seed} is one of the sweep's seeds: a run would be judged that chose its own "
            "settings; accepted: any other"
        )


def studies_of(sweep: Sweep) -> list[Study]:
    """One for each combination of the axes but the seed; an axis that a variant lacks is dropped for it. Raises
    SpecError for a field that none of them has, for a variant without any, and for values that no run can have."""
    sweep.load_plugins()
    axes = {path: values for path, values in sweep.axes.items() if path != "seed"}
    seeds = {path: values for path, values in sweep.axes.items() if path == "seed"}
    points = []
    for point in itertools.product(*axes.values()):
        at = dict(zip(axes, point, strict=True))
        one = _copy(sweep, {**{path: [value] for path, value in at.items()}, **seeds})
        spec = one.runs()[0]
        over = {path: values for path, values in sweep.tune.over.items() if _has(spec, one, path)}
        name = _name(spec, {path: value for path, value in at.items() if len(axes[path]) > 1})
        points.append((one, name, over))
    if "over" in sweep.tune.model_fields_set:  # the default names fields of attentions that a sweep need not have
        for path in sweep.tune.over:
            if not any(path in over for _, _, over in points):
                names = ", ".join(dict.fromkeys(name for _, name, _ in points))
                raise SpecError(f"tune.over.{path}: none of the sweep's variants has this field ({names})")
    found: dict[str, Study] = {}
    for one, name, over in points:
        if not over:
            raise SpecError(
                f"tune.over has no field of {name}, so others would have {sweep.tune.trials} trials and it none; add "
                "one that all have, for example train.learning_rate"
            )
        probe = {path: next(_ends(values)) for path, values in over.items()}
        key = trial_spec(one, sweep.tune, probe).model_dump_json()
        if key not in found:
            _check_values(one, sweep.tune, over, name)
            lacks = [path for path in sweep.tune.over if path not in over]
            found[key] = Study(one, name, over, lacks, sampler_of(sweep.tune, over, name))
    return list(found.values())


def _name(spec: RunSpec, at: dict[str, Any]) -> str:
    """A variant at one length in words; `at`: its values of the axes that have several."""
    fields = [path for path in at if path not in ("attention", "attention.kind", "length")]
    what = attention_axis.in_words(at["attention"]) if "attention" in at else spec.attention.kind
    return " ".join([what, *(f"{path.partition('.')[2] or path}={at[path]}" for path in fields), f"at {spec.length}"])


def _has(spec: RunSpec, sweep: Sweep, path: str) -> bool:
    """Whether the run has a field."""
    section, _, inside = path.partition(".")
    if section == "attention":
        written = sweep.base.get("attention", {})
        owners = type(spec.attention).field_owners({**written, **spec.attention.model_dump(mode="json")})
        return any(field_at(owner, inside.split(".")) is not None for owner in owners)
    return field_at(RunSpec, path.split(".")) is not None


def _check_values(sweep: Sweep, tune: TuneSpec, over: Over, name: str) -> None:
    """Raise SpecError where a run cannot have the ends of a range or a choice, or where these would change what the
    trials start from, or how many keys a query reads."""
    first = {path: next(_ends(values)) for path, values in over.items()}
    parents, (own, *_) = set(), sweep.runs()
    budget = own.attention.keys_read(own.length)
    for path, values in over.items():
        for value in _ends(values):
            alone = trial_spec(sweep, tune, {path: value})
            if (reads := alone.attention.keys_read(alone.length)) != budget:
                raise SpecError(
                    f"tune.over.{path} = {value}: a query of {name} would read {reads} keys, where it reads {budget}; "
                    "that is what is compared, and cannot be tuned"
                )
            above = parent_spec(trial_spec(sweep, tune, {**first, path: value}))
            parents.add("" if above is None else above.model_dump_json())
            if len(parents) > 1:
                raise SpecError(
                    f"tune.over.{path}: it would change the parent that {name} starts from, too, which every trial "
                    f"would train anew; fix it there (start.parent: {{{path}: ...}})"
                )


def _ends(values: RangeSpec | list[Any]) -> Iterator[Any]:
    yield from (values.low, values.high) if isinstance(values, RangeSpec) else values


def _copy(sweep: Sweep, axes: dict[str, list[Any]]) -> Sweep:
    return replace(
        sweep,
        base=copy.deepcopy(sweep.base),
        axes=copy.deepcopy(axes),
        origins=dict(sweep.origins),
        named_kinds=list(sweep.named_kinds),
    )


def with_settings(sweep: Sweep, settings: dict[str, Any]) -> Sweep:
    """The sweep with these settings."""
    found = _copy(sweep, sweep.axes)
    for path, value in settings.items():
        found.set(path, value, f"tune.over.{path}: ")
    return found


def trial_spec(sweep: Sweep, tune: TuneSpec, settings: dict[str, Any]) -> RunSpec:
    """The run that is the trial of these settings."""
    found = with_settings(sweep, settings)
    found.set("seed", tune.seed, "tune.seed: ")
    if tune.steps is not None:
        found.set("train.steps", tune.steps, "tune.steps: ")
    (spec,) = found.runs()
    return spec
