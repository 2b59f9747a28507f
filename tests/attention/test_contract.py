"""The contract over the shipped variants, and planted defects that it must catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsabench.attention import registry
from dsabench.attention.ablations.sliding_window import SlidingWindow
from dsabench.attention.base import AttentionContext, AttentionOutput, Selection
from dsabench.attention.dsa import masked, reference
from dsabench.attention.dsa.layer import DSA
from dsabench.errors import SpecError
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import ForwardPass, build
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import (
    CHECKS,
    check_calls,
    check_capture,
    check_causal,
    check_causal_model,
    check_dense_at_full_k,
    check_documents_are_separate,
    check_gradients,
    check_loss_is_no_output,
    check_rows_and_calls_are_independent,
    check_shared_start,
    check_the_seed_lives_in_tensors,
)

INDEXER = {"n_heads": 2, "head_dim": 8}
NSA = {"compression_block": 4, "compression_stride": 2, "selection_block": 4, "selected_blocks": 4, "window": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "dsa": {"kind": "dsa", "top_k": 5, "indexer": INDEXER},
    "dsa half": {"kind": "dsa", "top_k_ratio": 0.5, "indexer": INDEXER},
    "dsa k=1": {"kind": "dsa", "top_k": 1, "indexer": INDEXER},
    "dsa untrained": {"kind": "dsa", "top_k": 5, "indexer": {**INDEXER, "loss": "none"}},
    "dsa reference": {"kind": "dsa", "top_k": 5, "backend": "reference", "indexer": INDEXER},
    "dsa shared": {"kind": "dsa", "top_k": 5, "indexer": {**INDEXER, "share_layers": 2}},
    "dsa shared reference": {
        "kind": "dsa",
        "top_k": 5,
        "backend": "reference",
        "indexer": {**INDEXER, "share_layers": 2},
    },
    "pooled_dsa": {"kind": "pooled_dsa", "top_k": 4, "pool_size": 2, "indexer": INDEXER},
    "pooled_dsa of two pools": {"kind": "pooled_dsa", "top_k": 9, "pool_size": 4, "indexer": INDEXER},
    "pooled_dsa one pool": {"kind": "pooled_dsa", "top_k": 1, "pool_size": 7, "indexer": INDEXER},
    "pooled_dsa reference": {
        "kind": "pooled_dsa",
        "top_k": 6,
        "pool_size": 3,
        "backend": "reference",
        "indexer": INDEXER,
    },
    "nsa": {"kind": "nsa", **NSA},
    "nsa without overlap": {
        "kind": "nsa",
        "compression_block": 2,
        "compression_stride": 2,
        "selection_block": 2,
        "selected_blocks": 2,
        "local_blocks": 1,
        "window": 2,
    },
    "sliding_window": {"kind": "sliding_window", "top_k": 5},
    "sink_window": {"kind": "sink_window", "top_k": 5, "n_sinks": 2},
    "strided": {"kind": "strided", "top_k": 5},
    "random": {"kind": "random", "top_k": 5},
    "oracle": {"kind": "oracle", "top_k": 5},
    "moba": {"kind": "moba", "top_k": 6, "block_size": 3},
    "moba of one block": {"kind": "moba", "top_k": 2, "block_size": 3},
    "hybrid": {"layers": ["dense", "dsa"], "top_k": 5, "indexer": INDEXER},
    "hybrid of rules": {"layers": ["sliding_window", {"kind": "dsa", "top_k": 3}], "top_k": 5, "indexer": INDEXER},
    "csa": {"kind": "csa", "top_k": 2, "compress_ratio": 3, "sliding_window": 2, "indexer": INDEXER},
    "csa all": {"kind": "csa", "top_k_ratio": 1.0, "compress_ratio": 2, "sliding_window": 1, "indexer": INDEXER},
    "msa": {"kind": "msa", "block_size": 3, "top_k_blocks": 2, "index_branch": {"head_dim": 8}},
    "msa of one": {
        "kind": "msa",
        "block_size": 2,
        "top_k_blocks": 3,
        "local_blocks": 0,
        "index_branch": {"head_dim": 8},
    },
    "hca": {"kind": "hca", "compress_ratio": 4, "sliding_window": 3},
    "hybrid of entries": {"layers": ["csa", "hca"], "compress_ratio": 3, "sliding_window": 2, "indexer": INDEXER},
}


RANKS = {"q_lora_rank": 24, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
LAYOUTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1},
    "latent": {"attention_layout": "latent", "latent": RANKS},
    "latent, queries of full rank": {"attention_layout": "latent", "latent": {**RANKS, "q_lora_rank": None}},
}


def small(attention: dict[str, Any], layout: str = "mha", length: int = 20) -> RunSpec:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 24, **LAYOUTS[layout]}
    return validate({"length": length, "attention": attention, "model": model})


CASES = [
    (name, layout)
    for name in VARIANTS
    for layout in LAYOUTS
    if layout != "latent, queries of full rank" or name in ("dense", "dsa", "dsa reference")
    if "latent" not in layout or small(VARIANTS[name]).attention.why_not_latent() is None
]


@pytest.mark.parametrize(("name", "layout"), CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any, name: str, layout: str) -> None:
    check(small(VARIANTS[name], layout))


@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_longer_windows_are_as_if_it_were_made_for_them(name: str, layout: str, stage: Any) -> None:
    """Length extrapolation (train.eval_multiples): nothing but the input says how long a window is."""
    model, longer = (build(small(VARIANTS[name], layout, length), 30).eval() for length in (20, 40))
    longer.load_state_dict(model.state_dict())
    tokens_BT = torch.randint(0, 30, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (one(tokens_BT, ForwardPass(stage=stage)).logits_BTV for one in (model, longer))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_dropout_is_no_leak() -> None:
    spec = small(VARIANTS["dsa"])
    check_causal_model(spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": 0.3})}))


def test_what_no_training_step_could_use_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DSA.forward
    monkeypatch.setattr(
        DSA, "forward", lambda self, x, context: AttentionOutput(honest(self, x, context).out_BTD, x.mean(-1))
    )
    with pytest.raises(SpecError, match=r"attention dsa: forward returned aux_loss of shape \(2, 20\)"):
        check_calls(small(VARIANTS["dsa"]))


@pytest.mark.parametrize("change", ["renamed", "resized"])
def test_another_start_is_caught(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    class Other(SlidingWindow):
        def __init__(self, spec: RunSpec, layer: int) -> None:
            super().__init__(spec, layer)
            self.projections.query = torch.nn.Linear(spec.model.d_model, 8)
            if change == "renamed":
                del self.projections.query

    monkeypatch.setitem(registry._variants, "sliding_window", Other)
    with pytest.raises(AssertionError, match="query"):
        check_shared_start(small(VARIANTS["sliding_window"]))


# Planted defects. Each patches one thing that somebody could get wrong, and the contract must refuse it.


def leak_through_unmasked_slots(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The published defect: the mask is built from top-k indices alone, so rows with t + 1 < k see the future."""
    chosen = scores_BTS.masked_fill(~allowed, -torch.inf).topk(k, dim=-1).indices
    return torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, chosen, True)


