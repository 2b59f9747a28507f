"""Plugin files: importing a user's Python file, which registers its attentions, and the digest of its content."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dsabench.attention import registry
from dsabench.attention.faults import line_in, said
from dsabench.errors import SpecError
from dsabench.user_folders import expanded

if TYPE_CHECKING:
    from dsabench.spec.attention import AttentionSpec

_PREFIX = "dsabench_plugin_"
"""The beginning of the names of plugins' modules."""

_MOVED = (
    "modules inside dsabench move from version to version: import all that a plugin needs by "
    "`from dsabench.attention import Attention, AttentionSpec, RunSpec, register, ...`"
)

_digests: dict[Path, str] = {}
"""SHA-256 of the content with which each plugin file was imported."""

_files: dict[str, Path] = {}
"""The plugin file that registered each kind."""

_refused = False


@contextlib.contextmanager
def no_plugins() -> Iterator[None]:
    """Refuse every plugin file, unread, inside the block: for specs and stored runs of somebody else."""
    global _refused
    before, _refused = _refused, True
    try:
        yield
    finally:
        _refused = before


def check_plugin_allowed(path: str, origin: str = "") -> None:
    """Raises SpecError inside `no_plugins`, naming the file and, as `origin`, the place that asks for it."""
    if _refused:
        raise SpecError(
            f"{origin}plugins: {path} is a Python file that would be executed, and --no-plugins refuses that; "
            "leave --no-plugins out if you trust the file"
        )


def load_plugin(path: str, origin: str = "") -> str:
    """Import a user's Python file, which registers its variants. It runs as code, once for each content.

    path: absolute, from ~, or from the current folder. origin: the place that asks for it, for error messages.
    Returns the absolute path. Raises SpecError naming the file, and the line if Python tells it, when the file is
    missing, fails to import, or registers nothing; the variants registered before then stay as they were.
    """
    check_plugin_allowed(path, origin)
    file, content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    if _digests.get(file) == digest:
        return str(file)
    name = f"{_PREFIX}{file.stem}_{digest[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None:
        raise SpecError(f"plugins: {path} is not a Python file (.py)")
    registry.kinds()  # registers the built-in ones now: a plugin that imports one would count as its author
    before = registry.registered()
    own = {kind for kind, origin in _files.items() if origin == file}
    # Classes of the file as it was before an edit go; those that it only imported stay.
    old = {kind for kind in own if before[kind].__module__.startswith(_PREFIX)}
    registry.restore({kind: variant for kind, variant in before.items() if kind not in old})
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        # Not by the loader, which would run a cached version of a file that was edited twice within a second.
        exec(compile(content, file, "exec", dont_inherit=True), vars(module))
        now = registry.registered()
        registered = {kind for kind, variant in now.items() if kind in own or before.get(kind) is not variant}
        if not registered:
            raise SpecError("it registers no attention; put @register above its class (subclass of Attention)")
    except BaseException as error:
        del sys.modules[name]
        registry.restore(before)
        if not isinstance(error, Exception | SystemExit):
            raise
        line = line_in(error, file)
        raise SpecError(f"plugins: {path}{f':{line}' if line else ''}{_failure(error)}") from error
    _digests[file] = digest
    for kind in own - registered:
        del _files[kind]
    _files.update(dict.fromkeys(registered, file))
    return str(file)


def plugin_digest(kind: str) -> str | None:
    """SHA-256 of the plugin file that registered `kind`, which is part of a run's identity; None for a built-in one."""
    file = _files.get(kind)
    return None if file is None else _digests[file]


def digest_of(attention: AttentionSpec) -> str | None:
    """The `plugin_digest` of an attention; of a hybrid with layers of several plugins, the SHA-256 of theirs."""
    digests = list(dict.fromkeys(filter(None, map(plugin_digest, sorted(attention.kinds)))))
    if len(digests) < 2:
        return next(iter(digests), None)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read(path: str) -> tuple[Path, bytes]:
    """The absolute path and the content of a plugin file."""
    try:
        file = expanded(path, SpecError).resolve()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, ~ of nobody, a loop of links
        raise SpecError(f"plugins: {path!r} is not the name of a file: {error}") from error
    if not is_file:
        raise SpecError(f"plugins: {path} is not a file (seen from {Path.cwd()})")
    try:
        return file, file.read_bytes()
    except OSError as error:
        raise SpecError(f"plugins: {path} cannot be read: {error.strerror}") from error


def _failure(error: BaseException) -> str:
    if isinstance(error, SpecError):
        return f": {error}"
    hint = ""
    if isinstance(error, ImportError) and str(error.name).startswith("dsabench."):
        hint = f"; {_MOVED}"
    elif isinstance(error, ModuleNotFoundError):
        hint = "; install it beside dsabench (a plugin is one file: it cannot import files that lie next to it)"
    return f" fails to import: {said(error)}{hint}"
