"""The attention variants there are, by name: the built-in ones, and those that plugin files register.

from dsabench.attention.base import Attention
from dsabench.attention.registry import register

@register
class MyAttention(Attention):
    spec_class = MySpec          # its `kind` is Literal["my_attention"]
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from dsabench.errors import SpecError

if TYPE_CHECKING:
    from dsabench.attention.base import Attention
    from dsabench.spec.fields import AttentionSpec

_BUILT_IN = ("dense", "dsa", "sliding_window", "sink_window", "strided", "random", "oracle", "block")
_variants: dict[str, type[Attention]] = {}
_plugins: dict[Path, str] = {}
_files: dict[str, Path] = {}
"""The plugin file that registered each kind."""

A = TypeVar("A", bound="type[Attention]")


def register(variant: A) -> A:
    """Class decorator: make `variant` selectable as `attention: {kind: NAME}`; NAME is its spec class's `kind`.

    Raises SpecError when the spec class names no single kind, or when another class already has the name.
    """
    (name,) = get_args(variant.spec_class.model_fields["kind"].annotation) or (None,)
    if not isinstance(name, str):
        raise SpecError(f'{variant.spec_class.__name__}.kind must be annotated as Literal["the_variants_name"]')
    if name in _BUILT_IN and variant.__module__ != f"dsabench.attention.{name}":
        raise SpecError(f"attention kind {name!r} is built in and cannot be replaced; give the variant another name")
    known = _variants.get(name)
    # A plugin that was edited and loaded again may replace its own variants, and nobody else's.
    if known is not None and _origin(known) != _origin(variant):
        raise SpecError(f"attention kind {name!r} is already registered by {known.__module__}.{known.__qualname__}")
    _variants[name] = variant
    return variant


def kinds() -> list[str]:
    """Names of all registered variants, the built-in ones first."""
    for name in _BUILT_IN:
        importlib.import_module(f"dsabench.attention.{name}")
    return [*_BUILT_IN, *(name for name in _variants if name not in _BUILT_IN)]


def variant(kind: str) -> type[Attention]:
    """The module class registered as `kind`; SpecError names the nearest kinds when there is none."""
    names = kinds()
    if kind not in _variants:
        near = difflib.get_close_matches(str(kind), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(
            f"attention.kind = {kind!r} is not a known attention; {hint}known: {', '.join(names)} "
            "(a variant of your own needs its file in `plugins`)"
        )
    return _variants[kind]


def spec_class(kind: str) -> type[AttentionSpec]:
    """The pydantic spec class of the variant registered as `kind`."""
    return variant(kind).spec_class


def load_plugin(path: str) -> str:
    """Import a user's Python file, which registers its variants; once a file and content. It runs as code.

    Returns the file's absolute path. Raises SpecError naming the file when it is missing or fails to import.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise SpecError(f"plugins: {path} is not a file")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if _plugins.get(file) == digest:
        return str(file)
    name = f"dsabench_plugin_{file.stem}_{digest[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise SpecError(f"plugins: {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    before = dict(_variants)
    try:
        module_spec.loader.exec_module(module)
    except SpecError as error:
        del sys.modules[name]
        raise SpecError(f"plugins: {path}: {error}") from error
    except Exception as error:
        del sys.modules[name]
        raise SpecError(f"plugins: {path} fails to import: {type(error).__name__}: {error}") from error
    _plugins[file] = digest
    _files.update({kind: file for kind, cls in _variants.items() if before.get(kind) is not cls})
    return str(file)


def plugin_digest(kind: str) -> str | None:
    """SHA-256 of the plugin file that registered `kind`, which is part of a run's identity; None for a built-in one."""
    file = _files.get(kind)
    return None if file is None else _plugins[file]


def _origin(variant: type[Attention]) -> str:
    """Where a class comes from: its module, without the content digest of a plugin's."""
    return re.sub(r"^(dsabench_plugin_.*)_[0-9a-f]{8}$", r"\1", variant.__module__)
