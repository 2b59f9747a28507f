"""A sweep: a base RunSpec and axes over any of its fields; its overrides, and the list of its runs.

A config file is always a sweep. A single run takes the first value of each axis unless an override chooses.
A sweep may have a ladder (see ladder.py): its runs are then those of every rung, in order.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dsabench.errors import SpecError
from dsabench.spec import attention_axis
from dsabench.spec import ladder as ladders
from dsabench.spec.attention import BUILT_IN, kind_of
from dsabench.spec.foreign_start import with_foreign_model
from dsabench.spec.messages import explain, field_at, models_in, near_miss
from dsabench.spec.run import RunSpec, settings_class, validate
from dsabench.spec.strict_model import Spec
from dsabench.spec.tune import TuneSpec
from dsabench.spec.verdict import VerdictSpec

MAX_RUNS = 100_000

PARENT = "start.parent."
"""What stands before the path of a field of a parent, where it is set alone."""


@dataclass
class Sweep:
    """A sweep as written: nested base, axes by field path, and where each value came from, for error messages."""

    base: dict[str, Any]
    axes: dict[str, list[Any]]
    name: str = "sweep"
    origins: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    """The file it was read from."""

    is_shipped: bool = False
    """Whether that file comes with dsabench: what it says is then nobody's choice."""

    verdict: VerdictSpec = field(default_factory=VerdictSpec)
    """The margin by which `compare` will judge it."""

    tune: TuneSpec = field(default_factory=TuneSpec)
    """The search for each variant's best settings; none while `tune.trials` is None."""

    named_kinds: list[Any] = field(default_factory=list)
    """Every attention kind that the file names. After `--attention dense`, base.attention may hold fields of others."""

    ladder: ladders.Ladder = field(default_factory=dict)
    """Name of each rung -> the fields that it changes; see ladder.py."""

    def set(self, path: str, value: Any, origin: str) -> None:
        """Override one field. An axis over that field is dropped, and so is the field's alternative (batch_size for
        tokens_per_step). `attention` as a whole may be set to a mapping."""
        self._known(path, origin)
        if path == "attention.kind":
            _kind_is_text(value, origin)
        if "attention" in self.axes and path.startswith("attention."):
            if path == "attention.kind":
                self._change_attentions(lambda entries: attention_axis.chosen(entries, [value], origin))
            else:
                field = path.removeprefix("attention.")
                self._change_attentions(lambda entries: attention_axis.with_field(entries, field, value, origin))
            return
        for axis in [axis for axis in self.axes if axis == path or axis.startswith(f"{path}.")]:
            del self.axes[axis]
        self.ladder = ladders.overridden(ladders.of_a_start(self.ladder, path, value), path)
        if value is not None:
            self._clear_alternative(path, origin)
        if path == "data.source":
            self._forget_task(value)
        if path in ("start.parent", "start.run", "start.checkpoint"):  # one of them stands for all
            self.base["start"] = {}
        _put(self.base, path, value)
        kept = {other: one for other, one in self.origins.items() if not other.startswith(f"{path}.")}
        self.origins = {**kept, path: origin}
        if path == "plugins":
            self.load_plugins()

    def set_axis(self, path: str, values: list[Any], origin: str) -> None:
        """Vary one field. Raises SpecError for an empty list or a value given twice."""
        self._known(path, origin)
        if not isinstance(values, list) or not values:
            raise SpecError(f"{origin}axes.{path} = {values!r} is not accepted; accepted: a list of one or more values")
        if path.split(".")[0] in ("engine", "plugins"):
            raise SpecError(
                f"{origin}axes.{path}: {path.split('.')[0]} is no part of what a run is, so it cannot be an axis"
            )
        for i, value in enumerate(values):
            if path == "attention.kind":
                _kind_is_text(value, origin)
            if value in values[:i]:
                raise SpecError(f"{origin}axes.{path} has {value!r} twice")
        if path == "attention.kind" and "attention" in self.axes:
            self._change_attentions(lambda entries: attention_axis.chosen(entries, values, origin))
            return
        self._clear_alternative(path, origin)
        self.ladder = ladders.overridden(self.ladder, path)
        self.axes[path] = list(values)
        self.origins[path] = origin

    def _change_attentions(self, change: Callable[[list[Any]], list[Any]]) -> None:
        """Change the axis of whole attentions, on every rung that has one of its own, too."""
        self.axes["attention"] = change(self.axes["attention"])
        self.ladder = {
            rung: {path: change(value) if path == "attention" else value for path, value in changes.items()}
            for rung, changes in self.ladder.items()
        }

    def set_verdict(self, values: Mapping[str, Any], where: Callable[[str], str]) -> None:
        """Set the verdict's fields. Raises SpecError for a value that is not accepted; `where(path)` is its origin."""
        try:
            self.verdict = VerdictSpec.model_validate(values)
        except ValidationError as error:
            raise SpecError("\n".join(explain(error, VerdictSpec, "verdict", where))) from error

    def set_tune(self, values: Mapping[str, Any], where: Callable[[str], str]) -> None:
        """Change fields of the search; the others stay. Raises SpecError; `where(path)` is a field's origin."""
        before = {name: value for name, value in dict(self.tune).items() if name in self.tune.model_fields_set}
        try:
            self.tune = TuneSpec.model_validate({**before, **values})
        except ValidationError as error:
            raise SpecError("\n".join(explain(error, TuneSpec, "tune", where))) from error

    def runs(self) -> list[RunSpec]:
        """Every combination of the axes, in their order, validated. An axis that a variant lacks is dropped for it, and
        runs that are then the same are one. Raises SpecError with every problem of the first bad combination."""
        total = math.prod(len(values) for values in self.axes.values())
        if total > MAX_RUNS:
            raise SpecError(f"{self.name} has {total} combinations of axis values; at most {MAX_RUNS} are accepted")
        if self.ladder:
            found = {spec.model_dump_json(): spec for runs in self.rungs().values() for spec in runs}
            return list(found.values())
        self.load_plugins()
        self._attention_fields_have_an_owner()
        specs: dict[str, RunSpec] = {}
        for point in itertools.product(*self.axes.values()):
            spec = self._run(dict(zip(self.axes, point, strict=True)))
            specs.setdefault(spec.model_dump_json(), spec)
        return list(specs.values())

    def rungs(self) -> dict[str, list[RunSpec]]:
        """The runs of each rung of the ladder, by its name, first to last; none without a ladder. Raises as `runs`."""
        return {name: rung.runs() for name, rung in self.climb()}

    def lowest(self) -> Sweep:
        """The first rung of the ladder; itself without one."""
        return next((rung for _, rung in self.climb()), self)

    def climb(self) -> Iterator[tuple[str, Sweep]]:
        """The name of each rung and the sweep on it, without a ladder, first to last. Raises SpecError."""
        at = replace(self, base=copy.deepcopy(self.base), axes=copy.deepcopy(self.axes), ladder={})
        at.origins = dict(self.origins)
        for name, changes in self.ladder.items():
            for path, value in changes.items():
                origin = self.origins.get(f"ladder.{name}.{path}", f"ladder, {name}: ")
                change = at.set_axis if path in at.axes and isinstance(value, list) else at.set
                change(path, value, origin)
            yield name, replace(at, base=copy.deepcopy(at.base), axes=copy.deepcopy(at.axes), origins=dict(at.origins))

    def first(self) -> RunSpec:
        """The run of the first value of each axis, on the first rung of a ladder."""
        if self.ladder:
            return self.lowest().first()
        self.load_plugins()
        self._attention_fields_have_an_owner()
        spec = self._run({path: values[0] for path, values in self.axes.items()})
        for path, origin in self.origins.items():
            # A sweep may hold fields of several kinds; in a single run, one that was asked for must not be lost.
            name = path.removeprefix("attention.").split(".")[0]
            asked = path.startswith("attention.") and not origin.startswith(str(self.path))
            owners = [spec.attention, *spec.attention.distinct()]
            if asked and not any(name in type(owner).model_fields for owner in owners):
                raise SpecError(
                    f"{origin}{path} is not a field of attention {spec.attention.kind}, which this run would have; "
                    "choose the attention that has it, for example --attention dsa"
                )
        return spec

    def plain(self) -> dict[str, Any]:
        """{"base": ..., "axes": ..., "verdict": ..., ...} for the sweep's record; a config file of the same content."""
        return {
            "base": copy.deepcopy(self.base),
            "axes": copy.deepcopy(self.axes),
            "verdict": self.verdict.model_dump(mode="json"),
            **({"ladder": copy.deepcopy(self.ladder)} if self.ladder else {}),
            **({"tune": self.tune.model_dump(mode="json")} if self.tune.trials else {}),
        }

    def _run(self, point: Mapping[str, Any]) -> RunSpec:
        values = copy.deepcopy(self.base)
        for path, value in point.items():
            _put(values, path, copy.deepcopy(value))
        attention = values.get("attention", {})
        if isinstance(attention, dict):
            kind = attention.setdefault("kind", kind_of(attention))
            owners = settings_class(kind, self._where("attention.kind")).field_owners(attention)
            owned = {name for owner in owners for name in owner.model_fields}
            values["attention"] = {name: value for name, value in attention.items() if name in owned}
        return validate(with_foreign_model(values, self._is_given, self._where), self._where)

    def kinds(self) -> list[Any]:
        """Every attention kind that the base, an axis or the file names. Raises SpecError for one that is no text."""
        attention = self.base.get("attention", {})
        base_kind = kind_of(attention) if isinstance(attention, dict) else "dsa"
        if "attention" in self.axes:
            return list(dict.fromkeys(kind_of(one) for one in self.axes["attention"] if isinstance(one, dict)))
        kinds = [*self.axes.get("attention.kind", [base_kind]), *self.named_kinds]
        for kind in kinds:
            _kind_is_text(kind, self._where("attention.kind"))
        return list(dict.fromkeys(kinds))

    def _attention_fields_have_an_owner(self) -> None:
        """A field under attention is a typo unless a kind of this sweep, or the base's own kind, has it."""
        attention = self.base.get("attention", {})
        if not isinstance(attention, dict):
            return
        _kind_is_text(kind_of(attention), self._where("attention.kind"))
        kinds = list(dict.fromkeys([*self.kinds(), kind_of(attention)]))
        models = self._attention_owners(kinds)
        paths = [f"attention.{name}" for name in attention] + [p for p in self.axes if p.startswith("attention.")]
        for path in paths:
            names = path.split(".")[1:]
            if not any(field_at(model, names) for model in models):
                known = list(dict.fromkeys(name for model in models for name in model.model_fields))
                others = [kind for kind, model in BUILT_IN.items() if field_at(model, names)]
                hint = f"; it is one of {', '.join(others)}" if others else near_miss(names[0], known)
                named = ", ".join(map(str, kinds))
                raise SpecError(f"{self._where(path)}unknown field {path} for attention {named}{hint}")

    def _attention_owners(self, kinds: list[Any]) -> list[type[Spec]]:
        """The classes of the attentions' settings: those of the kinds, and of the layers of a hybrid."""
        attention = self.base.get("attention", {})
        written = attention if isinstance(attention, dict) else {}
        stacks = self.axes.get("attention.layers", [written.get("layers")])
        found = [
            owner
            for kind in kinds
            for layers in stacks
            for owner in settings_class(kind, self._where("attention.kind")).field_owners({**written, "layers": layers})
        ]
        return list(dict.fromkeys(found))

    def load_plugins(self) -> None:
        """Import the plugin files of the base, whose paths become absolute. Raises SpecError."""
        plugins = self.base.get("plugins", [])
        if isinstance(plugins, list):
            from dsabench.attention.plugins import load_plugin

            origin = self._where("plugins")
            self.base["plugins"] = [load_plugin(str(plugin), origin) for plugin in plugins]

    def _known(self, path: str, origin: str) -> None:
        names = path.removeprefix(PARENT).split(".")
        if names[0] == "attention":  # its fields depend on the kind, and are checked once that is known
            return
        models: list[type[BaseModel]] = [RunSpec]
        for i, name in enumerate(names):
            owners = [m for m in models if name in m.model_fields and not m.model_fields[name].exclude]
            if not owners:
                known = list(dict.fromkeys(field for model in models for field in model.model_fields))
                bad = ".".join(names[: i + 1])
                raise SpecError(f"{origin}unknown field {bad}{near_miss(name, known)}")
            models = [model for owner in owners for model in models_in(owner.model_fields[name].annotation)]
            if i + 1 < len(names) and not models:
                raise SpecError(f"{origin}{'.'.join(names[: i + 1])} has no field {names[i + 1]}: it is a single value")

    def _clear_alternative(self, path: str, origin: str) -> None:
        parent, _, name = path.rpartition(".")
        inside_attention = parent.partition(".")[0] == "attention"
        for model in _owners(parent, self._attention_owners(self.kinds()) if inside_attention else []):
            for pair in model.alternatives:
                if name in pair:
                    other = f"{parent}.{pair[0] if name == pair[1] else pair[1]}"
                    if origin.startswith("--") and self.origins.get(other, "").startswith("--"):
                        raise SpecError(f"{origin}{path} and {other}, also given, replace each other; keep one")
                    self.axes.pop(other, None)
                    self.ladder = ladders.overridden(self.ladder, other)
                    _put(self.base, other, None, only_if_present=True)

    def _forget_task(self, source: Any) -> None:
        """Drop the settings that the config file has for its own task when the source changes; flags' settings stay."""
        data = self.base.get("data", {})
        if not isinstance(data, dict) or data.get("source") == source:
            return

        def from_file(path: str) -> bool:
            return self.origins.get(path, "").startswith(str(self.path))

        task = data.get("task")
        if isinstance(task, dict) and self.path is not None:
            kept = {name: value for name, value in task.items() if not from_file(f"data.task.{name}")}
            data.pop("task")
            if kept:
                data["task"] = kept
        for axis in [axis for axis in self.axes if axis.startswith("data.task.") and from_file(axis)]:
            del self.axes[axis]

    def _is_given(self, path: str) -> bool:
        """Whether the user set a field, or a part of it: it is not from a shipped config."""
        below = [origin for other, origin in self.origins.items() if other.startswith(f"{path}.")]
        return not self.is_shipped or any(not one.startswith(str(self.path)) for one in (self._where(path), *below))

    def _where(self, path: str) -> str:
        """'FILE:LINE: ' or '--flag: ' of the nearest enclosing path that somebody set."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return ""


def _kind_is_text(value: Any, origin: str) -> None:
    if not isinstance(value, str):
        raise SpecError(f"{origin}attention.kind = {value!r} is not accepted; accepted: the name of an attention")


def _owners(parent: str, attentions: list[type[Spec]]) -> list[type[Spec]]:
    section, _, inside = parent.partition(".")
    if section == "attention":
        found: list[type[BaseModel]] = [*attentions]
        for name in filter(None, inside.split(".")):
            fields = [model.model_fields[name] for model in found if name in model.model_fields]
            found = [inner for field in fields for inner in models_in(field.annotation)]
        return [model for model in found if issubclass(model, Spec)]
    annotation = RunSpec.model_fields[parent].annotation if parent in RunSpec.model_fields else None
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Spec) else []


def _put(values: dict[str, Any], path: str, value: Any, only_if_present: bool = False) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if only_if_present and not isinstance(values.get(parent), dict):
            return
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise SpecError(f"{parent} = {inner!r} is not accepted; accepted: a mapping of its fields")
        values = inner
    if not only_if_present or name in values:
        values[name] = value
