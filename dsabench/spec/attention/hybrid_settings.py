"""Settings of a hybrid stack: a pattern of attentions that repeats over the depth of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from dsabench.errors import SpecError
from dsabench.spec.attention.attention_spec import AttentionSpec
from dsabench.spec.attention.settings_by_name import HYBRID, settings_class
from dsabench.spec.messages import InWords, explain, models_in
from dsabench.spec.strict_model import Spec

_LISTS = ("first_layers", "layers")
_ENTRY = "the name of an attention, or a mapping with its `kind` and fields"

_Layers = list[Any]
"""Of AttentionSpec, once validated. An annotation that named the class would make all that lists fields take it for a
mapping."""


class HybridSpec(AttentionSpec):
    """Settings of a stack whose layers differ.

    An entry is the name of an attention or a mapping with its `kind` and fields: [dense, {kind: dsa, top_k: 64}, dsa].
    Other fields of `attention` are those of every entry that has such a field and does not set it itself.
    """

    kind: Literal["hybrid"] = "hybrid"
    """The name."""

    first_layers: Annotated[_Layers, InWords(f"a list of attentions, each {_ENTRY}")] = Field([])
    """Attentions of the first layers, before the pattern of `layers` begins: first_layers: [dense] with layers: [dsa]
    has all layers but the first select."""

    layers: Annotated[_Layers, InWords(f"a list of attentions, each {_ENTRY}"), Field(min_length=1)]
    """Attentions of the layers, a pattern that is repeated to the last one: [dense, dsa, dsa, dsa] has every fourth
    layer dense. Other fields of `attention` are those of every entry that has such a field and does not set it."""

    @model_validator(mode="before")
    @classmethod
    def _entries_are_settings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        shared = {name: value for name, value in values.items() if name not in cls.model_fields}
        read = {
            name: [_layer(entry, shared, f"entry {i} of {name}") for i, entry in enumerate(values[name], 1)]
            for name in _LISTS
            if isinstance(values.get(name), list | tuple)
        }
        known = {field for layers in read.values() for layer in layers for field in type(layer).model_fields}
        return {name: value for name, value in {**values, **read}.items() if name not in shared or name not in known}

    @model_validator(mode="after")
    def _layers_differ(self) -> Self:
        if not any(layer != self.layers[0] for layer in self.entries):
            raise ValueError(f"all layers are the same {self.layers[0].kind}; name it as the kind of the attention")
        return self

    @model_validator(mode="after")
    def _one_training_of_all(self) -> Self:
        for words, asked in _OF_THE_RUN.items():
            said = [(layer.kind, value) for layer in self.entries if (value := asked(layer)) is not None]
            if other := next((one for one in said if one[1] != said[0][1]), None):
                raise ValueError(
                    f"{words} is {said[0][1]!r} in a layer of {said[0][0]} and {other[1]!r} in one of {other[0]}; a "
                    "run has one for all its layers: set it once, beside `layers`"
                )
        return self

    @property
    def entries(self) -> tuple[AttentionSpec, ...]:
        """Every entry: those of the first layers, then the pattern."""
        return (*self.first_layers, *self.layers)

    def at(self, layer: int) -> AttentionSpec:
        """The settings of the layer, from 0."""
        first = len(self.first_layers)
        found: AttentionSpec
        found = self.first_layers[layer] if layer < first else self.layers[(layer - first) % len(self.layers)]
        return found

    def distinct(self) -> tuple[AttentionSpec, ...]:
        """Its different entries, in their order."""
        found: list[AttentionSpec] = []
        for layer in self.entries:
            if layer not in found:
                found.append(layer)
        return tuple(found)

    def each(self, change: Callable[[AttentionSpec], AttentionSpec]) -> Self:
        """The same stack with every entry changed."""
        changed = {name: [change(layer) for layer in getattr(self, name)] for name in _LISTS}
        return self if all(changed[name] == getattr(self, name) for name in _LISTS) else self.model_copy(update=changed)

    def once_each(self) -> Self:
        """A stack of its different entries, each as often as it must be there."""
        layers = [one for one in self.distinct() for _ in range(one.fewest_layers())]
        return self.model_copy(update={"first_layers": [], "layers": layers})

    def fewest_layers(self) -> int:
        """Those of its different entries."""
        return sum(one.fewest_layers() for one in self.distinct())

    @classmethod
    def field_owners(cls, values: Mapping[str, Any]) -> list[type[Spec]]:
        """Its own class, and those of the attentions that its lists name."""
        entries = [entry for name in _LISTS if isinstance(values.get(name), list) for entry in values[name]]
        kinds = dict.fromkeys(
            kind
            for entry in entries
            if isinstance(kind := entry.get("kind") if isinstance(entry, dict) else entry, str) and kind != HYBRID
        )
        found: list[type[Spec]] = [cls]
        for kind in kinds:
            try:
                found.append(settings_class(kind))
            except SpecError:  # said where the entry is read, with its place
                continue
        return found

    def check_model(self, n_layers: int, steps: int) -> None:
        """Raises ValueError where the pattern does not fit into the layers, or its stages are not those of one run."""
        if len(self.entries) > n_layers:
            raise ValueError(
                f"attention lists {len(self.entries)} layers (first_layers and layers), and model.n_layers = {n_layers}"
            )
        said = [(one.kind, one.warmup_steps(steps)) for one in self.entries if _has(one, "warmup_steps")]
        if other := next((one for one in said if one[1] != said[0][1]), None):
            raise ValueError(
                f"the dense warm-up is {said[0][1]} steps in a layer of {said[0][0]} and {other[1]} in one of "
                f"{other[0]}; all layers share one: set warmup_share and indexer.warmup_share (or "
                "indexer.warmup_steps) to the same"
            )

    def why_not_latent(self) -> str | None:
        """Why the first of its attentions that does not take it does not."""
        why = {one.kind: one.why_not_latent() for one in self.entries}
        return next((f"of {kind}, {reason}" for kind, reason in why.items() if reason), None)

    def n_selected(self, length: int) -> int | None:
        """Of the layers that select, the most; None where none does."""
        return max((k for one in self.entries if (k := one.n_selected(length)) is not None), default=None)

    def keys_read(self, length: int) -> int:
        """Mean over the pattern's layers, rounded."""
        read: list[int] = [one.keys_read(length) for one in self.layers]
        return round(sum(read) / len(read))

    def selects_everything(self, length: int) -> bool:
        """Whether every layer that selects does."""
        selecting = [one for one in self.entries if one.n_selected(length) is not None]
        return bool(selecting) and all(one.selects_everything(length) for one in selecting)

    def top_k_at(self, step: int) -> int | None:
        """As of the layers that have a schedule, which is one."""
        return next((k for one in self.entries if (k := one.top_k_at(step)) is not None), None)

    def key_changes(self) -> tuple[int, ...]:
        """As of the layers that have a schedule, which is one."""
        return next((changes for one in self.entries if (changes := one.key_changes())), ())

    def keeping(self, k: int) -> Self:
        """The layers that have a schedule keep k keys."""
        return self.each(lambda one: one.keeping(k) if one.key_changes() else one)

    def at_most_keys(self, length: int) -> Self:
        """Each layer's."""
        return self.each(lambda one: one.at_most_keys(length))

    def warmup_steps(self, steps: int) -> int:
        """Of the layers that have a warm-up, which is one."""
        return max(one.warmup_steps(steps) for one in self.entries)

    def warmup_rates(self) -> tuple[float | None, float | None]:
        """None for own parameters, whose rates are each layer's; and that of all others, which is one."""
        return None, next((rate for one in self.entries if (rate := one.warmup_rates()[1]) is not None), None)

    def own_loss_weight(self) -> float:
        """Of the layers that set it, which is one."""
        return next((one.own_loss_weight() for one in self.entries if _has(one, "own_loss_weight")), 1.0)

    def warmup_freezes_backbone(self) -> bool:
        """Whether its layers ask for it, which is one choice."""
        return any(one.warmup_freezes_backbone() for one in self.entries)

    def anywhere(self) -> Self:
        """Each layer's."""
        return self.each(lambda one: one.anywhere())


