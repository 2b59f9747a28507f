"""The sparse kernels as compiled for a GPU: bf16 and fp32 against fp64, selections, memory, repeated bits, graphs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from sparse_reference import (
    Inputs,
    Sizes,
    allowed_by,
    ascending,
    draw,
    error,
    expected_dense_kl,
    expected_selection,
    expected_sparse,
    expected_unions,
    found_dense_kl,
    found_sparse,
    found_unions,
    scores_of,
    selection,
)

from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton.attend import Tiling, attend, backward, forward
from dsabench.attention.dsa.triton.kl import sparse_kl
from dsabench.attention.dsa.triton.kl_dense import dense_kl
from dsabench.attention.dsa.triton.top_k import top_k
from dsabench.attention.dsa.triton.unions import neighbours, share, unite

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SIZES = [
    Sizes(length=1, heads=1, index_heads=1, k=1),
    Sizes(batch=2, length=37, heads=3, groups=3, width=24, index_heads=3, index_width=12, k=50),
    Sizes(batch=2, length=333, heads=16, width=64, index_heads=4, index_width=64, k=40, documents=0.01),
    Sizes(length=1111, heads=8, groups=2, width=128, index_heads=5, index_width=32, k=100),
    Sizes(length=513, heads=128, width=32, index_heads=1, k=1),
    Sizes(length=170, heads=64, width=256, index_heads=64, index_width=128, k=65),
]
NAMES = ("out", "loss", "d q", "d k", "d v", "d q_index", "d k_index", "d w_index")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selected_sets_are_the_references(sizes: Sizes, dtype: torch.dtype) -> None:
    """On a coarse grid, where scores are exact and ties are everywhere."""
    if sizes.index_heads * sizes.index_width > 1000:
        pytest.skip("sums of so many grid numbers are not exact")
    x = draw(sizes, 0, "cuda")
    selected, _ = selection(x.to(dtype), sizes.k)
    assert torch.equal(selected, expected_selection(x, sizes.k))


@pytest.mark.parametrize("length", [3000, 9001])
@pytest.mark.parametrize("k", [1, 7, 256, 2048, 4096])
def test_long_rows_hold_the_k_highest_scores(length: int, k: int) -> None:
    """Samples, pruned lists and all, off the grid: nothing left out scores above anything taken, beyond rounding."""
    x = draw(Sizes(length=length, index_heads=4, index_width=64), k, "cuda", grid=False)
    selected, index_lse = selection(x.to(torch.bfloat16), k)
    scores = scores_of(x).detach()[0]
    allowed = allowed_by(x)
    kept = selected[0] >= 0
    count = torch.arange(1, length + 1, device="cuda").clamp(max=k)
    assert torch.equal(kept.sum(-1), count)
    taken = torch.zeros_like(allowed).scatter_(1, selected[0].clamp(min=0).long(), True)
    # An empty slot marks position 0 above: count it only where it was chosen.
    taken[:, 0] = (selected[0] == 0).any(-1)
    assert torch.equal(taken.sum(-1), count)
    assert not bool((taken & ~allowed).any())
    lowest = scores.masked_fill(~taken, torch.inf).amin(-1)
    highest = scores.masked_fill(taken | ~allowed, -torch.inf).amax(-1)
    assert float((highest - lowest).max()) < 1e-5 * float(scores.abs().max())
    expected = scores.masked_fill(~taken, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(index_lse[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["all equal", "rising", "at the samples", "negative"])
def test_long_rows_of_awkward_scores(kind: str) -> None:
    length, k = 9001, 300
    x = draw(Sizes(length=length, index_heads=1, index_width=16), 0, "cuda")
    s = torch.arange(length, device="cuda").double()
    with torch.no_grad():
        x.q_index.fill_(1.0)
        x.w_index.fill_(0.0 if kind == "all equal" else -1.0 if kind == "negative" else 1.0)
        x.k_index.copy_((8192.0 * (s % 16 == 0) if kind == "at the samples" else s)[None, :, None] / 16)
    selected, _ = selection(x.to(torch.float32), k)
    assert torch.equal(selected, expected_selection(x, k))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_outputs_and_all_gradients(sizes: Sizes, dtype: torch.dtype, tolerance: float, deterministic: bool) -> None:
    x = draw(sizes, 1, "cuda", grid=False)
    selected = ascending(reference.select_top_k(scores_of(x).detach(), allowed_by(x), sizes.k))
    found = found_sparse(x.to(dtype), selected, None, deterministic)
    for name, mine, theirs in zip(NAMES, found, expected_sparse(x, selected), strict=True):
        assert error(mine, theirs) < tolerance, name


@pytest.mark.parametrize("deterministic", [False, True])
def test_keys_taken_range_by_range(deterministic: bool) -> None:
    """Seven ranges give what one does."""
    x = draw(Sizes(batch=2, length=700, heads=16, width=64, k=90, documents=0.005), 8, "cuda", grid=False)
    x = x.to(torch.bfloat16)
    selected = selection(x, 90)[0]
    out, lse = forward(x.q, x.k, x.v, selected, Tiling())
    inputs = (*(leaf.detach() for leaf in x[:3]), selected, out.detach(), lse.detach(), x.d_out, deterministic)
    whole, cut = (backward(*inputs, Tiling(range_bytes=r)) for r in (0, 100 * 64 * 2 * 6))
    for a, b in zip(cut, whole, strict=True):
        assert error(a.double(), b.double()) < 4e-3


@pytest.mark.parametrize(("length", "k", "queries"), [(1, 1, 2), (777, 90, 2), (4001, 2048, 4), (2500, 60, 8)])
def test_unions_are_those_of_sets(length: int, k: int, queries: int) -> None:
    """More groups than programs, and empty slots between others."""
    generator = torch.Generator("cuda").manual_seed(k)
    order = torch.rand(2, length, length, generator=generator, device="cuda").argsort(-1)[..., :k]
    selected = order.masked_fill(torch.rand(order.shape, generator=generator, device="cuda") < 0.1, -1).int()
    assert found_unions(unite(selected, queries, 1.0)) == expected_unions(selected, queries)


GROUPS = [
    Sizes(batch=2, length=333, heads=16, width=64, index_heads=4, index_width=64, k=40, documents=0.01),
    Sizes(length=1111, heads=8, width=64, index_heads=5, index_width=32, k=100),
    Sizes(length=402, heads=12, groups=12, width=32, index_heads=3, index_width=12, k=50),
    Sizes(length=513, heads=32, groups=2, width=128, index_heads=8, index_width=128, k=70, documents=0.005),
    Sizes(length=250, heads=11, width=72, index_heads=1, index_width=16, k=9),
]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("sizes", GROUPS)
def test_groups_of_neighbours_against_fp64(sizes: Sizes, some: bool, deterministic: bool) -> None:
    """All queries in groups, or those groups that share more than the mean."""
    x = draw(sizes, 1, "cuda", grid=False)
    selected = ascending(reference.select_top_k(scores_of(x).detach(), allowed_by(x), sizes.k))
    x16 = x.to(torch.bfloat16)
    queries = neighbours(x16.q, x16.k)
    unions = unite(selected, queries, 1.0)
    if some:
        unions = unite(selected, queries, 1.05 * float(unions.sizes_U.sum() / (selected >= 0).sum()))
    assert bool((unions.sizes_U > 0).all()) != some
    assert bool(unions.sizes_U.any())
    found = found_sparse(x16, selected, None, deterministic, unions)
    for name, mine, theirs in zip(NAMES, found, expected_sparse(x, selected), strict=True):
        assert error(mine, theirs) < 1e-2, name


def test_groups_form_where_neighbours_share() -> None:
    """A window of k is all shared; random keys are not."""
    length, k = 8192, 256
    q, key = (torch.empty(1, length, n, 64, dtype=torch.bfloat16, device="cuda") for n in (16, 1))
    position = torch.arange(length, device="cuda")[:, None]
    window = (position - k + 1 + torch.arange(k, device="cuda")).clamp(min=-1)[None]
    apart = (torch.rand(length, k, device="cuda") * (position + 1)).long()[None]
    for selected, grouped in ((window, True), (apart, False)):
        unions = share(q, key, selected)
        assert unions is not None
        assert bool(unions.sizes_U.any()) == grouped


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sizes", SIZES[:5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_kl_loss_over_all_keys(sizes: Sizes, dtype: torch.dtype, tolerance: float, deterministic: bool) -> None:
    x = draw(sizes, 2, "cuda", grid=False)
    for mine, theirs in zip(found_dense_kl(x.to(dtype), deterministic), expected_dense_kl(x), strict=True):
        assert error(mine, theirs) < tolerance


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    groups = pick(1, 3)
    sizes = Sizes(
        pick(1, 3), pick(1, 400), groups * pick(1, 20), groups, 8 * pick(1, 20), pick(1, 9), 4 * pick(1, 20),
        pick(1, 120), 0.02 * (seed % 2),
    )  # fmt: skip
    x = draw(sizes, seed, "cuda", grid=False)
    mine = x.to(torch.bfloat16)
    selected, index_lse = selection(mine, sizes.k)
    found = found_sparse(mine, selected, index_lse, False)
    for name, a, b in zip(NAMES, found, expected_sparse(x, selected), strict=True):
        assert error(a, b) < 1e-2, (name, sizes)


def layer(x: Inputs, k: int, deterministic: bool = False) -> list[torch.Tensor]:
    """Everything that a step of the sparse stage does."""
    for leaf in x[:6]:
        leaf.grad = None
    selected, index_lse = selection(x, k)
    return [selected, *found_sparse(x, selected, index_lse, deterministic, share(x.q, x.k, selected))]


@pytest.mark.parametrize("k", [128, 1000])
def test_deterministic_gradients_have_the_same_bits(k: int) -> None:
    """Of 1000 keys of 2000 neighbours share enough to form groups."""
    x = draw(Sizes(length=2000, heads=16, width=64, index_heads=4, index_width=64), 3, "cuda", grid=False)
    x = x.to(torch.bfloat16)
    unions = share(x.q, x.k, selection(x, k)[0])
    assert unions is not None
    assert k < 1000 or bool(unions.sizes_U.any())
    runs = [[*layer(x, k, True), *found_dense_kl(x.to(torch.bfloat16), True)] for _ in range(5)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("k", [64, 500])
def test_a_step_replays_from_a_graph(k: int) -> None:
    x = draw(Sizes(length=1000, heads=16, width=64, index_heads=4, index_width=64), 4, "cuda", grid=False)
    x = x.to(torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            layer(x, k)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = layer(x, k)
    other = draw(Sizes(length=1000, heads=16, width=64, index_heads=4, index_width=64), 5, "cuda", grid=False)
    with torch.no_grad():
        for leaf, fresh in zip(x[:6], other[:6], strict=True):
            leaf.copy_(fresh)
        x.d_out.copy_(other.d_out)
    graph.replay()
    replayed = [output.clone() for output in outputs]
    for a, b in zip(replayed, layer(other.to(torch.bfloat16), k), strict=True):
        assert error(a.double(), b.double()) < 1e-3


def test_no_tensor_of_l_by_l_elements_exists() -> None:
    """Either stage's peak stays far below the bytes of one bool for every pair of positions."""
    sizes = Sizes(length=65_536, heads=4, width=32, index_heads=2, index_width=32, k=64)
    x = draw(sizes, 6, "cuda", grid=False).to(torch.bfloat16)
    torch.cuda.synchronize()
    for step in (lambda: layer(x, sizes.k), lambda: found_dense_kl(x, False)):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        assert torch.cuda.max_memory_allocated() - before < sizes.length**2 // 2


