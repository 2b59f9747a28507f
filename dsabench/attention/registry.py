"""The registry of attention variants by name: the built-in ones, and those that plugin files register.

from dsabench.attention import Attention, register

@register
class MyAttention(Attention):
    spec_class = MySpec          # its `kind` is Literal["my_attention"]
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dsabench.attention.faults import file_of, name_of, problems
from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN
from dsabench.spec.attention.settings_by_name import HYBRID
from dsabench.spec.messages import nearest

if TYPE_CHECKING:
    from dsabench.attention.base import Attention
    from dsabench.spec.attention import AttentionSpec

_FOLDER = Path(__file__).parent
_variants: dict[str, type[Attention]] = {}
A = TypeVar("A", bound="type[Attention]")


def register(variant: A) -> A:
    """Class decorator: make `variant` selectable as `attention: {kind: NAME}`; NAME is its spec class's `kind`.

    Raises SpecError that lists everything the class lacks, or when another file's class has the name already.
    """
    if found := problems(variant):
        raise SpecError(f"{getattr(variant, '__name__', variant)} cannot be registered: {'; '.join(found)}")
    name = name_of(variant.spec_class)
    assert name is not None, "problems() reports a class without a name"
    if name in BUILT_IN and variant.__module__ != _home(name):
        inherited = "" if "spec_class" in vars(variant) else ", in a spec_class of its own (now it inherits one)"
        raise SpecError(
            f"attention kind {name!r} is built in and cannot be replaced; give the variant another name{inherited}"
        )
    known = _variants.get(name)
    # A file that was edited and is loaded again may replace its own variants, and no other file's.
    if known is not None and _origin(known) != _origin(variant):
        raise SpecError(f"attention kind {name!r} is already registered by {known.__qualname__} of {_origin(known)}")
    _variants[name] = variant
    return variant


def kinds() -> list[str]:
    """Names of all registered variants, the built-in ones first."""
    for name in BUILT_IN:
        if name != HYBRID:  # it is made of the others, and has no module
            importlib.import_module(_home(name))
    return [*BUILT_IN, *(name for name in _variants if name not in BUILT_IN)]


def _home(name: str) -> str:
    """The module of a built-in variant: a file, a folder's `layer`, or one of the ablations."""
    for place in (f"{name}.layer", f"ablations.{name}"):
        if (_FOLDER / f"{place.replace('.', '/')}.py").exists():
            return f"dsabench.attention.{place}"
    return f"dsabench.attention.{name}"


def variant(kind: str) -> type[Attention]:
    """The module class registered as `kind`; SpecError names the nearest kinds when there is none."""
    names = kinds()
    if kind == HYBRID:
        raise SpecError(
            "attention.kind = hybrid has no module of its own; each of its layers has an attention with one"
        )
    if not isinstance(kind, str) or kind not in _variants:  # what stands in a file may be anything
        near = nearest(str(kind), names)
        hint = f"did you mean {near!r}? " if near else ""
        raise SpecError(
            f"attention.kind = {kind!r} is not a known attention; {hint}known: {', '.join(names)} "
            "(a variant of your own needs its file in `plugins`)"
        )
    return _variants[kind]


def spec_class(kind: str) -> type[AttentionSpec]:
    """The pydantic spec class of the variant registered as `kind`."""
    return BUILT_IN[kind] if kind == HYBRID else variant(kind).spec_class


def is_built_in(kind: object) -> bool:
    """Whether a variant of this name comes with dsabench, and needs no plugin."""
    return isinstance(kind, str) and kind in BUILT_IN


def registered() -> dict[str, type[Attention]]:
    """A copy of the registry as it is now: the class of each name, built-in ones that are not yet imported left out."""
    return dict(_variants)


def restore(variants: dict[str, type[Attention]]) -> None:
    """Make the registry what `registered` gave at an earlier time."""
    _variants.clear()
    _variants.update(variants)


def _origin(variant: type) -> str:
    """Where a class comes from: its file, or the module of one from a prompt."""
    return str(file_of(variant) or variant.__module__)
