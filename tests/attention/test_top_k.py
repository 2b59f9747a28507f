"""Top-k through Triton's interpreter: the selection is the reference's, whatever the samples let one guess."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import others_slow

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import (
    Inputs,
    Sizes,
    draw,
    expected_selection,
    scores_of,
)

from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton import top_k

pytestmark = pytest.mark.usefixtures("poisoned")

SMALL = top_k.Tiling(queries=16, keys=16, programs=1, stride=4)
"""Lists of 128 entries: 140 keys overflow them."""


def lists(x: Inputs, k: int, tiling: top_k.Tiling) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k by this tiling, in fp32."""
    x = x.to(torch.float32)
    if x.ids is None:
        start = torch.zeros(x.q.shape[:2], dtype=torch.int32)
    else:
        start = reference.document_starts(x.ids)
    return top_k.launch(x.q_index.detach(), x.k_index.detach(), x.w_index.detach(), start, k, tiling)


@pytest.mark.parametrize(
    ("sizes", "seed"),
    others_slow(
        [
            (Sizes(length=1, index_heads=1, k=1), 0),
            (Sizes(length=5, batch=2, index_heads=1, k=9), 1),
            (Sizes(length=17, batch=2, index_heads=3, k=1), 2),
            (Sizes(length=37, index_heads=8, index_width=12, k=7, documents=0.2), 3),
            (Sizes(length=64, batch=2, index_heads=4, k=64, documents=0.1), 4),
        ],
        3,
    ),
)
def test_the_selection_is_the_references(sizes: Sizes, seed: int) -> None:
    x = draw(sizes, seed)
    selected, index_lse = lists(x, sizes.k, top_k.Tiling(queries=16, keys=32, programs=1))
    expected = expected_selection(x, sizes.k)
    assert torch.equal(selected, expected)
    kept = scores_of(x).detach().gather(-1, expected.clamp(min=0).long()).masked_fill(expected < 0, -torch.inf)
    torch.testing.assert_close(index_lse.double(), kept.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "stride", "groups"),
    others_slow(
        [
            ("ties", 4, 16),
            ("all equal", 0, 1024),
            ("all equal", 4, 16),
            ("at the samples", 4, 1024),
            ("rising", 0, 1024),
            ("rising", 4, 16),
        ],
        4,
    ),
)
def test_lists_that_overflow_and_bounds_that_mislead(
    kind: str, stride: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rising scores overflow a list again and again; high scores at the sampled keys alone make the guess too high."""
    monkeypatch.setattr(top_k, "GROUPS", groups)
    x = draw(Sizes(length=140, index_heads=1, k=3), 5)
    s = torch.arange(140.0, dtype=torch.float64)
    with torch.no_grad():
        if kind == "all equal":
            x.w_index.zero_()
        elif kind != "ties":
            x.q_index.fill_(1.0)
            x.w_index.fill_(1.0)
            x.k_index.copy_((s if kind == "rising" else 8.0 * (s % 4 == 0) - s / 256)[None, :, None] / 16)
    k = 60 if kind == "at the samples" else 3
    tiling = SMALL._replace(stride=stride)
    selected, _ = lists(x, k, tiling)
    assert torch.equal(selected, expected_selection(x, k))


@pytest.mark.parametrize("groups", [16, 1024])
@pytest.mark.parametrize("kind", others_slow(["random", "all equal", "plateau"], 2))
def test_a_good_guess_needs_no_second_pass(kind: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow kernel that does a block again is not needed, also where the bound is a plateau: all weights negative,
    as of one query in 16 where there are 4 heads: the highest score is the zero of the keys that no head reacts to."""

    class Nothing:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **sizes: None

    monkeypatch.setattr(top_k, "redo", Nothing())
    monkeypatch.setattr(top_k, "GROUPS", groups)  # 33 samples: 2 or 3 in each of 16 groups, or each by itself
    x = draw(Sizes(length=130, index_heads=1, index_width=16), 7, grid=kind != "random")
    with torch.no_grad():
        if kind == "all equal":
            x.w_index.zero_()
        elif kind == "plateau":
            x.w_index.copy_(-x.w_index.abs() - 0.25)
    selected, _ = lists(x, 5, SMALL)
    assert torch.equal(selected, expected_selection(x, 5))


def test_a_group_keeps_its_best_sample() -> None:
    x = draw(Sizes(length=140, index_heads=2, index_width=16), 9).to(torch.float32)
    rows, stride, groups, entries = 16, 4, 16, 32
    found = torch.full((rows, 2 * entries), 7.0)
    top_k.sample[(1, 1)](
        x.q_index.detach(), x.k_index.detach(), x.w_index.detach(), torch.zeros(1, 140, dtype=torch.int32), found, 0,
        140, 1, 9, stride, 16, J=2, DI=16, WIDE=16, N=2, T=rows, S=16, C=entries, M=groups, PRECISION="ieee", TILES=1,
    )  # fmt: skip
    scores = torch.where(torch.ones(140, 140).tril().bool(), scores_of(x).detach()[0].float(), -torch.inf)
    sampled = scores[128:, ::stride]  # the last block of queries, 12 of them
    expected = torch.stack([sampled[:, group::groups].amax(1) for group in range(groups)], 1)
    torch.testing.assert_close(found[:12, :groups], expected, rtol=1e-5, atol=1e-5)
    assert (found[:, groups:] == 7.0).all()


@pytest.mark.parametrize("n_samples", [600, 1500, 8192])
def test_groups_of_samples_guess_what_all_samples_would(n_samples: int) -> None:
    """As many samples are above a row's bound as it asks for, within five standard deviations, though only the best of
    each group is looked at."""
    rows, stride, rank, groups = 16, 16, 196, 1024
    length = n_samples * stride
    value = torch.rand(rows, n_samples, generator=torch.Generator().manual_seed(1))
    best = torch.full((rows, 2048), -torch.inf)
    for first in range(0, n_samples, groups):
        part = value[:, first : first + groups]
        best[:, : part.shape[1]] = torch.maximum(best[:, : part.shape[1]], part)
    bound = torch.empty(rows)
    top_k.guess[(rows,)](
        best, torch.zeros(1, length, dtype=torch.int32), bound, 0, length, 1, length // rows, stride, rank, 64, T=rows,
        C=1024, M=groups,
    )  # fmt: skip
    above = (value >= bound[:, None]).sum(1).double()
    # The search may stop with a sixteenth more; how many share a group is chance: a standard deviation of 4.4 of 217.
    chance = 4.4 if n_samples > groups else 0
    assert rank - 5 * chance <= above.min() and above.max() <= rank + rank // 16 + 5 * chance
    assert rank - 4 * chance / rows**0.5 <= above.mean() <= rank + rank // 16 + 4 * chance / rows**0.5


def test_the_lists_hold_what_the_samples_let_pass() -> None:
    """For every k and length: the samples fit the list's memory, what passes the bound fits the list with six standard
    deviations to spare, and the offsets in a block's lists are whole numbers in fp32."""
    tiling = top_k.Tiling()
    for k in (1, 2, 7, 64, 255, 256, 1024, 2048, 4096):
        for length in (64, 4097, 65_536, 131_072, 262_144):
            entries, usual, stride, rank = top_k.Lists.of(min(k, length), length, tiling)
            share = min(k, length) / stride
            assert -(-length // stride) <= 2 * entries
            assert stride * (rank + 6 * rank**0.5) + tiling.keys <= entries
            assert rank >= share + 6 * share**0.5
            assert rank * stride <= usual <= entries, "a list that is sampled has as many samples"
            assert tiling.queries * entries <= 2**20


def test_scores_that_are_no_numbers_leave_valid_indices() -> None:
    x = draw(Sizes(length=20, k=4), 6)
    with torch.no_grad():
        x.k_index[0, 3] = float("nan")
        x.w_index[0, 9] = float("nan")
    selected, _ = lists(x, 4, SMALL)
    for t in range(20):
        row = [s for s in selected[0, t].tolist() if s >= 0]
        assert len(row) == len(set(row)) == min(4, t + 1)
        assert max(row) <= t