def test_torch_compile_takes_the_kernels_whole() -> None:
    x = draw(Sizes(length=130, heads=4, width=32, index_heads=2, index_width=32, k=16), 7, "cuda", grid=False)
    x = x.to(torch.bfloat16)

    def loss(q, k, v, q_index, k_index, w_index):  # type: ignore[no-untyped-def]
        selected, index_lse = top_k(q_index.detach(), k_index.detach(), w_index.detach(), 16)
        unions = share(q, k, selected)
        out, lse = attend(q, k, v, selected, False, unions=unions)
        sparse = sparse_kl(q, k, lse, q_index, k_index, w_index, selected, index_lse, False, unions)
        return out.float().square().sum() + sparse + dense_kl(q, k, q_index, k_index, w_index, deterministic=False)

    found = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in x[:6]]
        value = call(*leaves)
        value.backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*found, strict=True):
        assert error(a.double(), b.double()) < 1e-3


@pytest.mark.parametrize("together", [False, True])
def test_probabilities_that_are_nearly_nothing(together: bool) -> None:
    """Below 1.2e-38 a number is subnormal, and 0 to a GPU's logarithm: p log p was then -inf. Keys are 80 to 100 nats
    below the first one."""
    length, heads = 64, 16
    q = torch.ones(1, length, heads, 16, device="cuda")
    below_T = torch.linspace(80.0, 100.0, length, device="cuda") * (torch.arange(length, device="cuda") > 0)
    k = (-below_T / 4.0)[None, :, None, None].expand(1, length, 1, 16).contiguous()
    indexer = [torch.randn(1, length, 2, 16), torch.randn(1, length, 16), torch.randn(1, length, 2)]
    q_index, k_index, w_index = (x.cuda() for x in indexer)
    t = torch.arange(length, device="cuda")
    selected = torch.where(t <= t[:, None], t, -1)[None].int().contiguous()
    shared = unite(selected, 4, 1.0) if together else None
    lse = attend(q, k, k, selected, unions=shared)[1]
    loss = sparse_kl(q, k, lse, q_index, k_index, w_index, selected, unions=shared)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(dense_kl(q, k, q_index, k_index, w_index)))
