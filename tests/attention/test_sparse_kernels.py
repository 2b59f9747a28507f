"""The sparse kernels through Triton's interpreter, on small sizes, against the reference in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import others_slow

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import (
    Sizes,
    allowed_by,
    ascending,
    draw,
    error,
    expected_dense_kl,
    expected_selection,
    expected_sparse,
    found_dense_kl,
    found_sparse,
    scores_of,
    selection,
)

from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton import attend, kl, kl_dense, lse, top_k, unions

TOLERANCE = 1e-5


pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("deterministic", others_slow([False, True], 0))
@pytest.mark.parametrize(
    ("sizes", "seed"),
    others_slow(
        [
            (Sizes(length=1, heads=1, k=1), 0),
            (Sizes(length=5, batch=2, heads=1, index_heads=1, k=9), 1),
            (Sizes(length=17, heads=8, groups=2, width=32, index_heads=3, k=1), 2),
            (Sizes(length=19, heads=3, groups=3, width=24, index_width=12, k=7, documents=0.2), 3),
            (Sizes(length=9, batch=2, heads=66, groups=1, index_heads=5, k=40), 4),
        ],
        3,
    ),
)
def test_outputs_and_all_gradients(sizes: Sizes, seed: int, deterministic: bool) -> None:
    x = draw(sizes, seed)
    selected = expected_selection(x, sizes.k)
    x32 = x.to(torch.float32)
    found = found_sparse(x32, selected, None, deterministic)
    names = ("out", "loss", "d q", "d k", "d v", "d q_index", "d k_index", "d w_index")
    for name, mine, theirs in zip(names, found, expected_sparse(x, selected), strict=True):
        assert error(mine, theirs) < TOLERANCE, name


@pytest.mark.parametrize("deterministic", others_slow([False, True], 1))
@pytest.mark.parametrize(
    ("sizes", "seed"),
    others_slow(
        [
            (Sizes(length=1, heads=1, index_heads=1), 0),
            (Sizes(length=70, batch=2, heads=4, groups=2, width=24, index_heads=3, index_width=12), 1),
            (Sizes(length=64, heads=3, groups=3, documents=0.1), 2),
        ],
        2,
    ),
)
def test_the_kl_loss_over_all_keys(sizes: Sizes, seed: int, deterministic: bool) -> None:
    x = draw(sizes, seed, grid=False)
    found = found_dense_kl(x.to(torch.float32), deterministic)
    for mine, theirs in zip(found, expected_dense_kl(x), strict=True):
        assert error(mine, theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("queries", "keys", "ahead", "deterministic"),
    others_slow([(16, 32, False, False), (16, 32, True, True), (32, 16, False, True), (32, 16, True, False)], 1),
)
def test_the_dense_kl_loss_by_other_tilings(queries: int, keys: int, ahead: bool, deterministic: bool) -> None:
    """Blocks that end within a tile of keys, documents that start within one, products ahead of exponentials."""
    sizes = Sizes(length=75, batch=2, heads=6, groups=2, width=20, index_heads=3, index_width=9, documents=0.04)
    x = draw(sizes, 13, grid=False)
    q, k, _, q_index, k_index, w_index = (leaf.detach() for leaf in x.to(torch.float32)[:6])
    assert x.ids is not None
    start = reference.document_starts(x.ids)
    cut = lse.Tiling(queries, keys, warps=4)
    lse_BTH = lse.attention_lse(q, k, start, cut)
    index_lse = lse.index_lse(q_index, k_index, w_index, start, cut)
    allowed = allowed_by(x)
    scores = scores_of(x).detach().masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(index_lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    logits = torch.einsum("bthd,bshd->bths", x.q, x.k.repeat_interleave(3, dim=2)).detach() * 20**-0.5
    expected = logits.masked_fill(~allowed[..., None, :], -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse_BTH.double(), expected, rtol=1e-5, atol=1e-5)
    tiling = kl_dense.Tiling(queries, keys, warps=4, ahead=ahead)
    found = kl_dense.launch(
        q, k, lse_BTH, q_index, k_index, w_index, start, index_lse, True, deterministic, tiling
    )  # fmt: skip
    for mine, theirs, factor in zip(found, expected_dense_kl(x), (1, 3, 3, 3), strict=True):
        assert error(factor * mine, theirs) < TOLERANCE


def test_a_head_without_weight_has_a_gradient_for_it() -> None:
    """The weights' gradient comes from sums that are not weighted."""
    x = draw(Sizes(length=20, heads=2, index_heads=3), 14, grid=False)
    with torch.no_grad():
        x.w_index[..., 1] = 0.0
    found = found_dense_kl(x.to(torch.float32), False)
    for mine, theirs in zip(found, expected_dense_kl(x), strict=True):
        assert error(mine, theirs) < TOLERANCE
    assert float(found[3][..., 1].abs().sum()) > 0
    assert not found[1][..., 1, :].any()


