"""The k best of a row that a program holds: a search for their threshold by counting, exact with ties.

Floats are compared as integers in the same order, so that the search halves an integer interval: at most 32 counts,
about log2(k) + 5 for scores of one magnitude, fewer where a few entries more than k may stay.

Legend: C entries of the row.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.ops.triton.jit import jit


@jit
def ordered(value, filled):
    """int32 that sort as the floats do (not NaN; +0.0 and -0.0 differ); the lowest int32 where not filled."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(filled, tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF), -2147483648)


@jit
def as_float(order):
    """The float of an `ordered` integer."""
    return tl.where(order >= 0, order, order ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@jit
def below(x):
    """The next lower float: score > below(x) says score >= x. For numbers that are not -0.0; -inf stays."""
    order = ordered(x, True)
    lower = as_float(tl.where(order == 0, -2, order - 1))  # order -1 is -0.0, which equals 0.0
    return tl.where(x == -float("inf"), x, lower)


@jit
def threshold(order, filled, k, slack):
    """(x, n): n entries are >= x, and k <= n <= k + slack unless ties at x forbid it, when x is the k-th highest.

    At least k entries must be filled.
    """
    low = tl.min(tl.where(filled, order, 2147483647), axis=0)
    high = tl.max(order, axis=0) + 1  # of finite floats: no overflow
    n = tl.sum(filled.to(tl.int32), axis=0)
    # n entries are >= low, fewer than k are >= high.
    while (low + 1 < high) & (n > k + slack):
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        above = tl.sum((order >= middle).to(tl.int32), axis=0)
        enough = above >= k
        low = tl.where(enough, middle, low)
        n = tl.where(enough, above, n)
        high = tl.where(enough, high, middle)
    return low, n


@jit
def keep_best(value, filled, k, slack):
    """Mask of the min(k, filled) to k + slack best entries, of equal ones the first; their threshold; how many.

    Filled entries come first in the row.
    """
    order = ordered(value, filled)
    have = tl.sum(filled.to(tl.int32), axis=0)
    k = tl.minimum(k, have)
    limit, n = threshold(order, filled, k, slack)
    keep = order >= limit
    if n > k + slack:
        tied = order == limit
        room = k - tl.sum((order > limit).to(tl.int32), axis=0)
        keep = (order > limit) | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))
        n = k
    return keep & filled, limit, n
