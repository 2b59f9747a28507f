"""DSA over pools: its pools, selection and loss against loops, its backends against each other, and planted defects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from pooled_layers import INDEXER, error, ids_of, layer_of, learnt, spec_of, x_of

from dsabench.attention.base import AttentionContext, Selection
from dsabench.attention.dsa import reference as tokenwise
from dsabench.attention.pooled_dsa import layer, pools, reference
from dsabench.attention.registry import variant
from dsabench.audit import gate
from dsabench.engine.device import resolve
from dsabench.errors import LeakError
from dsabench.spec.run import validate
from dsabench.testing import check_capture, check_causal, check_documents_are_separate


def first_of(ids_T: list[int], t: int) -> int:
    return ids_T.index(ids_T[t])


sizes = st.tuples(st.integers(2, 40), st.integers(1, 9), st.booleans(), st.integers(0, 99))


@given(size=sizes, stride=st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_pools_are_those_of_a_loop(size: tuple[int, int, bool, int], stride: int) -> None:
    """Of each document from its first token; a query sees those that ended, in its own document alone."""
    length, n, packed, seed = size
    stride = min(stride, n)
    ids = ids_of(length, seed) if packed else torch.zeros(1, length, dtype=torch.int64)
    found = pools.pools_of(AttentionContext(torch.arange(length), document_ids_BT=ids if packed else None), n, stride)
    for row, ids_T in enumerate(ids.tolist()):
        every = []
        for start in sorted({first_of(ids_T, t) for t in range(length)}):
            end = start + ids_T.count(ids_T[start])
            every += [(start, begin) for begin in range(start, end - n + 1, stride)]
        assert found.begin_BC[row, : len(every)].tolist() == [begin for _, begin in every]
        assert set(found.begin_BC[row, len(every) :].tolist()) <= {length}
        seen_TC = found.seen()[row]
        for t in range(length):
            start = first_of(ids_T, t)
            expected = [c for c, (of, begin) in enumerate(every) if of == start and begin + n - 1 <= t]
            assert seen_TC[t].nonzero().flatten().tolist() == expected
            last = every[expected[-1]][1] + n if expected else start
            assert int(found.tail_BT[row, t]) == last
        if stride == n:
            inside = [next((c for c, (_, b) in enumerate(every) if b <= t < b + n), -1) for t in range(length)]
            assert found.pool_BT()[row].tolist() == inside


@given(size=sizes, k=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_selection_is_that_of_a_loop(size: tuple[int, int, bool, int], k: int) -> None:
    """The best whole pools, and the tail; as many keys as the settings say."""
    length, n, packed, seed = size
    ids = ids_of(length, seed) if packed else torch.zeros(2, length, dtype=torch.int64)
    context = AttentionContext(torch.arange(length), document_ids_BT=ids if packed else None)
    cut = pools.pools_of(context, n)
    spec = spec_of(length, top_k=k, pool_size=n).attention
    scores = torch.randn(2, length, cut.begin_BC.shape[1], generator=torch.Generator().manual_seed(seed))
    selected = reference.tokens_of(reference.select_pools(scores, cut, spec.n_pools(length)), cut)  # type: ignore[attr-defined]
    for row, ids_T in enumerate(ids.tolist()):
        begins = cut.begin_BC.expand(2, -1)[row].tolist()
        for t in range(length):
            start = first_of(ids_T, t)
            seen = [c for c, begin in enumerate(begins) if start <= begin and begin + n - 1 <= t]
            best = sorted(seen, key=lambda c: -float(scores[row, t, c]))[: max(1, k // n)]
            expected = {begins[c] + i for c in best for i in range(n)}
            expected |= set(range(start + (t - start + 1) // n * n, t + 1))
            found = [s for s in selected[row, t].tolist() if s >= 0]
            assert len(found) == len(set(found)) and set(found) == expected
            assert spec.selected_between(t - start, length) == (len(found), len(found))
            if t == length - 1 and not packed:
                assert len(found) <= spec.keys_read(length) <= length


@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("n", "k"), [(3, 6), (4, 9), (7, 1), (1, 5), (5, 20)])
def test_gathers_are_the_masked_product(n: int, k: int, documents: bool, stage: str) -> None:
    ids = ids_of(21, 3) if documents else None
    masked, plain = (
        learnt(spec_of(21, top_k=k, pool_size=n, backend=backend), stage, ids, torch.float64)
        for backend in ("masked", "reference")
    )
    assert plain.keys() == masked.keys()
    for name, value in masked.items():
        assert error(plain[name], value) < 1e-4, name  # rotation and index scores are in fp32


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_pools_of_one_token_are_dsa(stage: str) -> None:
    """Output, loss and gradients: parameters have DSA's names."""
    pooled = learnt(spec_of(21, top_k=5, pool_size=1), stage, ids_of(21, 4), torch.float64)
    dsa = spec_of(21).model_copy(
        update={"attention": validate({"attention": {"kind": "dsa", "top_k": 5, "indexer": INDEXER}}).attention}
    )
    expected = learnt(dsa, stage, ids_of(21, 4), torch.float64)
    assert pooled.keys() == expected.keys()
    for name, value in expected.items():
        assert error(pooled[name], value) < 1e-6, name


