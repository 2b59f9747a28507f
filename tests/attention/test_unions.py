"""Groups of neighbouring queries through Triton's interpreter: unions of their selections, and results."""

from __future__ import annotations

import pytest
import torch
from cases import others_slow

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import (
    Sizes,
    ascending,
    draw,
    error,
    expected_selection,
    expected_sparse,
    expected_unions,
    found_sparse,
    found_unions,
)

from dsabench.attention.dsa.triton import attend, kl, unions
from dsabench.attention.dsa.triton.attend import Tiling

TOLERANCE = 1e-5
SMALL = Tiling(slots=16)


pytestmark = pytest.mark.usefixtures("poisoned")


def drawn(kind: str, batch: int, length: int, k: int, seed: int) -> torch.Tensor:
    """Selections as no top-k gives them: any order, empty and future slots anywhere, rows without a key."""
    generator = torch.Generator().manual_seed(seed)
    spread = 2 * length if kind == "future" else length
    order = torch.rand(batch, length, spread, generator=generator).argsort(-1)[..., :k]
    empty = torch.rand(batch, length, k, generator=generator) < (0.7 if kind == "empty" else 0.1)
    selected = order.masked_fill(empty, -1).int()
    selected[:, length // 2] = -1
    return ascending(selected) if kind == "ascending" else selected


@pytest.mark.parametrize(
    ("kind", "batch", "length", "k", "queries"),
    others_slow(
        [
            ("ascending", 1, 1, 1, 2),
            ("ascending", 2, 33, 20, 4),
            ("future", 1, 70, 9, 8),
            ("empty", 3, 41, 40, 2),
            ("any", 1, 130, 33, 8),
        ],
        2,
    ),
)
def test_unions_are_those_of_sets(kind: str, batch: int, length: int, k: int, queries: int) -> None:
    """Also of more groups than there are programs, whose memory serves one group after the other."""
    selected = drawn(kind, batch, length, k, length)
    expected = expected_unions(selected, queries)
    found = unions.unite(selected, queries, 1.0)
    assert [list(group.items()) for group in found_unions(found)] == [list(group.items()) for group in expected]


def middle(selected: torch.Tensor, queries: int) -> float:
    """The share that all groups together have: some of them have more, some less."""
    keys = sum(len(group) for group in expected_unions(selected, queries))
    return 1.001 * keys / members(selected, queries).sum().item()


def members(selected: torch.Tensor, queries: int) -> torch.Tensor:
    """How many keys the members of each group have together."""
    groups = expected_unions(selected, queries)
    return torch.tensor([sum(bits.bit_count() for bits in group.values()) for group in groups])


def test_a_group_that_shares_too_little_goes_by_itself() -> None:
    selected = drawn("any", 2, 60, 9, 3)
    share = middle(selected, 4)
    keys = torch.tensor([len(group) for group in expected_unions(selected, 4)])
    taken = keys <= share * members(selected, 4)
    assert 0 < int(taken.sum()) < len(taken)
    assert torch.equal(unions.unite(selected, 4, share).sizes_U.long(), torch.where(taken, keys, 0))


def test_a_selection_that_shares_too_little_forms_no_group() -> None:
    """Not even of the first queries, which select all there is."""
    selected = drawn("ascending", 1, 60, 9, 4)
    share = 0.999 * middle(selected, 2) / 1.001
    keys = torch.tensor([len(group) for group in expected_unions(selected, 2)])
    assert int((keys <= share * members(selected, 2)).sum()) > 0
    assert not unions.unite(selected, 2, share).sizes_U.any()


def test_the_sample_is_of_all_groups() -> None:
    """Of 168 groups the last 40 share."""
    apart = torch.tensor([[0, -1], [1, -1]]).repeat(128, 1)
    alike = torch.tensor([[0, 1]]).repeat(80, 1)
    selected = torch.cat([apart, alike]).int()[None]
    found = unions.unite(selected, 2, 0.9)
    assert found.sizes_U.tolist() == [0] * 128 + [2] * 40


@pytest.mark.parametrize("deterministic", others_slow([False, True], 1))
@pytest.mark.parametrize(
    ("sizes", "queries", "all_groups", "seed"),
    others_slow(
        [
            (Sizes(length=1, heads=1, index_heads=1, k=1), 2, True, 0),
            (Sizes(2, 21, heads=6, groups=3, width=24, index_heads=3, index_width=12, k=7, documents=0.2), 4, True, 1),
            (Sizes(length=30, heads=4, index_heads=1, k=9), 8, False, 2),
            (Sizes(length=9, batch=2, heads=20, index_heads=5, k=40), 2, True, 3),
        ],
        2,
    ),
)  # fmt: skip
def test_groups_compute_what_one_query_does(
    sizes: Sizes, queries: int, all_groups: bool, seed: int, deterministic: bool
) -> None:
    """Output, loss and all gradients against fp64, where every query is in a group and where some go by themselves."""
    x = draw(sizes, seed)
    selected = expected_selection(x, sizes.k)
    found = unions.unite(selected, queries, 1.0 if all_groups else middle(selected, queries))
    assert bool((found.sizes_U > 0).all()) == all_groups
    assert found.sizes_U.any()
    x32 = x.to(torch.float32)
    names = ("out", "loss", "d q", "d k", "d v", "d q_index", "d k_index", "d w_index")
    mine = found_sparse(x32, selected, None, deterministic, found)
    for name, a, b in zip(names, mine, expected_sparse(x, selected), strict=True):
        assert error(a, b) < TOLERANCE, name


@pytest.mark.parametrize("all_groups", [False, True])
def test_one_list_serves_all_rows(all_groups: bool) -> None:
    """What each row's own copy of it gives, of queries in groups and by themselves, 21 of them."""
    x = draw(Sizes(3, 21, heads=4, groups=2, k=6), 8)
    selected = expected_selection(x, 6)[:1]
    found = unions.unite(selected, 4, 1.0 if all_groups else middle(selected, 4))
    x32 = x.to(torch.float32)
    out, _ = attend.attend(x32.q, x32.k, x32.v, selected, ascending=True, unions=found)
    (out * x32.d_out).sum().backward()
    expected = expected_sparse(x, selected.expand(3, -1, -1))
    for mine, theirs in zip((out, *(leaf.grad for leaf in x32[:3])), (expected[0], *expected[2:5]), strict=True):
        assert mine is not None
        assert error(mine.detach(), theirs) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_groups_take_keys_range_by_range(deterministic: bool) -> None:
    """Ranges of 7 keys, the last one shorter, beside single queries with other ranges."""
    x = draw(Sizes(length=30, batch=2, heads=4, groups=2, k=9, documents=0.05), 12)
    selected = expected_selection(x, 9)
    x32 = x.to(torch.float32)
    found = unions.unite(selected, 4, middle(selected, 4))
    assert 0 < int((found.sizes_U > 0).sum()) < len(found.sizes_U)
    out, lse_BTH = attend.forward(x32.q, x32.k, x32.v, selected, SMALL, found, SMALL)
    bytes_a_key = 2 * 16 * 2 * 8
    for keys in (0, 11):
        tilings = SMALL._replace(range_bytes=keys * bytes_a_key), found, SMALL._replace(range_bytes=7 * bytes_a_key)
        mine = attend.backward(x32.q, x32.k, x32.v, selected, out, lse_BTH, x32.d_out, deterministic, *tilings)
        for a, b in zip(mine, expected_sparse(x, selected)[2:5], strict=True):
            assert error(a.detach(), b) < TOLERANCE


def test_many_indexer_heads_go_one_query_at_a_time() -> None:
    """What a group of them would hold does not fit the registers: the loss is the same either way."""
    x = draw(Sizes(length=9, heads=2, index_heads=17, k=4), 5).to(torch.float32)
    selected = expected_selection(x.to(torch.float64), 4)
    lse_BTH = attend.attend(x.q, x.k, x.v, selected)[1]
    tensors = (x.q, x.k, lse_BTH, x.q_index, x.k_index, x.w_index)
    united = kl.sparse_kl(*tensors, selected, unions=unions.unite(selected, 4, 1.0))
    assert torch.equal(united, kl.sparse_kl(*tensors, selected))


def test_who_forms_groups() -> None:
    def group(heads: int, kv_heads: int, width: int, dtype: torch.dtype = torch.bfloat16, length: int = 8) -> int:
        q, k = (torch.empty(1, length, n, width, dtype=dtype, device="meta") for n in (heads, kv_heads))
        return unions.neighbours(q, k)

    assert [group(heads, 1, 64) for heads in (1, 8, 12, 16, 32, 64)] == [8, 8, 4, 4, 2, 0]
    assert group(16, 16, 128) == 8
    assert group(16, 1, 256) == 0
    assert group(16, 1, 64, torch.float32) == 0
    assert group(16, 1, 64, length=1 << 24) == 0
    assert group(16, 16, 128, length=1 << 20) == 0
