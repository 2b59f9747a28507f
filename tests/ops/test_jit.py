"""Cache keys of kernels: made where the kernels are defined, where Triton would let them depend on what came first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dsabench

KEYS = """
from triton.runtime.jit import JITFunction
from dsabench.ops.triton import jit
jit._MENDED = (99, 0)
from dsabench.attention.dsa.triton import top_k_kernels
found = {name: kernel.hash for name, kernel in vars(top_k_kernels).items() if isinstance(kernel, JITFunction)}
assert len(found) > 5, found
assert all(len(key or "") == 64 for key in found.values()), found
"""


def test_the_key_is_made_where_the_kernel_is_defined() -> None:
    free = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", KEYS], check=True, env=free)


def test_every_kernel_is_defined_so() -> None:
    package = Path(dsabench.__file__).parent
    others = [path for path in package.rglob("*.py") if path.parts[-2:] != ("triton", "jit.py")]
    assert not [str(path) for path in others if "triton.jit(" in path.read_text() or "@triton.jit" in path.read_text()]
