"""The causality gate: it lets every shipped variant through, and catches each planted mistake."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import others_slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsabench.attention import registry
from dsabench.attention.base import AttentionContext, AttentionOutput
from dsabench.attention.dsa import masked
from dsabench.attention.dsa.layer import DSA
from dsabench.audit import causality, gate, small_models
from dsabench.audit.boundaries import boundaries_of
from dsabench.audit.findings import Audit
from dsabench.audit.small_models import small_copies
from dsabench.engine.device import resolve
from dsabench.errors import LeakError, SpecError
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import build
from dsabench.spec.run import RunSpec, validate

INDEXER = {"n_heads": 2, "head_dim": 8}
CPU = torch.device("cpu")


def spec_of(length: int = 80, seed: int = 42, allow_leak: bool = False, model: Any = None, **attention: Any) -> RunSpec:
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, **(model or {})}
    kind = attention or {"kind": "dsa", "top_k_ratio": 0.5, "indexer": INDEXER}
    values = {"length": length, "seed": seed, "attention": kind, "model": sizes, "engine": {"device": "cpu"}}
    return validate({**values, "allow_leak": allow_leak})


def audit(spec: RunSpec) -> Audit:
    found = gate.audit(spec, 101, resolve(spec.engine))
    if found.crash is not None:
        raise found.crash
    return found


pytestmark = pytest.mark.usefixtures("no_audit_remembered")


# What must pass.

SHIPPED: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "dsa": {"kind": "dsa", "indexer": INDEXER},
    "dsa top_k": {"kind": "dsa", "top_k": 5, "indexer": INDEXER},
    "dsa k=1": {"kind": "dsa", "top_k": 1, "indexer": INDEXER},
    "dsa k>L": {"kind": "dsa", "top_k": 500, "indexer": INDEXER},
    "dsa untrained, no warm-up": {"kind": "dsa", "indexer": {**INDEXER, "loss": "none", "warmup_share": 0.0}},
    "dsa reference": {"kind": "dsa", "top_k": 5, "backend": "reference", "indexer": INDEXER},
}


def test_every_registered_variant_is_among_them() -> None:
    shipped = {kind for kind in registry.kinds() if registry.variant(kind).__module__.startswith("dsabench.")}
    named = {spec["kind"] for spec in SHIPPED.values()}
    for kind in shipped - named:  # a new one with its own defaults
        assert not audit(spec_of(40, kind=kind)).leak, kind


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_variants_pass(name: str) -> None:
    found = audit(spec_of(**SHIPPED[name]))
    assert not found.leak, str(found.first)
    assert found.boundaries >= 11 and found.copies


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SHIPPED)),
    length=st.integers(2, 90),
    seed=st.integers(0, 2**32 - 1),
    n_kv_heads=st.sampled_from([None, 1, 2]),
    experts=st.sampled_from([(1, 1), (4, 2), (8, 1), (16, 3)]),
    dropout=st.sampled_from([0.0, 0.1, 0.6]),
)
def test_no_false_alarm(
    name: str, length: int, seed: int, n_kv_heads: int | None, experts: tuple[int, int], dropout: float
) -> None:
    model = {
        "n_kv_heads": n_kv_heads, "dropout": dropout, "n_experts": experts[0], "experts_per_token": experts[1],
        "n_layers": 1 + seed % 4,
    }  # fmt: skip
    spec = spec_of(length, seed, model=model, **SHIPPED[name])
    found = gate.audit_model(build(spec, 101), resolve(spec.engine))
    assert found.crash is None
    assert not found.leak, str(found.first)


def test_the_process_is_as_it_was() -> None:
    model = build(spec_of(), 101).eval()
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not gate.audit_model(model, resolve(model.spec.engine)).leak
    assert torch.equal(state, torch.get_rng_state()) and precision == torch.get_float32_matmul_precision()
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_runs_of_other_seeds_are_not_audited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(spec_of(seed=1))
    monkeypatch.setattr(gate, "audit_model", None)
    assert audit(spec_of(seed=2)) is first
    with pytest.raises(TypeError):
        audit(spec_of(seed=2, length=81))


# Planted leaks.


class Leaky(DSA):
    """DSA plus a small defect: `defect(self, x, context)` is added to its output."""

    defect: Callable[[Any, Tensor, AttentionContext], Tensor]

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.calls = 0
        self.batch_norm = nn.BatchNorm1d(spec.model.d_model, affine=False)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = super().forward(x_BTD, context)
        self.calls += 1
        added = type(self).defect(self, x_BTD, context)
        return AttentionOutput(output.out_BTD + added, output.aux_loss)


def plant(monkeypatch: pytest.MonkeyPatch, defect: Callable[[Any, Tensor, AttentionContext], Tensor]) -> None:
    monkeypatch.setattr(Leaky, "defect", staticmethod(defect), raising=False)
    monkeypatch.setitem(registry._variants, "dsa", Leaky)


def peek(x_BTD: Tensor) -> Tensor:
    """The next position's input, nothing at the last position."""
    return torch.cat([x_BTD[:, 1:], torch.zeros_like(x_BTD[:, :1])], dim=1)