def test_a_packed_document_is_what_it_is_by_itself() -> None:
    """Its pools begin at its own first token, wherever that is."""
    spec = spec_of(24, top_k=6, pool_size=3)
    module, x = layer_of(spec).eval(), x_of(24, rows=1)
    ids = torch.tensor([[0] * 5 + [1] * 2 + [2] * 17])
    with torch.no_grad():
        packed = module(x, AttentionContext(torch.arange(24), document_ids_BT=ids)).out_BTD[:, 7:]
        alone = module(x[:, 7:], AttentionContext(torch.arange(7, 24))).out_BTD
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_loss_is_that_of_the_pooled_mass() -> None:
    """softmax(I) - P: what KL(P || softmax(I)) over pools gives, by autograd of that formula."""
    generator = torch.Generator().manual_seed(5)
    cut = pools.pools_of(AttentionContext(torch.arange(26)), 4)
    scores, p = torch.randn(2, 26, 6, generator=generator).double(), torch.rand(2, 26, 26, generator=generator).double()
    p = (p * tokenwise.allowed_keys(26, None, p.device)).requires_grad_()
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    inside = reference.pool_tokens(cut.seen().expand(2, -1, -1), cut.pool_BT())
    loss = reference.pooled_kl(reference.token_scores(ours, cut.pool_BT()), p, inside)
    mass = p.detach()[..., :24].unflatten(-1, (6, 4)).sum(-1) * cut.seen()
    mass = mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)
    log_q = theirs.masked_fill(~cut.seen(), -1e30).log_softmax(-1)
    expected = (torch.xlogy(mass, mass) - mass * log_q).sum(-1)[:, 3:].sum() / (2 * 26)
    (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, theirs)[0])
    assert float(loss.detach()) > float(expected.detach()) > 0 and p.grad is None


