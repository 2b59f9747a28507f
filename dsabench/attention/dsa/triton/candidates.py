"""Lists of candidates, one a row of queries: C entries of a score and a position in 8 bytes, ascending positions.

Legend: T rows, C entries of a row.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.attention.dsa.triton.threshold import as_float, keep_best
from dsabench.ops.triton.jit import jit


@jit
def put(entries, prefix, place, score, bound, s, T: tl.constexpr, S: tl.constexpr, PLAIN: tl.constexpr):
    """entries[prefix + place] = (score, s) where score > bound; prefix and place are whole numbers in fp32.

    By inline PTX, for the layout that the scores have already: tl.store wants one in which rows are contiguous, and
    would send scores, positions and 64-bit addresses through shared memory to get it, five times the products' time.
    The index is read off the mantissa of 2^23 + it, because conversions to integers are slow.
    """
    if PLAIN:
        at = (prefix + place[:, None]).to(tl.int32)
        word = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | s[None, :].to(tl.int64)
        tl.store(entries + at, word, mask=score > bound[:, None])
    else:
        at = (prefix + (place + 8388608.0)[:, None]).to(tl.int32, bitcast=True)
        tl.inline_asm_elementwise(
            """{
            .reg .pred p;
            .reg .b64 a;
            setp.gt.f32 p, $3, $4;
            mad.wide.u32 a, $2, 8, $1;
            @p st.global.v2.b32 [a], {$5, $3};
            mov.b32 $0, 0;
            }""",
            "=r,l,r,r,r,r",
            [
                entries.to(tl.int64) - 8 * 0x4B000000,
                at,
                score.to(tl.int32, bitcast=True),
                tl.broadcast_to(bound.to(tl.int32, bitcast=True)[:, None], (T, S)),
                tl.broadcast_to(s[None, :], (T, S)),
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )  # fmt: skip


@jit
def get(entries, c, have):
    """The scores and positions of the first `have` entries; 0 beyond."""
    word = tl.load(entries + c, mask=c < have, other=0)
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True), word.to(tl.int32), word


@jit
def prune(entries, count, bound, K, slack, T: tl.constexpr, C: tl.constexpr):
    """Cut every list of more than K + slack entries to its K best (up to slack more), and raise its bound."""
    row = tl.arange(0, T)
    c = tl.arange(0, C)
    tl.debug_barrier()
    for r in range(0, T):
        have = tl.sum(tl.where(row == r, count, 0), axis=0)
        if have > K + slack:
            value, _, word = get(entries + r * C, c, have)
            tl.debug_barrier()  # all is read before any of it is overwritten
            keep, limit, kept = keep_best(value, c < have, K, slack)
            tl.store(entries + r * C + tl.cumsum(keep.to(tl.int32), axis=0) - 1, word, mask=keep)
            count = tl.where(row == r, kept, count)
            bound = tl.where(row == r, as_float(limit), bound)
    tl.debug_barrier()
    return count, bound
