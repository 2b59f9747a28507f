"""An axis of whole attentions, `axes: {attention: [{kind: dense}, {kind: dsa, top_k: 64}]}`, under overrides.

Each value is an attention with fields of its own, where an axis of `attention.kind` gives all of them those of
`base.attention`. Flags that name kinds choose among the values; fields that are set go into those that have them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from dsabench.errors import SpecError
from dsabench.spec.attention import kind_of
from dsabench.spec.messages import field_at
from dsabench.spec.run import settings_class


def chosen(entries: Sequence[Any], kinds: Sequence[Any], origin: str) -> list[Any]:
    """The attentions of these kinds, kind by kind. Raises SpecError for a kind that is none of them."""
    found = []
    for kind in kinds:
        mine = [one for one in entries if isinstance(one, dict) and kind_of(one) == kind]
        if not mine:
            there = ", ".join(dict.fromkeys(str(kind_of(one)) for one in entries if isinstance(one, dict)))
            raise SpecError(f"{origin}attention.kind = {kind!r}: the config's list of attentions has {there}")
        found += mine
    return found


def with_field(entries: Sequence[Any], path: str, value: Any, origin: str) -> list[Any]:
    """The attentions with the field at `path` (below attention) set in each one whose kind has it. Raises SpecError
    where none has."""
    *parents, name = names = path.split(".")
    changed, known = copy.deepcopy(list(entries)), False
    for one in changed:
        if not isinstance(one, dict):
            continue
        owners = settings_class(kind_of(one), origin).field_owners(one)
        if not any(field_at(owner, names) for owner in owners):
            continue
        known, values = True, one
        for parent in parents:
            values = values.setdefault(parent, {})
        if not parents:
            for pair in (pair for owner in owners for pair in owner.alternatives if name in pair):
                values.pop(pair[0] if name == pair[1] else pair[1], None)
        values[name] = value
    if not known:
        kinds = ", ".join(dict.fromkeys(str(kind_of(one)) for one in changed if isinstance(one, dict)))
        raise SpecError(f"{origin}unknown field attention.{path} for the config's list of attentions: {kinds}")
    return changed


def in_words(value: Any) -> str:
    """An attention of the list in a line: its kind and its fields."""
    if not isinstance(value, dict):
        return str(value)
    inside = ", ".join(f"{name}={in_words(one)}" for name, one in value.items() if name != "kind")
    kind = str(kind_of(value)) if "kind" in value or "layers" in value else ""
    return f"{kind}({inside})" if inside else kind