def test_the_layer_end_to_end_on_its_own_selection() -> None:
    """The public functions with their default tilings, top_k's logsumexp handed on."""
    x = draw(Sizes(length=37, heads=4, k=6, documents=0.1), 7)
    x32 = x.to(torch.float32)
    selected, index_lse = selection(x32, 6)
    assert torch.equal(selected, expected_selection(x, 6))
    for mine, theirs in zip(found_sparse(x32, selected, index_lse, False), expected_sparse(x, selected), strict=True):
        assert error(mine, theirs) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", others_slow([False, True], 1))
def test_keys_taken_range_by_range(deterministic: bool) -> None:
    """Ranges of 7 keys, the last one shorter; some rows have no key in some ranges."""
    x = draw(Sizes(length=25, batch=2, heads=4, groups=2, k=4, documents=0.1), 12)
    selected = expected_selection(x, 4)
    x32 = x.to(torch.float32)
    out, lse_BTH = attend.forward(x32.q, x32.k, x32.v, selected, attend.Tiling(16))
    tiling = attend.Tiling(slots=16, range_bytes=7 * 2 * 16 * 2 * 8)
    found = attend.backward(x32.q, x32.k, x32.v, selected, out, lse_BTH, x32.d_out, deterministic, tiling)
    for mine, theirs in zip(found, expected_sparse(x, selected)[2:5], strict=True):
        assert error(mine.detach(), theirs) < TOLERANCE


def test_empty_and_future_slots_take_part_in_nothing() -> None:
    x = draw(Sizes(length=6, heads=2, k=3), 8).to(torch.float32)
    selected = torch.tensor([[[0, -1, -1], [1, 0, 5], [-1, -1, -1], [-1, 3, 1], [4, 5, 2], [5, 4, 3]]])
    out, lse_BTH = attend.attend(x.q, x.k, x.v, selected)
    kept = ascending(torch.where(selected > torch.arange(6)[:, None], -1, selected))
    expected, _ = reference.attention(x.q.double(), x.k.double(), x.v.double(), kept)
    expected[0, 2] = 0.0  # no key: the reference has no number there
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    assert bool((lse_BTH[0, 2] == -torch.inf).all())
    out.sum().backward()
    assert x.q.grad is not None
    assert bool(torch.isfinite(x.q.grad).all())


def test_the_indexers_loss_moves_nothing_else_and_needs_no_gradient() -> None:
    x = draw(Sizes(), 9).to(torch.float32)
    selected = expected_selection(x.to(torch.float64), 5)
    lse_BTH = attend.attend(x.q, x.k, x.v, selected)[1]
    tensors = (x.q, x.k, lse_BTH, x.q_index, x.k_index, x.w_index)
    loss = kl.sparse_kl(*tensors, selected)
    loss.backward()
    assert x.q.grad is None
    assert x.k.grad is None
    with torch.no_grad():
        assert torch.equal(kl.sparse_kl(*tensors, selected), loss.detach())


