"""The registry of attention variants by name: the built-in ones, and those that plugin files register.

from dsabench.attention import Attention, register

@register
class MyAttention(Attention):
    spec_class = MySpec          # its `kind` is Literal["my_attention"]
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dsabench.attention.faults import file_of, line_in, name_of, problems, said
from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN

if TYPE_CHECKING:
    from dsabench.attention.base import Attention
    from dsabench.spec.attention import AttentionSpec

_FOLDER = Path(__file__).parent
_PREFIX = "dsabench_plugin_"
"""What the module names of plugins begin with."""

_variants: dict[str, type[Attention]] = {}
_plugins: dict[Path, str] = {}
_files: dict[str, Path] = {}
"""The plugin file that registered each kind."""

_refused = False

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


def is_built_in(kind: object) -> bool:
    """Whether a variant of this name comes with dsabench, and needs no plugin."""
    return kind in BUILT_IN


@contextlib.contextmanager
def no_plugins() -> Iterator[None]:
    """Refuses every plugin file while inside, before it is read: for specs and stored runs of somebody else."""
    global _refused
    before, _refused = _refused, True
    try:
        yield
    finally:
        _refused = before


def check_plugin_allowed(path: str, origin: str = "") -> None:
    """Raises SpecError inside `no_plugins`, naming the file and, as `origin`, who names it."""
    if _refused:
        raise SpecError(
            f"{origin}plugins: {path} is a Python file that would be executed, and --no-plugins refuses that; "
            "leave --no-plugins out if you trust the file"
        )


def load_plugin(path: str, origin: str = "") -> str:
    """Execute a user's Python file, which registers its variants; once for a file and its content.

    path: absolute, from ~, or from the current folder. origin: who names it, for `check_plugin_allowed`. Returns the
    absolute path. Raises SpecError naming the file, and the line where Python knows it, when the file is missing, fails
    to import, or registers nothing; then all that was registered before is as it was.
    """
    check_plugin_allowed(path, origin)
    try:
        file = Path(path).expanduser().resolve()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, ~ of nobody, a loop of links
        raise SpecError(f"plugins: {path!r} is not the name of a file: {error}") from error
    if not is_file:
        raise SpecError(f"plugins: {path} is not a file (seen from {Path.cwd()})")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SpecError(f"plugins: {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if _plugins.get(file) == digest:
        return str(file)
    name = f"{_PREFIX}{file.stem}_{digest[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None:
        raise SpecError(f"plugins: {path} is not a Python file (.py)")
    kinds()  # registers the built-in ones first, or the plugin's imports would register them as its own
    before = dict(_variants)
    own = {kind for kind, origin in _files.items() if origin == file}
    for kind in own:  # that the file defined before it was edited; those that it imports stay
        if _variants[kind].__module__.startswith(_PREFIX):
            del _variants[kind]
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        # Not by the loader, which would run a cached version of a file that was edited twice within a second.
        exec(compile(content, file, "exec", dont_inherit=True), vars(module))
        registered = {kind for kind, cls in _variants.items() if kind in own or before.get(kind) is not cls}
        if not registered:
            raise SpecError("it registers no attention; put @register above its class (subclass of Attention)")
    except BaseException as error:
        del sys.modules[name]
        _variants.clear()
        _variants.update(before)
        if not isinstance(error, Exception | SystemExit):
            raise
        line = line_in(error, file)
        raise SpecError(f"plugins: {path}{f':{line}' if line else ''}{_failure(error)}") from error
    _plugins[file] = digest
    for kind in own - registered:
        del _files[kind]
    _files.update(dict.fromkeys(registered, file))
    return str(file)


def plugin_digest(kind: str) -> str | None:
    """SHA-256 of the plugin file that registered `kind`, which is part of a run's identity; None for a built-in one."""
    file = _files.get(kind)
    return None if file is None else _plugins[file]


def _failure(error: BaseException) -> str:
    if isinstance(error, SpecError):
        return f": {error}"
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = "; install it beside dsabench (a plugin is one file: it cannot import files that lie next to it)"
    return f" fails to import: {said(error)}{hint}"


def _origin(variant: type) -> str:
    """Where a class comes from: its file, or the module of one from a prompt."""
    return str(file_of(variant) or variant.__module__)
