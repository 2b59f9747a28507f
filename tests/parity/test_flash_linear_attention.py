"""DSA's reference against the naive DSA of fla-core, an independent implementation of indexer, top-k and attention."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import Parity
from torch import Tensor

from dsabench.attention.dsa import masked, reference

KEPT = Parity("scores of DSA's selected keys", "`fla-core` naive_dsa_indexer", 1e-4)
ATTENTION = Parity("attention over a selection, gathered and masked", "`fla-core` naive_dsa", 1e-5)
GRADIENTS = Parity("gradients of q, k and v of attention over a selection", "`fla-core` naive_dsa", 1e-4)


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """Loaded as a file: importing the package brings all of its kernels, which this does not use."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.origin is not None, "fla-core is missing: pip install '.[test]'"
    found = importlib.util.spec_from_file_location("naive", Path(package.origin).parent / "ops/dsa/naive.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


sizes = {
    "length": st.integers(1, 24),
    "k": st.integers(1, 30),
    "n_heads": st.integers(1, 4),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_every_row_keeps_the_same_scores(naive: ModuleType, length: int, k: int, n_heads: int, seed: int) -> None:
    """relu makes ties, and the library leaves open which of the tied keys it keeps. So the kept scores are compared,
    best first, which ties leave alone: of every row, those with fewer keys than k among them."""
    q, keys, w = drawn(seed, 2, length, n_heads, 4), drawn(seed + 1, 2, length, 4), drawn(seed + 2, 2, length, n_heads)
    theirs = naive.naive_dsa_indexer(q, keys, w, topk=k, scale=1.0, activation="relu")
    scores = reference.index_scores(q, keys, w)
    allowed = reference.allowed_keys(length, None, scores.device)
    ours = reference.select_top_k(scores, allowed, k)
    n_slots = min(k, length)
    assert ours.shape == (2, length, n_slots) and theirs.shape == (2, length, k)
    assert bool((theirs[..., n_slots:] == reference.EMPTY).all())
    for batch in range(2):
        for t in range(length):
            kept = []
            for selected in (ours[batch, t], theirs[batch, t]):
                slots = [int(s) for s in selected if s != reference.EMPTY]
                assert len(slots) == len(set(slots)) == min(k, t + 1)
                assert max(slots) <= t
                kept.append(sorted(scores[batch, t, slots].tolist(), reverse=True))
            KEPT.check(*kept)


@settings(max_examples=30, deadline=None)
@given(**sizes, groups=st.sampled_from([1, 2]))
def test_attention_over_the_same_selection_agrees(
    naive: ModuleType, length: int, k: int, n_heads: int, seed: int, groups: int
) -> None:
    """By gathering and by masking, outputs and gradients."""
    q, keys, values = (
        drawn(seed + i, 2, length, n_heads * (groups if i == 0 else 1), 8).requires_grad_() for i in range(3)
    )
    scores = drawn(seed + 3, 2, length, length)
    allowed = reference.allowed_keys(length, None, scores.device)
    selected = reference.select_top_k(scores, allowed, k)
    expected = naive.naive_dsa(q, keys, values, None, None, indices=selected)
    keep = masked.selection_mask(scores, allowed, k)
    found = [reference.attention(q, keys, values, selected)[0], masked.attention(q, keys, values, keep)[0]]
    weight = drawn(seed + 4, *expected.shape)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, keys, values)) for out in (expected, *found)]
    for out, gradient in zip(found, gradients[1:], strict=True):
        ATTENTION.check(out, expected)
        for ours, theirs in zip(gradient, gradients[0], strict=True):
            GRADIENTS.check(ours, theirs)


def test_the_whole_of_it_agrees(naive: ModuleType) -> None:
    """Indexer, top-k and attention in one, where no row has a tie at the edge of its selection."""
    q, keys, values = drawn(0, 2, 40, 4, 8), drawn(1, 2, 40, 2, 8), drawn(2, 2, 40, 2, 8)
    q_index, k_index, w = drawn(3, 2, 40, 8, 4), drawn(4, 2, 40, 4), drawn(5, 2, 40, 8)
    expected, theirs = naive.naive_dsa(q, keys, values, q_index, k_index, w, topk=6, return_indices=True)
    scores = reference.index_scores(q_index, k_index, w)
    allowed = reference.allowed_keys(40, None, scores.device)
    selected = reference.select_top_k(scores, allowed, 6)
    best = scores.masked_fill(~allowed, -math.inf).sort(-1, descending=True).values
    untied = (torch.arange(40) < 6) | (best[..., 5] - best[..., 6] > 1e-5)
    assert int(untied.sum()) > 70, "nearly all of the 80 rows"
    assert torch.equal(selected.sort(-1).values[untied], theirs.sort(-1).values[untied])
    ours, _ = reference.attention(q, keys, values, selected)
    torch.testing.assert_close(ours[untied], expected[untied], rtol=1e-5, atol=1e-6)