def every_seventh(x_BTD: Tensor) -> Tensor:
    at_T = torch.arange(x_BTD.shape[1], device=x_BTD.device) % 7 == 3
    return peek(x_BTD) * at_T[:, None]


def normed(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
    y: Tensor = self.batch_norm.to(x_BTD.dtype)(x_BTD.flatten(0, 1)).view_as(x_BTD)
    return y


AHEAD: dict[str, tuple[Callable[[Any, Tensor, AttentionContext], Tensor], int]] = {
    "a mean over positions": (lambda self, x, c: 0.1 * x.mean(1, keepdim=True), 0),
    "a BatchNorm over positions": (normed, 0),
    "a peek at t+1 every 7th position": (lambda self, x, c: every_seventh(x), 3),
    "in train mode only": (lambda self, x, c: every_seventh(x) if self.training else 0 * x, 3),
    "in eval mode only": (lambda self, x, c: 0 * x if self.training else every_seventh(x), 3),
    "only with gradients on": (lambda self, x, c: every_seventh(x) if torch.is_grad_enabled() else 0 * x, 3),
    "in the warm-up stage only": (lambda self, x, c: every_seventh(x) * (c.stage == "dense"), 3),
    "of relative size 1e-3": (lambda self, x, c: 1e-3 * peek(x), 0),
    "of relative size 1e-3, at one position": (
        lambda self, x, c: 1e-3 * peek(x) * (torch.arange(x.shape[1]) == 20)[:, None], 20,
    ),
    "only in the last layer": (lambda self, x, c: peek(x) * (self.layer == 1), 0),
    "only at full size": (lambda self, x, c: 0.01 * every_seventh(x) * (x.shape[1] == 80), 3),
    "only the last token, seen from position 7": (
        lambda self, x, c: x[:, -1:] * (torch.arange(x.shape[1]) == 7)[:, None], 7,
    ),
    "behind a bias that starts at zero": (lambda self, x, c: peek(x) * self.indexer.key_norm.bias[0], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", AHEAD)
def test_planted_leaks_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    defect, position = AHEAD[name]
    plant(monkeypatch, defect)
    spec = spec_of(model={"n_layers": 2 if "last layer" in name else 1})
    with pytest.raises(LeakError, match=rf"attention dsa looks ahead: position {position} changes by .* when only "):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    found = audit(spec).first
    assert found is not None and found.leak.kind == "look-ahead" and found.leak.boundary >= position
    layer = 1 if "last layer" in name else 0
    assert found.leak.where == f"layer {layer}'s attention"
    assert found.full_size == (name != "behind a bias that starts at zero")
    for word in ("train", "eval"):
        if f"in {word} mode only" in name:
            assert {one.mode for one in audit(spec).findings} == {word}
    if "warm-up" in name:
        assert {one.stage for one in audit(spec).findings} == {"dense"}


def unmasked_slots(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The published defect: the mask is not applied again after top-k, so rows with t + 1 < k see the future."""
    chosen = scores_BTS.masked_fill(~allowed, -torch.inf).topk(k, dim=-1).indices
    return torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, chosen, True)


def unmasked_scores(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Top-k over all keys and the mask only after it: future scores decide what the past keeps."""
    kept = torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, scores_BTS.topk(k, dim=-1).indices, True)
    return kept & allowed | torch.eye(kept.shape[-1], dtype=torch.bool)


@pytest.mark.parametrize("attention", [{"top_k": 5}, {"top_k": 70}], ids=str)
@pytest.mark.parametrize("defect", [unmasked_slots, unmasked_scores])
def test_a_missing_mask_is_caught(monkeypatch: pytest.MonkeyPatch, defect: Any, attention: dict[str, Any]) -> None:
    monkeypatch.setattr(masked, "selection_mask", defect)
    found = audit(spec_of(kind="dsa", indexer=INDEXER, **attention)).first
    assert found is not None and found.full_size and (found.leak.kind, found.stage) == ("look-ahead", "sparse")
    if defect is unmasked_slots:
        assert found.leak.position == 0


def test_a_leak_below_k_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 1..k-2 see one key of the future, rows from k - 1 on none."""
    honest = masked.selection_mask

    def defect(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
        t = torch.arange(scores_BTS.shape[-1])
        ahead = (t[None, :] == t[:, None] + 1) & (t[:, None] < k - 1) & (t[:, None] > 0)
        return honest(scores_BTS, allowed, k) | ahead

    monkeypatch.setattr(masked, "selection_mask", defect)
    found = audit(spec_of(kind="dsa", top_k=6, indexer=INDEXER)).first
    assert found is not None and (found.leak.position, found.full_size) == (1, True)


def test_an_off_by_one_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dsabench.attention.base.allowed_keys",
        lambda length, ids, device: torch.ones(length, length, dtype=torch.bool).tril(1),
    )
    found = audit(spec_of()).first
    assert found is not None and (found.leak.position, found.leak.boundary) == (0, 0)


@pytest.mark.parametrize("path", ["_grouped", "_side_by_side"])
def test_expert_choice_routing_is_caught(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Experts that choose their tokens among all positions let the future decide a token's experts."""
    honest = getattr(MixtureOfExperts, path)

    def expert_choice(self: MixtureOfExperts, x_ND: Tensor, *routes: Tensor) -> Tensor:
        chosen: Tensor = x_ND[:, 0] >= x_ND[:, 0].median()
        out: Tensor = honest(self, x_ND, *routes) * chosen[:, None]
        return out

    monkeypatch.setattr(MixtureOfExperts, path, expert_choice)
    found = audit(spec_of(kind="dense")).first
    assert found is not None and found.leak.kind == "look-ahead" and found.leak.where.endswith("experts")


def test_a_norm_over_positions_in_the_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.RMSNorm, "forward", lambda self, x: x / x.square().mean((1, 2), keepdim=True).sqrt())
    found = audit(spec_of(kind="dense")).first
    assert found is not None and (found.leak.kind, found.leak.position) == ("look-ahead", 0)


def test_a_leak_across_rows_is_told_from_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda self, x, context: 0.01 * x.mean(0, keepdim=True))
    spec = spec_of()
    with pytest.raises(LeakError, match="dsa depends on the other rows of its batch: position 0 changes"):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    assert {one.leak.kind for one in audit(spec).findings} == {"rows"}


CALLS = {
    "torch": lambda self, x, context: 0.01 * torch.rand(x.shape[1], 1, dtype=x.dtype),
    "python": lambda self, x, context: random.random() * x,
    "state": lambda self, x, context: x * (self.calls % 97),
}


@pytest.mark.parametrize("name", CALLS)
def test_chance_and_state_are_told_from_look_ahead(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plant(monkeypatch, CALLS[name])
    spec = spec_of()
    with pytest.raises(LeakError, match="dsa gives another output at the next call"):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    assert {one.leak.kind for one in audit(spec).findings} == {"calls"}


def test_trained_weights_open_a_leak_that_initial_ones_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that is exactly zero whatever its bias: the initial model and the small copies are blind to it."""
    plant(monkeypatch, lambda self, x, context: peek(x) * torch.relu(self.indexer.key_norm.weight[0] - 50))
    model = build(spec_of(), 101)
    execution = resolve(model.spec.engine)
    assert not gate.audit_model(model, execution).leak
    with torch.no_grad():
        for block in model.layers():
            block.attention.indexer.key_norm.weight[0] = 51.0  # type: ignore[union-attr,operator]
    found = gate.audit_model(model, execution).first
    assert found is not None and found.full_size and found.leak.position == 0


# A gate made weaker lets leaks through: each part of it is needed.


@pytest.mark.parametrize(
    ("name", "weaken"),
    [
        ("in train mode only", lambda patch: patch.setattr(gate, "_circumstances", lambda spec: [("eval", "sparse")])),
        ("in eval mode only", lambda patch: patch.setattr(gate, "_circumstances", lambda spec: [("train", "sparse")])),
        ("in the warm-up stage only", lambda p: p.setattr(gate, "_circumstances", lambda spec: [("eval", "sparse")])),
        ("only at full size", lambda patch: patch.setattr(gate, "_audit_full", lambda *a, **k: (80, 0, []))),
        ("behind a bias that starts at zero", lambda patch: patch.setattr(gate, "randomise", lambda model: model)),
        ("of relative size 1e-3, at one position", lambda p: p.setattr(gate, "_audit_small", lambda *a: ("none", []))),
    ],
)  # fmt: skip
def test_a_weaker_gate_misses_it(monkeypatch: pytest.MonkeyPatch, name: str, weaken: Any) -> None:
    plant(monkeypatch, AHEAD[name][0])
    monkeypatch.setattr(gate, "EVERYWHERE", 0)
    weaken(monkeypatch)
    assert not audit(spec_of()).leak


WAYS: dict[str, tuple[Callable[[Any, Tensor, AttentionContext], Tensor], str, bool]] = {
    "after its first steps": (
        lambda self, x, c: every_seventh(x) if c.step is not None and int(c.step) > 20 else 0 * x, "train", True,
    ),
    "in its first steps": (
        lambda self, x, c: every_seventh(x) if c.step is not None and int(c.step) < 5 else 0 * x, "train", False,
    ),
    "where evaluation looks for no gradients": (
        lambda self, x, c: every_seventh(x) if torch.is_inference_mode_enabled() else 0 * x, "eval", True,
    ),
    "in a batch of one": (lambda self, x, c: every_seventh(x) if len(x) == 1 else 0 * x, "", False),
    "by chance": (
        lambda self, x, c: every_seventh(x) if self.training and float(torch.rand(())) < 0.3 else 0 * x, "train", False,
    ),
    "in packed windows": (lambda self, x, c: 0 * x if c.document_ids_BT is None else every_seventh(x), "", False),
}  # fmt: skip
"""A leak, in which mode alone it shows, and whether at full size."""


@pytest.mark.parametrize("name", WAYS)
def test_leaks_of_some_calls_only_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    defect, mode, full_size = WAYS[name]
    plant(monkeypatch, defect)
    spec = spec_of()
    if "packed" in name:
        assert not audit(spec).leak
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": "documents"})})
        monkeypatch.setattr(gate, "rehearse", lambda *given_: None)  # which looks at other things
    with pytest.raises(LeakError, match=r"attention dsa looks ahead: position [0-9]+ changes by "):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    findings = audit(spec).findings
    assert {one.mode for one in findings} == ({mode} if mode else {"train", "eval"})
    assert all(one.leak.kind == "look-ahead" for one in findings)
    assert any(one.full_size for one in findings) == (full_size or "packed" in name)


@pytest.mark.parametrize(
    "way", others_slow([lambda x: torch.roll(x, 1, 0), lambda x: torch.roll(x, -1, 0), lambda x: x.cumsum(0)], 0)
)
def test_a_leak_from_a_neighbouring_row_is_one(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    plant(monkeypatch, lambda self, x, context: 0.1 * way(x))
    for length in (80, 600):
        found = audit(spec_of(length)).findings
        assert {one.leak.kind for one in found} == {"rows"} and {one.full_size for one in found} == {True, False}


def test_rounding_of_fp32_inside_a_copy_in_fp64_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution by FFT, padded as it must be: rounding carries a trace of all positions to all others."""

    def convolved(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        n = 2 * x_BTD.shape[1]
        kernel = torch.exp(-0.1 * torch.arange(x_BTD.shape[1], dtype=torch.float32))[:, None]
        spectrum = torch.fft.rfft(x_BTD.float(), n=n, dim=1) * torch.fft.rfft(kernel, n=n, dim=0)
        return torch.fft.irfft(spectrum, n=n, dim=1)[:, : x_BTD.shape[1]].to(x_BTD.dtype)

    plant(monkeypatch, convolved)
    for length in (33, 80, 500):
        found = audit(spec_of(length))
        assert not found.leak, str(found.first)


# Sizes.


def test_boundaries_cover_eight_in_a_row_and_the_edges_of_k() -> None:
    spec = spec_of()
    for length in (2, 3, 9, 16, 64, 69, 70, 256, 4096):
        for k in (None, 1, 5, length // 2, length, 3 * length):
            consecutive, others = boundaries_of(length, k, spec)
            assert consecutive == list(range(consecutive[0], consecutive[0] + min(8, length - 1)))
            tried = {*consecutive, *others}
            assert {0, length - 2} <= tried <= set(range(length - 1))
            assert tried >= {t for t in ([] if k is None else [k - 1, k, k + 1]) if t <= length - 2}
            assert (consecutive, others) == boundaries_of(length, k, spec)
            if length >= 128:
                assert any(t % 64 == 63 for t in consecutive)


@pytest.mark.parametrize("length", [1024, 1000, 4096])
def test_boundaries_lie_at_the_ends_of_blocks_of_many_lengths(length: int) -> None:
    consecutive, others = boundaries_of(length, 128, spec_of())
    ends = {t + 1 for t in (*consecutive, *others)}
    blocks = [*range(40, 130, 8), 40, 50, 60, 100, 125, 144, 160, 192, 200, 224, 240, 250, 256, 288, 320, 384, 400, 512]
    for block in set(blocks) - {88, 104, 136}:  # of 11 and 13
        assert any(end % block == 0 for end in ends), block
    own = spec_of(kind="block", block_size=37, top_k=74)
    assert any((t + 1) % 37 == 0 and t > 37 for t in boundaries_of(length, 74, own)[1])


def test_small_copies_keep_the_attention_and_try_k_both_ways() -> None:
    model = {"d_model": 64, "n_heads": 8, "n_kv_heads": 2}
    found = small_copies(spec_of(256, model=model, kind="dsa", top_k=16, indexer=INDEXER), CPU)
    assert [(copy.length, copy.attention.n_selected(copy.length)) for copy in found] == [(32, 2), (32, 16)]
    assert [(copy.model.n_heads, copy.model.kv_heads) for copy in found] == [(4, 1), (4, 1)]
    (copy,) = small_copies(spec_of(256), CPU)
    assert (copy.length, copy.attention.n_selected(32), copy.model.n_layers) == (32, 16, 1)
    assert [c.length for c in small_copies(spec_of(5), CPU)] == [5]


def test_an_attention_that_takes_no_short_window_is_tried_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_40(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        assert x_BTD.shape[1] == 40, "windows of 40 tokens"
        return 0 * x_BTD

    plant(monkeypatch, only_40)
    assert audit(spec_of(40)).copies == ("L=40 k=20 fp64",)  # narrow, but as long as the run
    gate.forget()
    monkeypatch.setattr(small_models, "LENGTHS", (32,))
    found = audit(spec_of(40))
    assert not found.leak and found.copies == () and found.boundaries == 39


def test_without_fp64_small_copies_are_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda self, x, context: 0 * (x @ torch.ones(x.shape[-1], 1)))
    assert audit(spec_of()).copies == ("L=32 k=16 fp32",)
    plant(monkeypatch, lambda self, x, context: 1e-3 * peek(x) @ torch.eye(x.shape[-1]))
    gate.forget()
    found = audit(spec_of()).first
    assert found is not None and found.leak.position == 0


def test_in_long_windows_no_loss_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take two thirds of the time; the small copies and the rehearsal do ask, and train mode in short ones."""
    asked: dict[int, set[bool]] = {}
    honest = DSA.forward

    def forward(self: DSA, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = honest(self, x_BTD, context)
        asked.setdefault(x_BTD.shape[1], set()).add(output.aux_loss is not None)
        return output

    monkeypatch.setattr(DSA, "forward", forward)
    monkeypatch.setattr(gate, "LOSSES", 199)
    audit(spec_of(200))
    assert len(asked) > 1
    assert asked.pop(200) == {False}
    assert all(True in found for found in asked.values()), asked
    audit(spec_of(199))
    assert asked[199] == {True, False}


def test_windows_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        if x_BTD.shape[1] > 160:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1 * every_seventh(x_BTD)

    plant(monkeypatch, hungry)
    found = audit(spec_of(300))
    assert found.length == 150 and found.first is not None and found.first.leak.position == 3


def test_no_memory_for_the_audit_is_not_the_attentions_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    plant(monkeypatch, hungry)
    spec = spec_of()
    found = gate.refuse_leaks(spec, 101, resolve(spec.engine))
    assert isinstance(found.crash, torch.OutOfMemoryError), "the runner knows what to do with it"


def test_what_is_no_attention_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DSA, "forward", lambda self, x_BTD, context: x_BTD)
    with pytest.raises(SpecError, match="attention dsa: forward returned Tensor; an AttentionOutput is expected"):
        audit(spec_of())
    monkeypatch.setattr(DSA, "forward", lambda self, x_BTD, context: AttentionOutput(x_BTD[:, :-1]))
    with pytest.raises(SpecError, match=r"returned out of shape \(2, 79, 16\) for an input of \(2, 80, 16\)"):
        audit(spec_of())


def test_nan_is_called_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda self, x, c: peek(x).sum(-1, keepdim=True).sub(1).log())
    with pytest.raises(SpecError, match="attention dsa: forward returned NaN or infinity, first at position 0"):
        audit(spec_of())


def test_a_crash_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        raise ZeroDivisionError

    plant(monkeypatch, broken)
    spec = spec_of()
    found = gate.audit(spec, 101, resolve(spec.engine))
    assert found.record()["result"] == "crashed"
    assert isinstance(found.crash, SpecError) and "forward raised ZeroDivisionError" in str(found.crash)


def test_relative_change() -> None:
    base = torch.tensor([[[1.0, -1.0], [2.0, 2.0], [0.0, 0.0]]])
    changed = base.clone()
    changed[0, :, 0] += torch.tensor([0.5, 0.5, 0.5])
    found = causality.relative_change(base, changed)[0].tolist()
    layer = math.sqrt((1 + 4 + 0) / 3)
    assert found == pytest.approx([0.5, 0.25, 0.5 / (0.1 * layer)])
    assert causality.relative_change(0 * base, changed - base)[0].tolist() == pytest.approx([0.5] * 3)
    changed[0, 1, 1] = torch.nan
    assert math.isnan(causality.relative_change(base, changed)[0, 1])
