"""The least probability whose logarithm kernels take."""

from __future__ import annotations

import triton.language as tl

LEAST = tl.constexpr(1e-37)
"""A GPU's logarithms take what is below 1.2e-38, a subnormal number, for 0, and then p log p is -inf though p is not 0.
A mean over heads of probabilities that are just above it is such a p: a run of DSA ended so, after 179 steps."""