@given(length=st.integers(2, 60), n=st.integers(1, 9), k=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_flops_count_the_keys_of_every_query(length: int, n: int, k: int) -> None:
    spec = spec_of(length, top_k=k, pool_size=n)
    found = variant("pooled_dsa")(spec, 0).flops("sparse")
    keys = sum(spec.attention.selected_between(t, length)[0] for t in range(length))
    seen = sum((t + 1) // n for t in range(length))
    assert found["attention"] == pytest.approx(12 * keys * 32)
    assert found.get("top-k", 0) == seen
    chosen = sum(min((t + 1) // n, max(1, k // n)) for t in range(length))
    assert found.get("indexer loss", 0) == 4 * chosen * 2 * 8


# Planted defects: what somebody could get wrong at the edge of a pool. Only a query that ends a pool can see them, and
# only where the pool's score decides: pools of two in a long window have many such queries.


def with_one_more(cut: pools.Pools) -> pools.Pools:
    """A query sees the pool that it is inside of."""
    return cut._replace(visible_BT=cut.visible_BT + (cut.tail_BT <= torch.arange(cut.tail_BT.shape[1])))


def with_later_ends(cut: pools.Pools) -> pools.Pools:
    """A pool holds one token after its last."""
    later_BC = torch.where(cut.end_BC + 1 < cut.tail_BT.shape[1], cut.begin_BC + 1, cut.begin_BC)
    return cut._replace(begin_BC=later_BC)


def of_one_document(cut: pools.Pools) -> pools.Pools:
    """A query sees the pools of documents before its own."""
    return cut._replace(visible_BT=cut.visible_BT + cut.before_BT, before_BT=torch.zeros_like(cut.before_BT))


@pytest.mark.parametrize(
    ("defect", "backend"), [(with_one_more, "masked"), (with_one_more, "reference"), (with_later_ends, "masked")]
)
def test_a_pool_with_a_future_token_is_caught(monkeypatch: pytest.MonkeyPatch, defect: Any, backend: str) -> None:
    honest = pools.pools_of
    monkeypatch.setattr(layer, "pools_of", lambda context, n: defect(honest(context, n)))
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(40, top_k=4, pool_size=2, backend=backend))


@pytest.mark.parametrize("defect", others_slow([with_one_more, with_later_ends], 0))
def test_the_audit_finds_a_pool_with_a_future_token(monkeypatch: pytest.MonkeyPatch, defect: Any) -> None:
    honest = pools.pools_of
    monkeypatch.setattr(layer, "pools_of", lambda context, n: defect(honest(context, n)))
    gate.forget()
    spec = spec_of(32, top_k=4, pool_size=2)
    with pytest.raises(LeakError, match="pooled_dsa looks ahead"):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    gate.forget()


def test_a_key_of_unfinished_pools_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are smoothed over tokens before they are cut into pools: a pool's last key knows the next token."""
    honest = pools.pooled
    monkeypatch.setattr(
        "dsabench.attention.pooled_dsa.indexer.pooled", lambda x, cut: honest(x + torch.roll(x, -1, 1), cut)
    )
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(40, top_k=4, pool_size=2))


def test_a_pool_of_another_document_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pools.pools_of
    monkeypatch.setattr(layer, "pools_of", lambda context, n: of_one_document(honest(context, n)))
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of(backend="reference"))


def test_a_pool_across_two_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are cut from the window's first token, whatever the documents."""

    def across(context: AttentionContext, n: int) -> pools.Pools:
        return honest(AttentionContext(context.positions_T), n)

    honest = pools.pools_of
    monkeypatch.setattr(layer, "pools_of", across)
    with pytest.raises(AssertionError, match=r"across documents|looks ahead"):
        check_documents_are_separate(spec_of(backend="reference", pool_size=4))


def test_a_selection_without_its_tail_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reference.tokens_of
    monkeypatch.setattr(reference, "tokens_of", lambda chosen, cut: honest(chosen, cut)[..., : chosen.shape[2] * 3])
    with pytest.raises(AssertionError, match=r"query 0 selects .* with k = 6"):
        check_capture(spec_of())


def test_a_selected_pool_lights_up_whole() -> None:
    spec = spec_of(22, top_k=8, pool_size=4)
    context = AttentionContext(torch.arange(22), capture={})
    layer_of(spec).eval()(x_of(22, 1), context)
    assert context.capture is not None
    selection: Selection = context.capture[0]
    for t in range(22):
        keys = {s for s in selection.selected_BTK[0, t].tolist() if s >= 0}
        whole = (t + 1) // 4 * 4
        assert all({c, c + 1, c + 2, c + 3} <= keys or not {c, c + 1, c + 2, c + 3} & keys for c in range(0, whole, 4))
        assert set(range(whole, t + 1)) <= keys
    assert selection.scores_BTS is not None
    of_pools = selection.scores_BTS[0, 21, :20].unflatten(0, (5, 4))
    assert torch.equal(of_pools, of_pools[:, :1].expand(5, 4)) and len(of_pools[:, 0].unique()) == 5


@pytest.mark.parametrize("n", others_slow([4, 3], 0))
def test_the_audit_finds_nothing(n: int) -> None:
    spec = spec_of(33, pool_size=n)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": "documents"})})
    gate.forget()
    gate.refuse_leaks(spec, 101, resolve(spec.engine))
