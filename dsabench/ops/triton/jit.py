"""`triton.jit` whose cache keys do not depend on which kernel is compiled first: another process compiles ahead.

Before Triton 3.9 the key of a function took in the constants of those it calls only where their keys had been asked for
earlier (triton-lang/triton pull request 10494 mended it), so a kernel that another process had compiled was compiled
again. Here a key is made where the function is defined, after those of all that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

_MENDED = (3, 9)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """As triton.jit, with or without options."""
    if function is None:
        return lambda given: jit(given, **options)
    kernel: Any = triton.jit(function, **options)
    if tuple(map(int, triton.__version__.split(".")[:2])) < _MENDED:
        getattr(kernel, "cache_key", None)  # a property that keeps what it finds; interpreted functions have none
    return kernel
