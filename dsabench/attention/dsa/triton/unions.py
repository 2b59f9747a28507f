"""Unions of the selections of neighbouring queries: the keys that any of them selected, in key order, and by whom.

    U = S[t] + ... + S[t + Q - 1] as sets      a word: key | members << 24, where member j is query t + j

Neighbours select much the same keys. A program that takes Q of them gathers each key of the union once and adds to it
once, where Q programs do so for every query; its products grow by the queries that did not select the key. Whether
that pays is decided on the device, by the selection itself: `sizes` holds the number of a group's words, or 0 where the
union has more than SHARE of the keys that its members have together, and each query goes by itself. A sample of groups
is asked first, so that selections that share nothing pay for little else.

A program of `_unite` holds one bitmap of the keys for each query, in memory of its own that stays in the L2: it sets a
bit for every selected key, counts the bits before each word of 32 keys, and writes each key at its rank. No sort, and
rows need not be in order.

Time on the H200 at L = 65,536, k = 2048, Q = 4 (ms): 1.6, where 0.4 was predicted from 25 instructions an entry
(131,072: 4.3); of a selection that shares nothing 0.04. What made no difference: blocks of 256 to 2048 entries, 2 to 8
warps, 4 to 16 programs an SM, bitmaps side by side. What was slower: bits by differences of prefix sums of the
ascending list, in place of atomics (2.1).

Legend: B batch, T query, K selected slots, Q queries of a group, U groups of all batch rows, C words of a group, N
slots or words of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.availability import on_gpu, processors
from dsabench.ops.triton.jit import jit

KEY_BITS = tl.constexpr(24)
KEY = tl.constexpr((1 << 24) - 1)
"""The bits of a word that are its key."""

LONGEST = 1 << 24
MOST_QUERIES = 8
"""Keys and members that a word can name."""

SHARE = 0.75
"""A union of more than this share of its members' keys does not pay. At k = 2048, 16 heads, D = 64, Q = 4 the backward
pass gains up to 0.87, the KL loss always, the forward pass up to 0.6."""

ROWS = 64
"""Queries x heads of a group's products, what a tile of the tensor cores has: so many neighbours form a group."""

WIDEST = 128
"""Largest width of a head for which groups pay: beyond it their tiles do not fit the registers."""

SCRATCH_BYTES = 32 << 20
"""Most memory for the bitmaps of all programs, but for one program a multiprocessor."""

SAMPLE = 128
"""Groups that are asked whether unions pay."""


class Unions(NamedTuple):
    """Groups of `queries` neighbours; of group u the first sizes_U[u] words count, and 0 says: each by itself."""

    words_UC: Tensor
    sizes_U: Tensor
    queries: int


def parts(unions: Unions | None) -> tuple[Tensor | None, Tensor | None, int]:
    """As custom ops take them."""
    return (None, None, 0) if unions is None else unions


def joined(words_UC: Tensor | None, sizes_U: Tensor | None, queries: int) -> Unions | None:
    """What `parts` took apart."""
    return None if words_UC is None or sizes_U is None else Unions(words_UC, sizes_U, queries)


def neighbours(q_BTHD: Tensor, k_BSGD: Tensor) -> int:
    """How many queries form a group of these queries and keys, from 2 to 8; 0 where groups do not pay."""
    length, groups, width = k_BSGD.shape[1:]
    return queries_of(length, q_BTHD.shape[2], groups, width) if q_BTHD.dtype == torch.bfloat16 else 0