def _has(one: AttentionSpec, method: str) -> bool:
    """Whether the attention has a say of its own in this, beside the base's default."""
    return getattr(type(one), method) is not getattr(AttentionSpec, method)


_OF_THE_RUN: dict[str, Callable[[AttentionSpec], Any]] = {
    "indexer.freeze_backbone": lambda one: (
        one.warmup_freezes_backbone() if _has(one, "warmup_freezes_backbone") else None
    ),
    "indexer.warmup_backbone_learning_rate": lambda one: (
        one.warmup_rates()[1] or "null" if _has(one, "warmup_rates") else None
    ),
    "indexer.loss_weight": lambda one: one.own_loss_weight() if _has(one, "own_loss_weight") else None,
    "top_k_schedule": lambda one: one.model_dump().get("top_k_schedule"),
}
"""What the layers of one run cannot have each of its own: a setting -> its value in a layer, None where it has none."""


def _layer(entry: Any, shared: Mapping[str, Any], place: str) -> AttentionSpec:
    """The settings of one entry, the shared ones where it has none of its own. Raises ValueError that names it."""
    if isinstance(entry, AttentionSpec):
        return entry
    given = {"kind": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or not isinstance(kind := given.get("kind"), str):
        raise ValueError(f"{place} = {entry!r} is not accepted; accepted: {_ENTRY}")
    if kind == HYBRID:
        raise ValueError(f"{place} is a hybrid in a hybrid; accepted: an attention of one layer")
    model = settings_class(kind, f"{place}: ")
    try:
        return model.model_validate(_joined(model, shared, given))
    except ValidationError as error:
        lines = explain(error, model, "", lambda path: "")
        raise ValueError("; ".join(f"{place} ({kind}): {line}" for line in lines)) from error


def _joined(model: type[BaseModel], shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Own fields over the shared ones that the model has; of a pair of alternatives an own one clears the shared other.
    A mapping in both is joined field by field."""
    pairs = getattr(model, "alternatives", ())
    cleared = {a for pair in pairs for a, b in (pair, pair[::-1]) if own.get(b) is not None}
    kept = {name: value for name, value in shared.items() if name in model.model_fields and name not in cleared}
    joined = {**kept, **own}
    for name in kept.keys() & own.keys():
        inner = models_in(model.model_fields[name].annotation)
        if len(inner) == 1 and isinstance(kept[name], Mapping) and isinstance(own[name], Mapping):
            joined[name] = _joined(inner[0], kept[name], own[name])
    return joined
