"""Fields that models of others need: formulas, every attention with them, optimizer, FLOPs, memory, audit, a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from parity import Parity
from single_runs import DSA, base
from torch.utils.flop_counter import FlopCounterMode

import dsabench
from dsabench.attention.base import Attention, AttentionContext
from dsabench.attention.rotary import rotation
from dsabench.audit.small_models import small_copies
from dsabench.engine.device import resolve
from dsabench.engine.memory_plan import estimate
from dsabench.engine.optimizer import Optimizer
from dsabench.errors import SpecError
from dsabench.model.transformer import Transformer, build, flops_per_window
from dsabench.spec.identity import run_id
from dsabench.spec.model_settings import ModelSpec, RopeScaling
from dsabench.spec.run import EngineSpec, RunSpec, validate
from dsabench.testing import CHECKS

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 40}

FOREIGN: dict[str, Any] = {
    "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "head_width": 12, "qkv_bias": True,
    "qk_norm": True, "tied_head": False, "vocab_size": 120, "norm_eps": 3e-3, "rope_base": 500.0,
    "rope_scaling": SCALING, "n_experts": 1, "experts_per_token": 1, "embedding_std": 1.0,
}  # fmt: skip

FLOPS = Parity(
    "FLOPs of attention and its projections", "`torch` FlopCounterMode", 1e-6, "largest difference over largest value"
)
INDEXER = {"n_heads": 2, "head_dim": 8}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "dsa": {"kind": "dsa", "top_k": 5, "indexer": INDEXER},
    "dsa reference": {"kind": "dsa", "top_k": 5, "backend": "reference", "indexer": INDEXER},
    "sliding_window": {"kind": "sliding_window", "top_k": 5},
    "sink_window": {"kind": "sink_window", "top_k": 5, "n_sinks": 2},
    "strided": {"kind": "strided", "top_k": 5},
    "random": {"kind": "random", "top_k": 5},
    "oracle": {"kind": "oracle", "top_k": 5},
    "moba": {"kind": "moba", "top_k": 6, "block_size": 3},
}


def spec_of(attention: dict[str, Any] | None = None, length: int = 20, **model: Any) -> RunSpec:
    fields = {**FOREIGN, **model}
    return validate({"length": length, "attention": attention or {"kind": "dense"}, "model": fields})


def randomised(model: Transformer) -> Transformer:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_attention_keeps_the_contract_with_them(check: Any, name: str) -> None:
    check(spec_of(ATTENTIONS[name]))


@torch.no_grad()
def test_dense_attention_by_the_formula() -> None:
    """q, k and v with biases; RMSNorm over each head; then the rotation; groups of heads share keys."""
    spec = spec_of()
    model = randomised(build(spec, 50)).double()
    attention = model.layers()[1].attention
    x_TD = torch.randn(20, 32, dtype=torch.float64)
    p = attention.projections
    cos_TW, sin_TW = rotation(torch.arange(20), 12, 500.0, RopeScaling(**SCALING))

    def heads(layer: torch.nn.Linear, norm: torch.nn.RMSNorm | None) -> torch.Tensor:
        x_THD = (x_TD @ layer.weight.T + layer.bias).unflatten(-1, (-1, 12))
        if norm is None:
            return x_THD
        x_THD = x_THD / (x_THD.square().mean(-1, keepdim=True) + 3e-3).sqrt() * norm.weight
        a, b = x_THD.chunk(2, dim=-1)
        cos, sin = cos_TW[:, None].double(), sin_TW[:, None].double()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    q, k, v = heads(p.query, p.query_norm), heads(p.key, p.key_norm), heads(p.value, None)
    out = []
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].T / math.sqrt(12)
        future = torch.ones(20, 20, dtype=torch.bool).triu(1)
        out.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, head // 2])
    expected = torch.stack(out, dim=1).flatten(-2) @ p.out.weight.T
    found = attention(x_TD[None], AttentionContext(torch.arange(20))).out_BTD[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # cos and sin are fp32


@torch.no_grad()
def test_a_head_of_its_own_gives_the_logits() -> None:
    model = build(spec_of(), 50)
    assert model.head is not None
    assert model.head.weight.shape == model.embedding.weight.shape == (120, 32)
    tokens_BT = torch.arange(20)[None]
    features = model.features(tokens_BT)
    assert torch.equal(model(tokens_BT).logits_BTV, F.linear(features.x_BTD, model.head.weight))
    loss = model.training_losses(tokens_BT[:, :-1], tokens_BT[:, 1:])[0]
    logits_TV = model(tokens_BT[:, :-1]).logits_BTV[0]
    torch.testing.assert_close(loss, F.cross_entropy(logits_TV, tokens_BT[0, 1:]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("d_model", "vocabulary"), [(32, 300), (128, 2000)])
def test_the_first_loss_is_near_ln_v(tied: bool, d_model: int, vocabulary: int) -> None:
    spec = spec_of(d_model=d_model, tied_head=tied, vocab_size=None, embedding_std=None, head_width=None)
    tokens_BT = torch.randint(vocabulary, (6, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = build(spec, vocabulary).training_losses(tokens_BT[:, :-1], tokens_BT[:, 1:])[0]
    assert float(loss) == pytest.approx(math.log(vocabulary), rel=0.03)


@given(
    factor=st.floats(1, 64),
    low=st.floats(0.1, 4),
    more=st.floats(0.1, 8),
    original=st.integers(8, 100_000),
    base=st.sampled_from([100.0, 10_000.0, 500_000.0]),
)
def test_stretched_frequencies_lie_between_both_ends(
    factor: float, low: float, more: float, original: int, base: float
) -> None:
    """Short wavelengths stay, long ones are stretched by the factor, in between nothing else happens."""
    scaling = RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=low + more, original_length=original)
    position_T = torch.tensor([0.25])  # small angles, so that sines tell frequencies apart
    width = 32
    plain = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    found = rotation(position_T, width, base, scaling)[1][0].double().arcsin() / 0.25
    wavelength = 2 * math.pi / plain
    ratio = found / plain
    assert ((ratio <= 1 + 1e-4) & (ratio >= 1 / factor - 1e-4)).all()
    torch.testing.assert_close(ratio[wavelength < 0.999 * original / (low + more)].numpy(), 1.0 + 0 * ratio[
        wavelength < 0.999 * original / (low + more)
    ].numpy(), rtol=1e-3, atol=0)  # fmt: skip
    stretched = ratio[wavelength > 1.001 * original / low]
    assert ((stretched * factor - 1).abs() < 1e-3).all()


def test_layers_of_one_width_and_two_rotations_do_not_mix() -> None:
    """The context keeps what it computed by everything that it depends on."""
    context = AttentionContext(torch.arange(9))
    scaling = RopeScaling(**SCALING)
    seen = [context.rotation(8, base, s)[0] for base in (100.0, 500.0) for s in (None, scaling)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert context.rotation(8, 100.0)[0] is seen[0]


def test_the_indexer_turns_as_the_attention_around_it_does() -> None:
    plain, stretched = (build(spec_of(ATTENTIONS["dsa"], rope_scaling=s), 50) for s in (None, SCALING))
    x_BTD, outputs = torch.randn(1, 20, 32), []
    for model in (plain, stretched):
        indexer: Any = model.layers()[0].attention.indexer
        outputs.append(indexer(x_BTD, AttentionContext(torch.arange(20))))
    assert not torch.allclose(*outputs, atol=1e-4)


def test_defaults_are_what_was_there_before() -> None:
    old = {name: getattr(ModelSpec(), name) for name in FOREIGN if name in ModelSpec.model_fields}
    assert old["norm_eps"] == 1e-6
    spec = validate({"model": {"norm_eps": 1e-6, "head_width": None, "qkv_bias": False, "qk_norm": False,
                               "tied_head": True, "vocab_size": None, "rope_scaling": None}})  # fmt: skip
    assert run_id(spec, {}) == run_id(validate({}), {})
    assert ModelSpec().head_dim * 8 == ModelSpec().heads_width == ModelSpec().d_model


@pytest.mark.parametrize(
    "field", ["head_width", "qkv_bias", "qk_norm", "tied_head", "vocab_size", "norm_eps", "rope_scaling"]
)
def test_each_of_them_is_part_of_a_runs_identity(field: str) -> None:
    assert run_id(validate({"model": {field: FOREIGN[field]}}), {}) != run_id(validate({}), {})


def test_the_optimizer_takes_all_of_them() -> None:
    """Once each; biases, gains, embedding and output layer do not decay."""
    spec = spec_of(ATTENTIONS["dsa"])
    model = build(spec, 50)
    optimizer = Optimizer(model, spec, torch.device("cpu"))
    decay = {optimizer.names[p]: group.weight_decay for group in optimizer.groups for p in group.parameters}
    assert decay.keys() == dict(model.named_parameters()).keys()
    for name in ("head.weight", "embedding.weight", "blocks.0.attention.projections.query.bias",
                 "blocks.0.attention.projections.key_norm.weight"):  # fmt: skip
        assert decay[name] == 0, name
    assert decay["blocks.0.attention.projections.query.weight"] > 0


@pytest.mark.parametrize("head_width", [None, 4, 16])
@pytest.mark.parametrize("n_kv_heads", [None, 1])
def test_flops_are_those_that_pytorch_counts(head_width: int | None, n_kv_heads: int | None) -> None:
    """Of the reference backend at k = L, whose products over all pairs are the double of the causal ones."""
    spec = spec_of({"kind": "oracle", "top_k": 64}, 64, head_width=head_width, n_kv_heads=n_kv_heads, vocab_size=None)
    attention: Attention = build(spec, 50).layers()[0].attention
    x_BTD = torch.randn(1, 64, 32)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        attention(x_BTD, AttentionContext(torch.arange(64), stage="dense"))
    items = attention.flops("dense")
    ours = items["attention projections"] / 3 + items["attention"] / 3 * 2 * 64 / 65
    FLOPS.check(ours, counter.get_total_flops())


def test_padded_rows_count_in_flops_and_memory() -> None:
    execution = resolve(EngineSpec(device="cpu"))
    small, large = (build(spec_of(vocab_size=rows), 50) for rows in (None, 5000))
    assert flops_per_window(large, "sparse")["logits"] == 100 * flops_per_window(small, "sparse")["logits"]
    sizes = [estimate(model, execution, 4, recompute=False) for model in (small, large)]
    assert sizes[1]["weights"] - sizes[0]["weights"] == 4 * 2 * 32 * 4950
    wide = estimate(build(spec_of(head_width=48, vocab_size=None), 50), execution, 4, recompute=False)
    assert wide["activations"] > sizes[0]["activations"]


def test_small_copies_of_the_audit_have_them_too() -> None:
    """But for sizes: biases, norms, stretched rotation and a head of its own stay."""
    copies = small_copies(spec_of(ATTENTIONS["dsa"], 64, d_model=64), torch.device("cpu"))
    assert copies
    for copy in copies:
        model = copy.model
        assert (model.qkv_bias, model.qk_norm, model.tied_head, model.norm_eps) == (True, True, False, 3e-3)
        assert model.rope_scaling is not None
        assert (model.head_dim, model.kv_heads) == (8, 2)


def test_what_cannot_be_is_one_message() -> None:
    for fields, told in (
        ({"head_width": 7}, "multiple of 2"),
        ({"n_heads": 5}, "does not divide d_model = 256; near it, 1, 2, 4, 8 would; or set head_width"),
        ({"rope_scaling": {"factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"factor": 2.0, "low_freq_factor": 4.0}}, "low_freq_factor = 4.0 is not below high_freq"),
        ({"norm_eps": 0.0}, "norm_eps"),
    ):
        with pytest.raises(SpecError, match=told):
            validate({"model": fields})
    assert validate({"model": {"n_heads": 5, "head_width": 8}}).model.heads_width == 40


@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_a_run_trains_with_them_and_is_loaded_again(kind: str, tmp_path: Path) -> None:
    """Audit, steps, evaluation, checkpoint and record; the model learns."""
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"the cat sat on mat {number} and then some more " * 30)
    fields = base(corpus, steps=30, eval_every=15)
    fields |= {"model": {**FOREIGN, "vocab_size": 400, "embedding_std": None}}
    fields |= {"attention": DSA if kind == "dsa" else {"kind": "dense"}}
    record = dsabench.train(validate(fields), store=tmp_path / "runs")
    assert record.status == "done", record.error
    metrics = dsabench.load_metrics(tmp_path / "runs")
    losses = metrics[metrics["kind"] == "eval"]["val_loss"].tolist()
    assert losses[-1] < losses[0] - 0.1
    model = dsabench.load_model(tmp_path / "runs", record.run_id)
    assert model.vocab_size == 400
    assert dict(dsabench.load_runs(tmp_path / "runs").iloc[0])["model.rope_scaling.factor"] == 8.0
