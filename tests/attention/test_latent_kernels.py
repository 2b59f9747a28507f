"""The sparse kernels over latents, keys whose first part is their value, through Triton's interpreter against fp64."""

from __future__ import annotations

import pytest
import torch
from cases import others_slow

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import Sizes, ascending, draw, error, expected_latent, expected_selection, found_latent

from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton import attend, unions

TOLERANCE = 1e-5
NAMES = ("out", "loss", "d q", "d k", "d q_index", "d k_index", "d w_index")
SMALL = attend.Tiling(slots=16)


pytestmark = pytest.mark.usefixtures("poisoned")


CASES = [
    (Sizes(length=1, heads=1, index_heads=1, width=17, k=1), 16, 0),
    (Sizes(length=17, batch=2, heads=4, width=80, k=5), 64, 1),
    (Sizes(length=19, batch=2, heads=3, width=34, index_heads=3, index_width=12, k=7, documents=0.2), 24, 2),
    (Sizes(length=9, heads=20, width=23, index_heads=5, k=40), 19, 3),
    (Sizes(length=12, heads=4, groups=2, width=40, k=4, documents=0.1), 6, 4),
]


@pytest.mark.parametrize("deterministic", others_slow([False, True], 0))
@pytest.mark.parametrize(("sizes", "value", "seed"), others_slow(CASES, 2))
def test_outputs_and_all_gradients(sizes: Sizes, value: int, seed: int, deterministic: bool) -> None:
    """One query a program; 20 heads of fp32 are two programs."""
    x = draw(sizes, seed)
    selected = expected_selection(x, sizes.k)
    found = found_latent(x.to(torch.float32), selected, value, 0.3, deterministic)
    for name, mine, theirs in zip(NAMES, found, expected_latent(x, selected, value, 0.3), strict=True):
        assert error(mine, theirs) < TOLERANCE, name


@pytest.mark.parametrize("deterministic", others_slow([False, True], 1))
@pytest.mark.parametrize(("sizes", "value", "seed"), others_slow(CASES, 1))
@pytest.mark.parametrize(("queries", "share"), others_slow([(4, 1.0), (2, 0.8), (8, 1.0)], 0))
def test_groups_of_neighbours(
    sizes: Sizes, value: int, seed: int, queries: int, share: float, deterministic: bool
) -> None:
    x = draw(sizes, seed)
    selected = expected_selection(x, sizes.k)
    united = unions.unite(selected, queries, share)
    assert (share < 1) or bool((united.sizes_U > 0).all())
    found = found_latent(x.to(torch.float32), selected, value, 0.3, deterministic, united)
    for name, mine, theirs in zip(NAMES, found, expected_latent(x, selected, value, 0.3), strict=True):
        assert error(mine, theirs) < TOLERANCE, name


@pytest.mark.parametrize("grouped", others_slow([False, True], 0))
@pytest.mark.parametrize("deterministic", others_slow([False, True], 1))
def test_keys_taken_range_by_range(deterministic: bool, grouped: bool) -> None:
    """Ranges of 7 keys, the last one shorter: dQ is added to, in both parts."""
    x = draw(Sizes(length=25, batch=2, heads=4, width=26, k=4, documents=0.1), 12)
    selected = expected_selection(x, 4)
    x32 = x.to(torch.float32)
    united = unions.unite(selected, 4, 1.0) if grouped else None
    out, lse_BTH = attend.forward(x32.q, x32.k, None, selected, SMALL, united, SMALL, 0.3, 16)
    tiling = SMALL._replace(range_bytes=7 * 26 * 8)
    found = attend.backward(
        x32.q, x32.k, None, selected, out, lse_BTH, x32.d_out[..., :16], deterministic, tiling, united, tiling, 0.3, 16
    )
    for mine, theirs in zip(found, expected_latent(x, selected, 16, 0.3)[2:4], strict=False):
        assert error(mine.detach(), theirs) < TOLERANCE