@pytest.mark.parametrize("how", ["queries by themselves", "groups", "all keys"])
def test_probabilities_that_are_nearly_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's logarithm takes a subnormal number for 0; NumPy's, by which kernels are interpreted here, is made to."""

    def as_a_gpu(log: Any) -> Any:
        def flushed(x: Any) -> Any:
            x = np.asarray(x)
            with np.errstate(divide="ignore"):
                return log(np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x).astype(x.dtype))

        return flushed

    x = draw(Sizes(length=20, heads=1, groups=1, index_heads=1, k=20), 9).to(torch.float32)
    with torch.no_grad():  # every key but the first is 88 nats or more below it: exp(-88) is subnormal
        x.q.fill_(1.0)
        below_T = (88.0 + 0.5 * torch.arange(20.0)) * (torch.arange(20) > 0)
        x.k.copy_(-below_T[None, :, None, None])
        x.k.div_(x.k.shape[-1] ** 0.5)
    selected = expected_selection(x.to(torch.float64), 20)
    p = torch.softmax(torch.einsum("bthd,bshd->bths", x.q, x.k)[0, -1, 0] * x.q.shape[-1] ** -0.5, -1)
    assert bool(((p > 0) & (p < torch.finfo(torch.float32).tiny)).any()), "there are subnormal ones"
    lse_BTH = attend.attend(x.q, x.k, x.v, selected)[1]
    monkeypatch.setattr(np, "log", as_a_gpu(np.log))
    monkeypatch.setattr(np, "log2", as_a_gpu(np.log2))
    tensors = (x.q, x.k, lse_BTH, x.q_index, x.k_index, x.w_index)
    if how == "all keys":
        loss = kl_dense.dense_kl(x.q, x.k, x.q_index, x.k_index, x.w_index)
    else:
        shared = unions.unions_of(selected, 4) if how == "groups" else None
        loss = kl.sparse_kl(*tensors, selected, unions=shared)
    assert bool(torch.isfinite(loss))


def test_what_the_kernels_do_not_take_is_refused() -> None:
    x = draw(Sizes(), 10)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        selection(x, 3)
    x = x.to(torch.float32)
    with pytest.raises(ValueError, match="from 1 to 4096"):
        selection(x, 4097)
    with pytest.raises(ValueError, match="H a multiple of G"):
        attend.attend(x.q[:, :, :1], torch.cat([x.k, x.k], 2), torch.cat([x.v, x.v], 2), torch.zeros(1, 17, 1).int())


def test_fake_kernels_and_gradients_are_registered_right() -> None:
    """What torch.compile and export rely on, by PyTorch's own checker."""
    x = draw(Sizes(length=5, k=2), 11).to(torch.float32)
    start = torch.zeros(1, 5, dtype=torch.int32)
    index = (x.q_index, x.k_index, x.w_index)
    plain = [tensor.detach() for tensor in index]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    selected, index_lse = top_k._top_k(*plain, start, 2)
    alone = (None, None, 0)
    united = (*unions._share(selected, 4), 4)
    _, lse_BTH = attend._attend(x.q, x.k, x.v, selected, *alone, False, False, 0.25, 0)
    q, k = x.q.detach(), x.k.detach()
    lse_BTH = lse_BTH.detach()
    for op, args in (
        (top_k._top_k, (*plain, start, 2)),
        (unions._share, (selected, 4)),
        (attend._attend, (x.q, x.k, x.v, selected, *alone, False, True, 0.25, 0)),
        (attend._attend, (x.q, x.k, x.v, selected, *united, False, True, 0.25, 0)),
        (attend._attend, (x.q, x.k, None, selected, *alone, False, True, 0.25, 10)),
        (attend._attend, (x.q, x.k, None, selected, *united, False, True, 0.25, 10)),
        (kl._selected_lse, (*plain, selected)),
        (kl._sparse_kl, (q, k, lse_BTH, *index, selected, *united, index_lse, True, False, 0.25, 0)),
        (kl._sparse_kl, (q, k, lse_BTH, *index, selected, *united, index_lse, True, False, 0.25, 10)),
        (kl._sparse_kl, (q, k, lse_BTH, *plain, selected, *alone, index_lse, False, True, 0.25, 0)),
        (kl_dense._attention_lse, (q, k, start)),
        (kl_dense._dense_kl, (q, k, lse_BTH, *index, start, True, False)),
    ):
        torch.library.opcheck(op, args, test_utils=checks)
    assert torch.equal(lse.selected_lse(*plain, selected), kl._selected_lse(*plain, selected))