def queries_of(length: int, n_heads: int, groups: int, width: int) -> int:
    """`neighbours` of bf16 tensors of these sizes."""
    queries = min(MOST_QUERIES, ROWS // int(triton.next_power_of_2(n_heads // groups)))
    fits = width <= WIDEST and length < LONGEST and length * groups * width < 1 << 31  # offsets of 32 bits
    return queries if queries > 1 and fits else 0


def share(q_BTHD: Tensor, k_BSGD: Tensor, selected_BTK: Tensor) -> Unions | None:
    """The unions of a selection, for `attend` and `sparse_kl`; None where groups do not pay at these sizes."""
    queries = neighbours(q_BTHD, k_BSGD)
    return unions_of(selected_BTK, queries) if queries else None


def unions_of(selected_BTK: Tensor, queries: int) -> Unions:
    """The unions of so many neighbours.

    selected: int32 or int64, -1 or beyond the query where a slot is empty. No wait for the host, no gradient. Besides
    the selection's 4 bytes a slot they take 3, which are kept for the backward pass.
    """
    words_UC, sizes_U = _share(selected_BTK.detach().int(), queries)
    return Unions(words_UC, sizes_U, queries)


@torch.library.custom_op("dsabench::sparse_unions", mutates_args=())
def _share(selected_BTK: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    words_UC, sizes_U, _ = unite(selected_BTK, queries, SHARE)
    return words_UC, sizes_U


@_share.register_fake
def _(selected_BTK: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    units, most = _sizes(selected_BTK, queries, SHARE)
    return selected_BTK.new_empty(units, most), selected_BTK.new_empty(units)


def _sizes(selected_BTK: Tensor, queries: int, share: float) -> tuple[int, int]:
    """Groups, and the words of one: a multiple of 16, so that one compiled kernel serves all."""
    n_batch, length, slots = selected_BTK.shape
    most = min(int(queries * slots * share), length)
    return n_batch * triton.cdiv(length, queries), 16 * triton.cdiv(most, 16)


def unite(selected_BTK: Tensor, queries: int, share: float) -> Unions:
    """Unions of so many neighbours (2 to 8), where they have at most `share` of the keys that the members have."""
    selected_BTK = selected_BTK.contiguous()
    length, slots = selected_BTK.shape[1:]
    device = selected_BTK.device
    (units, most), n_words = _sizes(selected_BTK, queries, share), 16 * triton.cdiv(length, 512)
    words_UC = torch.empty(units, most, dtype=torch.int32, device=device)
    sizes_U = torch.empty(units, dtype=torch.int32, device=device)
    here = processors(device)
    fit = max(here, SCRATCH_BYTES // (4 * (2 * queries + 1) * n_words))
    programs = min(units, fit, 8 * here)
    raw = torch.zeros(programs, queries, n_words, dtype=torch.int32, device=device)
    maps = torch.empty(programs, n_words, queries, dtype=torch.int32, device=device)
    before = torch.empty(programs, n_words, dtype=torch.int32, device=device)
    asked = min(units, SAMPLE)
    sampled = int(triton.next_power_of_2(asked))
    sample = torch.zeros(sampled, 2, dtype=torch.int32, device=device)
    block = min(1024, max(32, int(triton.next_power_of_2(slots))))
    for taken, sampling in ((asked, True), (units, False)):
        _unite[(min(taken, programs),)](
            selected_BTK, raw, maps, before, words_UC, sizes_U, sample, length, slots, triton.cdiv(length, queries),
            units, taken, n_words, most, share, Q=queries, N=block, SAMPLED=sampled, SAMPLING=sampling,
            FAST=on_gpu(device), num_warps=4,
        )  # fmt: skip
    return Unions(words_UC, sizes_U, queries)


@jit
def _bits(x, FAST: tl.constexpr):
    """Bits that are set in each of x, uint32."""
    if FAST:
        n = tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], tl.int32, True, 1)
    else:
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        x = x + (x >> 8)
        n = ((x + (x >> 16)) & 0x3F).to(tl.int32)
    return n


@jit
def _either(a, b):
    return a | b


@jit
def _slots(selected, row, q, n, t0, T, K):
    """Keys of query q's slots n, and whether they count."""
    t = t0 + q
    s = tl.load(selected + (row + q) * K + n, mask=(n >= 0) & (n < tl.where(t < T, K, 0)), other=-1)
    keep = (s >= 0) & (s <= t)
    return tl.where(keep, s, 0), keep


@jit
def _bitmaps(maps, w, mask, Q: tl.constexpr):
    """Words w of the bitmaps of all queries, [N, Q]: they lie side by side."""
    at = maps + w[:, None] * Q + tl.arange(0, Q)[None, :]
    return tl.load(at, mask=mask[:, None], other=0).to(tl.uint32, bitcast=True)


@jit
def _take(raw, w, mask, stride, N: tl.constexpr, Q: tl.constexpr):
    """Words w of Q bitmaps, [N, Q], of which zeros are left."""
    at = raw + tl.arange(0, Q)[None, :] * stride + w[:, None]
    word = tl.load(at, mask=mask[:, None], other=0).to(tl.uint32, bitcast=True)
    tl.store(at, tl.zeros((N, Q), dtype=tl.int32), mask=mask[:, None])
    return word


# Lists that are not known to be aligned are loaded one number a lane, in the order that bitmaps and ranks are: whole
# vectors of them would go through shared memory before each of these.
@jit(do_not_specialize=["n_units", "n_taken"], do_not_specialize_on_alignment=["selected", "raw", "before", "words"])
def _unite(
    selected, raw, maps, before, words, sizes, sample, T, K, n_blocks, n_units, n_taken, n_words, C, share,
    Q: tl.constexpr, N: tl.constexpr, SAMPLED: tl.constexpr, SAMPLING: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """All n_units groups; or, SAMPLING, n_taken that are spread over them, whose numbers of keys and of members' keys
    go to `sample`, and nothing else."""
    n = tl.arange(0, N)
    j = tl.arange(0, Q).to(tl.uint32)
    one = tl.full((N,), 1, dtype=tl.uint32)
    pays = True
    if not SAMPLING:
        i = tl.arange(0, SAMPLED)
        united = tl.sum(tl.load(sample + 2 * i), axis=0).to(tl.float32)
        pays = united <= share * tl.sum(tl.load(sample + 2 * i + 1), axis=0).to(tl.float32)
    maps += tl.program_id(0).to(tl.int64) * Q * n_words
    before += tl.program_id(0).to(tl.int64) * n_words
    raw += tl.program_id(0).to(tl.int64) * Q * n_words
    for i in range(tl.program_id(0), n_taken, tl.num_programs(0)):
        unit = i * (n_units // n_taken) + i * (n_units % n_taken) // n_taken
        size = 0
        if pays:
            t0 = unit % n_blocks * Q
            row = (unit // n_blocks).to(tl.int64) * T + t0
            used = (tl.minimum(t0 + Q, T) + 31) // 32
            count = tl.zeros((N,), dtype=tl.int32)
            for q in range(0, Q):
                for n0 in range(0, K, N):
                    s, keep = _slots(selected, row, q, n0 + n, t0, T, K)
                    bit = (one << (s & 31).to(tl.uint32)).to(tl.int32, bitcast=True)
                    tl.atomic_or(raw + q * n_words + (s >> 5), bit, mask=keep, sem="relaxed")
                    count += keep.to(tl.int32)
            tl.debug_barrier()
            total = 0
            for w0 in range(0, used, N):
                w = w0 + n
                word = _take(raw, w, w < used, n_words, N, Q)
                at = maps + w[:, None] * Q + tl.arange(0, Q)[None, :]
                tl.store(at, word.to(tl.int32, bitcast=True), mask=(w < used)[:, None])
                bits = _bits(tl.reduce(word, 1, _either), FAST)
                tl.store(before + w, total + tl.cumsum(bits, axis=0) - bits, mask=w < used)
                total += tl.sum(bits, axis=0)
            members = tl.sum(count, axis=0)
            tl.debug_barrier()
            if SAMPLING:
                tl.store(sample + 2 * i, total)
                tl.store(sample + 2 * i + 1, members)
            elif (total <= share * members.to(tl.float32)) & (total <= C):
                size = total
                to = words + unit.to(tl.int64) * C
                for q in range(0, Q):
                    for n0 in range(0, K, N):
                        s, keep = _slots(selected, row, q, n0 + n, t0, T, K)
                        place = (s & 31).to(tl.uint32)
                        word = _bitmaps(maps, s >> 5, keep, Q)
                        lower = (one << place) - 1
                        rank = tl.load(before + (s >> 5), mask=keep, other=0)
                        rank += _bits(tl.reduce(word, 1, _either) & lower, FAST)
                        who = tl.reduce(((word >> place[:, None]) & 1) << j[None, :], 1, _either)
                        first = (who & ((one << q) - 1)) == 0  # one writes
                        tl.store(to + rank, s | (who << KEY_BITS).to(tl.int32, bitcast=True), mask=keep & first)
            tl.debug_barrier()
        if not SAMPLING:
            tl.store(sizes + unit, size)


@jit
def load_words(words, n, end, N: tl.constexpr):
    """Words n, twice: [N, 2]. One of them alone would be so small that the compiler loads it again for every layout in
    which it is wanted, by instructions of 4 bytes: a fifth of all that a loop has."""
    return tl.load(words + n[:, None] + tl.zeros((N, 2), dtype=tl.int32), mask=(n < end)[:, None], other=0)


@jit
def keys_of(word_N2, spare):
    """The keys of words, and their members. A word beyond the end has none, and a spare key, to which zeros are added:
    an addition with a mask is a branch."""
    key, who = tl.split(word_N2)
    who = who >> KEY_BITS
    return tl.where(who != 0, key & KEY, spare), who


@jit
def first_from(words, key, n_words):
    """The first word whose key is `key` or beyond."""
    low = 0 * n_words
    high = n_words + low
    while low < high:
        middle = (low + high) // 2
        before = (tl.load(words + middle) & KEY) < key
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low