@pytest.mark.parametrize(("size", "of_queries"), others_slow([(1e-4, 1.0), (1.0, 1e-6), (1e4, 1.0)], 1, 2))
def test_the_bits_repeat_and_nothing_overflows(size: float, of_queries: float) -> None:
    """In fixed point both gradients of a latent are one sum: its bound holds for output gradients of any size, and
    where the use as a value is nearly all of it."""
    x = draw(Sizes(length=11, heads=2, width=20, k=5), 3)
    x = x._replace(d_out=x.d_out * size)
    with torch.no_grad():
        x.q.mul_(of_queries)
    selected = expected_selection(x, 5)
    found = [found_latent(x.to(torch.float32), selected, 12, 0.3, True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    for name, mine, theirs in zip(NAMES, found[0], expected_latent(x, selected, 12, 0.3), strict=True):
        assert error(mine, theirs) < TOLERANCE, name


def test_empty_and_future_slots_take_part_in_nothing() -> None:
    x = draw(Sizes(length=6, heads=2, width=20, k=3), 8).to(torch.float32)
    selected = torch.tensor([[[0, -1, -1], [1, 0, 5], [-1, -1, -1], [-1, 3, 1], [4, 5, 2], [5, 4, 3]]])
    kept = ascending(torch.where(selected > torch.arange(6)[:, None], -1, selected))
    expected, _ = reference.attention(x.q.double(), x.k.double(), x.k[..., :12].double(), kept, 0.3)
    expected[0, 2] = 0.0  # no key: the reference has no number there
    for united in (None, unions.unite(selected.int(), 2, 1.0)):
        out, lse_BTH = attend.attend(x.q, x.k, None, selected, unions=united, scale=0.3, value_width=12)
        assert out.shape[-1] == 12
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
        assert bool((lse_BTH[0, 2] == -torch.inf).all())
        grads = torch.autograd.grad(out.sum(), (x.q, x.k))
        assert all(bool(torch.isfinite(grad).all()) for grad in grads)
        assert not grads[0][0, 2].any()


def test_a_scale_of_its_own_with_values_of_their_own() -> None:
    """`scale` without latents: another one than the width says."""
    x = draw(Sizes(length=13, heads=4, groups=2, width=24, k=5), 9)
    selected = expected_selection(x, 5)
    x32 = x.to(torch.float32)
    out, _ = attend.attend(x32.q, x32.k, x32.v, selected, scale=0.7)
    expected, _ = reference.attention(x.q, x.k, x.v, selected.long(), 0.7)
    mine = torch.autograd.grad((out * x32.d_out).sum(), x32[:3])
    theirs = torch.autograd.grad((expected * x.d_out).sum(), x[:3])
    for a, b in zip((out.detach(), *mine), (expected.detach(), *theirs), strict=True):
        assert error(a, b) < TOLERANCE


@pytest.mark.parametrize(
    ("width", "value", "given"),
    [(20, 20, False), (20, 0, False), (20, 12, True), (90, 20, False), (20, -4, False), (300, 270, False)],
)
def test_what_the_kernels_do_not_take_is_refused(width: int, value: int, given: bool) -> None:
    x = torch.zeros(1, 3, 1, width)
    with pytest.raises(ValueError, match=r"attend takes .* not .*\(1, 3, 1, "):
        attend.attend(x, x, x if given else None, torch.zeros(1, 3, 1).int(), value_width=value)


@pytest.mark.parametrize("grouped", others_slow([False, True], 0))
def test_a_mistaken_sum_is_seen(grouped: bool) -> None:
    """The tolerance sees the gradient of a latent without its use as a value."""
    x = draw(Sizes(length=17, heads=4, width=26, k=5), 1)
    selected = expected_selection(x, 5)
    x64 = x.to(torch.float64)
    out, _ = reference.attention(x64.q, x64.k, x64.k[..., :16].detach(), selected.long(), 0.3)
    (only_keys,) = torch.autograd.grad((out * x64.d_out[..., :16]).sum(), x64.k)
    united = unions.unite(selected, 4, 1.0) if grouped else None
    found = found_latent(x.to(torch.float32), selected, 16, 0.3, False, united)
    assert error(found[3], only_keys) > 0.1
