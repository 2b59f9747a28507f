"""DSA over pools by kernels, through Triton's interpreter, against its masked product in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from pooled_layers import error, ids_of, layer_of, learnt, spec_of, x_of
from sparse_reference import ascending
from watch import Watch

from dsabench.attention import base, with_backends
from dsabench.attention.base import AttentionContext
from dsabench.attention.pooled_dsa import reference, streamed
from dsabench.attention.pooled_dsa.pools import pools_of
from dsabench.engine.backend import backend
from dsabench.engine.device import Execution
from dsabench.errors import SpecError
from dsabench.model.transformer import outline
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import check_capture, check_causal, check_documents_are_separate

GPU = Execution(torch.device("cuda", 0), "bf16", graph=True, deterministic=False, fused=True)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU; the other fused ones stay out of it."""
    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)


@given(
    length=st.integers(2, 24),
    n=st.integers(1, 7),
    n_pools=st.integers(1, 12),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_the_selection_is_the_references(length: int, n: int, n_pools: int, packed: bool, seed: int) -> None:
    """The same pools, their logsumexp, and the same tokens in ascending order, -1 at the end of a list."""
    generator = torch.Generator().manual_seed(seed)
    ids = ids_of(length, seed) if packed else None
    pools = pools_of(AttentionContext(torch.arange(length), document_ids_BT=ids), n)
    count = pools.begin_BC.shape[1]
    q, k, w = (
        torch.randint(-2, 3, shape, generator=generator).float()
        for shape in ((2, length, 2, 16), (2, count, 16), (2, length, 2))
    )
    n_pools = min(n_pools, count)
    scores = torch.einsum("btj,btjc->btc", w, torch.einsum("btji,bci->btjc", q, k).relu())
    expected = reference.select_pools(scores, pools, n_pools)
    found, lse = streamed.select(q, k, w, pools, n_pools)
    assert torch.equal(found, ascending(expected))
    kept = scores.gather(-1, expected.clamp(min=0)).masked_fill(expected < 0, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse, kept.masked_fill(kept == -torch.inf, 0.0), rtol=1e-5, atol=1e-5)
    listed = streamed.tokens_of(found, pools)
    assert torch.equal(listed, ascending(reference.tokens_of(expected, pools)))


@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("n", "k"), others_slow([(4, 9), (3, 6), (7, 1), (1, 5)], 0))
def test_a_layer_by_kernels_is_the_masked_one_in_fp64(
    interpreted: None, n: int, k: int, documents: bool, stage: str
) -> None:
    """Outputs, loss and gradients."""
    ids = ids_of(21, 3) if documents else None
    expected = learnt(spec_of(21, top_k=k, pool_size=n, backend="masked"), stage, ids, torch.float64)
    found = learnt(spec_of(21, top_k=k, pool_size=n, backend="triton"), stage, ids, torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert error(found[name], value) < 1e-4, name


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_a_latent_layer_by_kernels_is_the_masked_one_in_fp64(interpreted: None, stage: str) -> None:
    """Latents stand in the place of keys and values, with a scale of their own."""
    ranks = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}

    def latent(how: str) -> RunSpec:
        values = spec_of(17, top_k=6, pool_size=3, backend=how).model_dump()
        model = {"attention_layout": "latent", "latent": ranks, "n_kv_heads": None}
        return validate({"length": 17, "attention": values["attention"], "model": {**values["model"], **model}})

    expected = learnt(latent("masked"), stage, ids_of(17, 3), torch.float64)
    found = learnt(latent("triton"), stage, ids_of(17, 3), torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert error(found[name], value) < 1e-4, name


@pytest.mark.parametrize("check", others_slow([check_causal, check_documents_are_separate, check_capture], 1, 2))
def test_contract(interpreted: None, check: Any) -> None:
    check(spec_of(8, top_k=4, pool_size=2, backend="triton"))


@pytest.mark.parametrize("early", [False, True])
def test_a_pool_with_a_future_token_would_show(interpreted: None, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """A change of the last token changes no output before it, unless queries take the selection of those who have seen
    the next pool end."""
    honest = streamed.select

    def wrong(q: Tensor, k: Tensor, w: Tensor, pools: Any, n_pools: int) -> Any:
        more_BT = pools.before_BT + pools.visible_BT < k.shape[1]
        return honest(q, k, w, pools._replace(visible_BT=pools.visible_BT + more_BT), n_pools)

    monkeypatch.setattr(streamed, "select", wrong if early else honest)
    module, x = layer_of(spec_of(8, top_k=2, pool_size=2, backend="triton")).eval(), x_of(8, 1)
    changed = x.repeat(6, 1, 1)
    changed[:, -1] = x_of(6, 1, seed=9)[0]
    with torch.no_grad():
        out = module(torch.cat([x, changed]), AttentionContext(torch.arange(8))).out_BTD[:, :-1]
    assert bool(((out[1:] - out[:1]).abs() > 1e-3).any()) is early


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_no_tensor_of_l_by_l_elements(interpreted: None, monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    """Forward and backward, with documents, and as the recall of a selection is captured."""
    length = 48
    monkeypatch.setattr(base, "RECALL_PAIRS", length * 16)
    monkeypatch.setattr("dsabench.attention.scaled_dot_product.SLAB_PAIRS", length * 16)
    ids = (torch.arange(length) // 30)[None]

    def use(how: str) -> None:
        module = layer_of(spec_of(length, top_k=8, pool_size=4, backend=how))
        for documents in (None, ids):
            capture: dict[int, base.Selection] | None = {} if stage == "sparse" else None
            context = AttentionContext(torch.arange(length), stage, documents, capture, whole_mass=False)
            module.prepare(context)
            output = module(x_of(length, 1).requires_grad_(), context)
            assert output.aux_loss is not None
            (output.out_BTD.sum() + output.aux_loss).backward()

    with Watch(length**2):
        use("triton")
        with pytest.raises(AssertionError, match="gives"):
            use("masked")


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_deterministic_gradients_repeat_their_bits(interpreted: None, stage: str) -> None:
    """By sums in fixed point; and they are the others to rounding."""
    spec = spec_of(13, top_k=5, pool_size=4, backend="triton")
    free = learnt(spec, stage, None, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (learnt(spec, stage, None, torch.float32) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name]) and error(value, free[name]) < 1e-4, name


def test_auto_takes_kernels_where_they_pay_and_run() -> None:
    def chosen(length: int, k: int, **more: Any) -> str | None:
        attention = {"kind": "pooled_dsa", "top_k": k, **more}
        model = {"n_heads": 8, "n_kv_heads": 1}
        spec = validate({"length": length, "attention": attention, "model": model, "train": {"batch_size": 1}})
        return backend(spec, GPU)

    assert [chosen(1023, 32), chosen(1024, 32), chosen(1024, 512)] == ["masked", "triton", "masked"]
    # 4096 pools of 4 are what the kernel takes; 4096 tokens are fewer.
    assert chosen(131_072, 16_384, backend="triton") == "triton"
    with pytest.raises(SpecError, match=r"attention.backend = triton cannot run: attention.top_k keeps 4097"):
        chosen(131_072, 16_388, backend="triton")


def test_the_memory_estimate_follows_the_backend() -> None:
    def kept(how: str, length: int) -> float:
        attention = {"kind": "pooled_dsa", "top_k": 1024, "backend": how}
        spec = validate({"length": length, "attention": attention, "train": {"batch_size": 1}})
        return outline(spec, 31).layers()[0].attention.kept_per_pair(2) * length

    assert kept("masked", 32_768) == 2 * kept("masked", 16_384)
    assert kept("triton", 32_768) == kept("triton", 16_384) == 7 * 1027
