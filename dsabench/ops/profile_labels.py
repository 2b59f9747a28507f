"""Names for the parts of a training step, by which `dsabench profile` splits its time.

    with part("indexer"):
        scores_BTS = self.indexer(x_BTD, context)

The innermost name counts, for the operations inside and for those of the backward pass that autograd derives from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

from torch.compiler import is_compiling
from torch.profiler import record_function

Part = Literal[
    "short convolution",
    "attention",
    "indexer",
    "top-k",
    "indexer loss",
    "experts",
    "rest of the model",
    "logits and loss",
    "optimizer",
    "other",
]

PREFIX = "dsabench/"
"""What the names of ranges in a trace begin with."""

_NOTHING = contextlib.nullcontext()
_named = False


def part(name: Part) -> AbstractContextManager[Any]:
    """A range of this name in the profiler's trace while `named()`; else nothing, at no cost."""
    if is_compiling() or not _named:  # in this order, or compiled code would depend on _named
        return _NOTHING
    return record_function(PREFIX + name)


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Parts leave ranges in the trace while inside."""
    global _named
    before, _named = _named, True
    try:
        yield
    finally:
        _named = before