def leak_through_unmasked_scores(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Top-k over all keys, the causal mask only afterwards: what the future scores decides what the past keeps."""
    chosen = scores_BTS.topk(k, dim=-1).indices
    kept = torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, chosen, True) & allowed
    return kept | torch.eye(kept.shape[-1], dtype=torch.bool)


@pytest.mark.parametrize("defect", [leak_through_unmasked_slots, leak_through_unmasked_scores])
def test_selection_leaks_are_caught(monkeypatch: pytest.MonkeyPatch, defect: Any) -> None:
    monkeypatch.setattr(masked, "selection_mask", defect)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(small(VARIANTS["dsa"]))


def test_the_unmasked_slots_leak_at_the_first_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "selection_mask", leak_through_unmasked_slots)
    with pytest.raises(AssertionError, match=r"output 0 changed by \S+ although only inputs after 0 did"):
        check_causal(small(VARIANTS["dsa"]))


def test_an_off_by_one_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(length: int, document_ids_BT: Tensor | None, device: torch.device) -> Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril(1)

    monkeypatch.setattr("dsabench.attention.base.allowed_keys", off_by_one)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(small(VARIANTS["dsa"]))


def test_a_mask_of_documents_that_forgets_time_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def same_document(length: int, document_ids_BT: Tensor | None, device: torch.device) -> Tensor:
        if document_ids_BT is None:
            return torch.ones(length, length, dtype=torch.bool).tril()
        return document_ids_BT[:, :, None] == document_ids_BT[:, None, :]

    monkeypatch.setattr("dsabench.attention.base.allowed_keys", same_document)
    with pytest.raises(AssertionError, match=r"looks ahead: .* of a window of two documents changed"):
        check_causal(small(VARIANTS["dsa"]))


class Leaky(DSA):
    """DSA plus one small defect; `defect(self, x, out)` returns what is added to the output."""

    defect: Any = None

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = super().forward(x_BTD, context)
        return AttentionOutput(output.out_BTD + type(self).defect(self, x_BTD, output.out_BTD), output.aux_loss)


def peek_every_seventh(self: Any, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
    ahead = torch.roll(x_BTD, -1, dims=1)
    every = (torch.arange(x_BTD.shape[1]) % 7 == 3) & (torch.arange(x_BTD.shape[1]) < x_BTD.shape[1] - 1)
    return ahead * every[:, None]


DEFECTS = {
    "mean over positions": lambda self, x, out: 0.1 * x.mean(1, keepdim=True),
    "a peek at t+1 every 7th position": peek_every_seventh,
    "in train mode only": lambda self, x, out: peek_every_seventh(self, x, out) if self.training else 0 * x,
    "of relative size 1e-3": lambda self, x, out: 1e-3 * torch.roll(x, -1, dims=1).cumsum(1) / 5,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_small_leaks_are_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Leaky, "defect", DEFECTS[name])
    monkeypatch.setitem(__import__("dsabench.attention.registry", fromlist=["_"])._variants, "dsa", Leaky)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(small(VARIANTS["dsa"]))


def test_randomness_drawn_from_a_stream_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaky, "defect", lambda self, x, out: 0.01 * torch.rand(x.shape[1], 1))
    monkeypatch.setitem(__import__("dsabench.attention.registry", fromlist=["_"])._variants, "dsa", Leaky)
    with pytest.raises(AssertionError, match=r"other rows|earlier calls"):
        check_rows_and_calls_are_independent(small(VARIANTS["dsa"]))


def test_an_output_that_depends_on_the_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: DSA, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = honest(self, x_BTD, context)
        if output.aux_loss is None or self.training:
            return output
        return AttentionOutput(output.out_BTD + 1e-3 * output.aux_loss, output.aux_loss)

    honest = DSA.forward
    monkeypatch.setattr(DSA, "forward", forward)
    with pytest.raises(AssertionError, match="whether a loss is asked for"):
        check_loss_is_no_output(small(VARIANTS["dsa"]))


def test_a_selection_that_is_not_reported_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_slot_short(selected_BTK: Tensor, **fields: Tensor) -> Selection:
        return Selection(selected_BTK[..., :-1], **fields)

    monkeypatch.setattr("dsabench.attention.base.Selection", one_slot_short)
    with pytest.raises(AssertionError, match=r"query 4 selects .* with k = 5"):
        check_capture(small(VARIANTS["dsa"]))


def test_a_leak_across_rows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaky, "defect", lambda self, x, out: 0.01 * x.mean(0, keepdim=True))
    monkeypatch.setitem(__import__("dsabench.attention.registry", fromlist=["_"])._variants, "dsa", Leaky)
    with pytest.raises(AssertionError, match="other rows"):
        check_rows_and_calls_are_independent(small(VARIANTS["dsa"]))


def test_a_leak_across_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dsabench.attention.base.allowed_keys",
        lambda length, ids, device: reference.allowed_keys(length, None, device),
    )
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(small(VARIANTS["dsa"]))


def test_expert_choice_routing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that choose their tokens among all positions let the future decide a token's experts."""
    honest = MixtureOfExperts._grouped

    def expert_choice(self: MixtureOfExperts, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor) -> Tensor:
        keep = x_ND[:, 0] >= x_ND[:, 0].median()
        return honest(self, x_ND, expert_NK, weight_NK) * keep[:, None]

    monkeypatch.setattr(MixtureOfExperts, "_grouped", expert_choice)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal_model(small(VARIANTS["dense"]))


def test_an_attached_indexer_input_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    with pytest.raises(AssertionError, match="the own loss reaches"):
        check_gradients(small(VARIANTS["dsa"]))


def test_scores_used_as_attention_bias_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The language-model loss must not reach the indexer: adding its scores to the output does."""
    honest = DSA.forward

    def biased(self: DSA, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = honest(self, x_BTD, context)
        bias = self.indexer(x_BTD, context).masked_fill(~context.allowed, 0).sum(-1, keepdim=True)
        return AttentionOutput(output.out_BTD + 0.01 * bias, output.aux_loss)

    monkeypatch.setattr(DSA, "forward", biased)
    with pytest.raises(AssertionError, match="the language-model loss reaches"):
        check_gradients(small(VARIANTS["dsa"]))


def test_an_untrained_indexer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reference.indexer_kl
    monkeypatch.setattr(reference, "indexer_kl", lambda scores, target, keep: honest(scores.detach(), target, keep) * 1)
    with pytest.raises(AssertionError, match="the own loss does not reach"):
        check_gradients(small(VARIANTS["dsa"]))


def test_a_seed_kept_in_python_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DSA.forward

    def seeded(self: DSA, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        mixed = honest(self, x_BTD, context)
        return AttentionOutput(mixed.out_BTD * (1 + self.spec.seed), mixed.aux_loss)

    monkeypatch.setattr(DSA, "forward", seeded)
    with pytest.raises(AssertionError, match="keeps the seed in Python"):
        check_the_seed_lives_in_tensors(small(VARIANTS["dsa"]))


def test_a_wrong_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = masked.attention
    monkeypatch.setattr(masked, "attention", lambda q, k, v, keep, scale: honest(q * 1.01, k, v, keep, scale))
    with pytest.raises(AssertionError, match="differs from dense"):
        check_dense_at_full_k(small(VARIANTS["dsa"]))
