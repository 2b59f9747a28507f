"""Faults of an attention's class or computation, said in one line that names its file. Loads no torch."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from dsabench.errors import SpecError
from dsabench.spec.attention import FORMER_NAMES

if TYPE_CHECKING:
    from dsabench.spec.attention import AttentionSpec


def problems(variant: type) -> list[str]:
    """Everything that keeps a class from being registered as an attention; [] when nothing does."""
    from dsabench.attention.base import Attention
    from dsabench.spec.attention import AttentionSpec

    found = []
    if not (isinstance(variant, type) and issubclass(variant, Attention)):
        found.append("it is not a subclass of Attention (from dsabench.attention)")
    owed = {name: method for name, method in vars(Attention).items() if inspect.isfunction(method)}
    abstract: frozenset[str] = getattr(variant, "__abstractmethods__", frozenset())
    for name in sorted(abstract - owed.keys()):  # of a base between Attention and this class
        found.append(f"it lacks the method {name}{_signature(getattr(variant, name))}")
    for name, method in owed.items():
        ours = getattr(variant, name, None)
        if name in abstract or (ours is None and name in Attention.__abstractmethods__):
            found.append(f"it lacks the method {name}{_signature(method)}")
        elif inspect.isfunction(ours) and not _takes(ours, names := list(inspect.signature(method).parameters)):
            found.append(f"its method {name}{_signature(ours)} must take ({', '.join(names)})")
    spec_class = getattr(variant, "spec_class", None)
    if not (isinstance(spec_class, type) and issubclass(spec_class, AttentionSpec)):
        found.append(
            "it lacks spec_class, the class of its settings: a subclass of AttentionSpec (from dsabench.attention) "
            'with kind: Literal["the_variants_name"]'
        )
    elif name_of(spec_class) is None:
        found.append(
            f'{spec_class.__name__}.kind must be annotated as Literal["the_variants_name"], one name of letters, '
            "digits and _"
        )
    return found


def name_of(spec_class: type[AttentionSpec]) -> str | None:
    """The one name that a spec class's `kind` is annotated with, if it can name a run; else None. A built-in class may
    have the names that it had after it."""
    annotation = spec_class.model_fields["kind"].annotation
    names = get_args(annotation) if get_origin(annotation) is Literal else ()
    names = (*names[:1], *(name for name in names[1:] if FORMER_NAMES.get(name) != names[0]))
    fits = len(names) == 1 and isinstance(names[0], str) and re.fullmatch(r"[A-Za-z0-9]\w*", names[0], re.ASCII)
    return names[0] if fits else None


def fault(variant: type, kind: str, what: str, error: BaseException | None = None) -> SpecError:
    """`FILE:LINE: attention KIND: WHAT` as an error to raise. The line is the innermost one of the class's file in the
    traceback of `error`, or that of its `forward`."""
    file = file_of(variant)
    if file is None:
        return SpecError(f"attention {kind}: {what}")
    line = None if error is None else line_in(error, file)
    code = getattr(getattr(variant, "forward", None), "__code__", None)
    if error is None and code is not None and code.co_filename == str(file):
        line = code.co_firstlineno
    return SpecError(f"{file}{f':{line}' if line else ''}: attention {kind}: {what}")


def file_of(variant: type) -> Path | None:
    """The file that a class is written in; None for one from a prompt or a notebook."""
    file = getattr(sys.modules.get(variant.__module__), "__file__", None)
    return None if file is None else Path(file).resolve()


def line_in(error: BaseException, file: Path) -> int | None:
    """The line of `file` that an error came from: the innermost one of its traceback, or the one that is no Python."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    return lines[-1] if lines else None


def said(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of what it says."""
    text = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    first = next(iter(text.strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _takes(method: Callable[..., Any], names: list[str]) -> bool:
    try:
        inspect.signature(method).bind(*names)
    except TypeError:
        return False
    return True


def _signature(method: Callable[..., Any]) -> str:
    return str(inspect.signature(method)).replace("'", "")
