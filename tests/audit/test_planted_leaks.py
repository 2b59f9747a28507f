"""Planted leaks: every one is refused, and told from chance, state and other rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from audited import INDEXER, audit, every_seventh, normed, peek, plant, spec_of
from cases import others_slow
from torch import Tensor, nn

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import masked
from dsabench.audit import gate
from dsabench.engine.device import resolve
from dsabench.errors import LeakError
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import build

pytestmark = pytest.mark.usefixtures("no_audit_remembered")

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
