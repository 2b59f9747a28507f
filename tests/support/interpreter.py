"""Triton's interpreter without its two most expensive habits, which take most of the time of the tests of kernels.

It patches triton.language before a kernel runs, by a walk over some hundred members, and undoes that afterwards; but it
does so again whenever the kernel calls a @triton.jit function. And it looks for overflows of every sum of integers by
ten more operations of its own; numpy says as much in three.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from types import SimpleNamespace
from typing import Any

import numpy as np

_INTERNALS = (
    "InterpretedFunction",
    "InterpreterError",
    "_patch_builtin",
    "_patch_lang",
    "inspect",
    "tl",
    "interpreter_semantic",
)


def quicken() -> None:
    """Patch once a kernel, by a list that is made once. Nothing where Triton is not there, or no longer made so."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    known = all(hasattr(interpreter, name) for name in _INTERNALS)
    if not known or not hasattr(interpreter.InterpretedFunction, "rewrite") or hasattr(interpreter, "is_quick"):
        return
    failure, patch, language = interpreter.InterpreterError, interpreter._patch_lang, interpreter.tl
    everything = SimpleNamespace(__globals__={"tl": language, "core": language.core})
    builtins: dict[int, list[tuple[str, Any]]] = {}

    def members(package: Any) -> list[tuple[str, Any]]:
        if id(package) not in builtins:
            found = inspect.getmembers(package)
            builtins[id(package)] = [(name, value) for name, value in found if language.core.is_builtin(value)]
        return builtins[id(package)]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise failure(repr(error)) from error

    def check_overflow(left: Any, right: Any, operation: Any) -> None:
        kind = left.type.scalar
        if kind.int_bitwidth < 64:
            x, y = (value.handle.data.astype(np.int64) for value in (left, right))
            found = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__](x, y)
            fits = kind.get_int_min_value() <= found.min() and found.max() <= kind.get_int_max_value()
            assert fits, f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"

    interpreter.interpreter_semantic.binary_op_sanitize_overflow_impl = check_overflow
    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": members})
    interpreter._patch_lang = lambda function: patch(everything)
    interpreter.InterpretedFunction.__call__ = call
    interpreter.is_quick = True  # type: ignore[attr-defined]
