"""NSA's specification against the naive NSA of fla-core, an independent implementation of its branches and selection.

Its entries are means, with l = d = l', and it needs 16 query heads to a KV head; its window is flash attention, which
needs a GPU, so that branch is compared with PyTorch's own attention under a window's mask.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import Parity
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.nsa import reference
from dsabench.attention.pooled_dsa.pools import pooled, pools_of

GROUPS, HEADS, WIDTH = 2, 32, 8

OUTPUTS = Parity("NSA: compressed and selected branch, gated", "`fla-core` naive_nsa", 1e-4)
GRADIENTS = Parity(
    "gradients of q, k, v and gates of NSA", "`fla-core` naive_nsa", 1e-4, "largest difference over largest value"
)


def mean_pooling(x_BTHD: Tensor, block: int, ends: None = None) -> Tensor:
    """What the library computes by a kernel: means of blocks, of the last one over the tokens that are there."""
    assert ends is None
    parts = x_BTHD.split(block, dim=1)
    return torch.stack([part.mean(1) for part in parts], dim=1)


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """Loaded as a file, its two helpers replaced: importing the package brings all of its kernels."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.origin is not None, "fla-core is missing: pip install '.[test]'"
    found = importlib.util.spec_from_file_location("naive_nsa", Path(package.origin).parent / "ops/nsa/naive.py")
    assert found is not None and found.loader is not None
    helpers, pooling = ModuleType("fla.ops.utils"), ModuleType("fla.ops.utils.pooling")
    helpers.prepare_chunk_offsets = None  # type: ignore[attr-defined]
    pooling.mean_pooling = mean_pooling  # type: ignore[attr-defined]
    stand_ins = {"fla": ModuleType("fla"), "fla.ops": ModuleType("fla.ops"), "fla.ops.utils": helpers}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**stand_ins, "fla.ops.utils.pooling": pooling}.items():
            patch.setitem(sys.modules, name, module)
        module = importlib.util.module_from_spec(found)
        with pytest.warns(ImportWarning):
            found.loader.exec_module(module)
    return module


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@settings(max_examples=15, deadline=None)
@given(length=st.integers(4, 40), block=st.integers(1, 8), count=st.integers(3, 6), seed=st.integers(0, 10**6))
def test_outputs_gradients_and_blocks_agree(naive: ModuleType, length: int, block: int, count: int, seed: int) -> None:
    """Compressed and selected branch, gated; its 16 blocks have 1 initial and 2 local ones, as ours."""
    q, k, v = drawn(seed, 2, length, HEADS, WIDTH), *(drawn(seed + i, 2, length, GROUPS, WIDTH) for i in (1, 2))
    gates = drawn(seed + 3, 2, length, HEADS, 2)
    expected, listed = naive.naive_nsa(
        q, k, v, gates[..., 0], gates[..., 1], block_counts=count, block_size=block, return_block_indices=True
    )
    blocks = pools_of(AttentionContext(torch.arange(length)), block)
    k_entries, v_entries = (pooled(x.flatten(2), blocks).mean(2).unflatten(-1, (GROUPS, WIDTH)) for x in (k, v))
    compressed, p = reference.compressed(q, k_entries, v_entries, blocks.seen())
    scores = reference.block_scores(p, blocks, blocks)
    torch.testing.assert_close(scores, p)
    chosen = reference.select_blocks(scores, blocks, slice(0, length), count, 1, 2)
    keep = reference.selected_tokens(chosen, blocks, blocks.pool_BT())
    found = reference.gated(gates, compressed, reference.attention(q, k, v, keep))
    theirs = torch.zeros(2, GROUPS, length, length, dtype=torch.bool)
    for b, g, t in torch.cartesian_prod(torch.arange(2), torch.arange(GROUPS), torch.arange(length)).tolist():
        for one in listed[b, t, g].tolist():
            if one >= 0:
                theirs[b, g, t, one * block : min((one + 1) * block, t + 1)] = True
    same = (theirs == keep).all(-1)  # rows whose last scores are equal to rounding may differ
    assert int((~same).sum()) <= 0.02 * same.numel()
    rows = same.transpose(1, 2).repeat_interleave(HEADS // GROUPS, dim=2)
    OUTPUTS.check(found[rows], expected[rows])
    if bool(same.all()):
        weight = drawn(seed + 4, *expected.shape).detach()
        ours, others = (torch.autograd.grad((out * weight).sum(), (q, k, v, gates)) for out in (found, expected))
        for one, other in zip(ours, others, strict=True):
            GRADIENTS.check(one, other)


def test_the_window_is_pytorchs_attention_under_its_mask() -> None:
    q, k, v = drawn(0, 2, 20, 4, 8), drawn(1, 2, 20, 2, 8), drawn(2, 2, 20, 2, 8)
    t = torch.arange(20)
    near = (t[:, None] - t >= 0) & (t[:, None] - t < 7)
    found = reference.attention(q, k, v, near[None, None])
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=near, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
