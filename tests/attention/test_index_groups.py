"""Layers that share one indexer: which ones, its target, its gradients by every backend, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsabench.attention import IndexerSpec, with_backends
from dsabench.attention.base import Selection
from dsabench.attention.dsa import masked, reference
from dsabench.attention.dsa.layer import DSA
from dsabench.audit.contract_calls import rehearse
from dsabench.errors import SpecError
from dsabench.model.transformer import ForwardPass, Transformer, build, flops_per_window
from dsabench.spec.attention import AttentionSpec
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate

MODEL = {"d_model": 32, "n_layers": 5, "n_heads": 4, "d_ff": 16, "n_experts": 2, "experts_per_token": 1}
LENGTH, VOCAB = 12, 31


def spec_of(share_layers: int = 2, layers: list[Any] | None = None, **attention: Any) -> RunSpec:
    indexer = {"n_heads": 2, "head_dim": 8, "share_layers": share_layers, **attention.pop("indexer", {})}
    stack = {"kind": "dsa"} if layers is None else {"layers": layers}
    return validate(
        {"length": LENGTH, "model": MODEL, "attention": {**stack, "top_k": 4, "indexer": indexer, **attention}}
    )


def model_of(spec: RunSpec) -> Transformer:
    model = build(spec, VOCAB)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return model


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


def leaders(model: Transformer) -> list[int]:
    return [block.attention.leader for block in model.layers() if isinstance(block.attention, DSA)]


def test_one_layer_in_n_has_an_indexer_which_starts_as_it_does_alone() -> None:
    alone, shared = build(spec_of(1), VOCAB), build(spec_of(2), VOCAB)
    assert (leaders(alone), leaders(shared), leaders(build(spec_of(9), VOCAB))) == (
        [0, 1, 2, 3, 4],
        [0, 0, 2, 2, 4],
        [0] * 5,
    )
    ours, theirs = dict(shared.named_parameters()), dict(alone.named_parameters())
    gone = {name for name in theirs if ".indexer." in name and name.split(".")[1] in ("1", "3")}
    assert ours.keys() == theirs.keys() - gone and gone
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run_id(spec_of(1), {}) == run_id(validate({**spec_of(1).model_dump(exclude={"attention"}), "attention": {
        "kind": "dsa", "top_k": 4, "indexer": {"n_heads": 2, "head_dim": 8}}}), {})  # fmt: skip


def test_an_indexer_of_its_own_leaves_nothing_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsabench.attention.base.AttentionContext.leave", None)
    model_of(spec_of(1))(tokens())
    with pytest.raises(TypeError):
        model_of(spec_of(2))(tokens())


def test_groups_of_a_stack_are_made_of_layers_alike() -> None:
    other = {"kind": "dsa", "top_k": 3}
    assert leaders(build(spec_of(2, ["dense", "dsa", "dsa"]), VOCAB)) == [1, 1, 4]
    assert leaders(build(spec_of(2, ["dsa", "dense"]), VOCAB)) == [0, 0, 4]
    assert leaders(build(spec_of(2, ["dsa", other]), VOCAB)) == [0, 1, 0, 1, 4]


@pytest.mark.parametrize("backend", ["reference", "masked"])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_the_target_is_the_mean_of_the_layers(stage: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's loss has the gradient of the KL to the mean, and its value but for what the layers differ."""
    room: Any = reference if backend == "reference" and stage == "sparse" else masked
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    honest = room.indexer_kl

    def collected(scores: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        seen.append((scores, target, keep))
        loss: Tensor = honest(scores, target, keep)
        return loss

    monkeypatch.setattr(room, "indexer_kl", collected)
    model = model_of(spec_of(2, backend=backend))
    found = model(tokens(), ForwardPass(stage=stage)).attention_loss
    own = model.attention_own_parameters()
    grads = torch.autograd.grad(found, [*own.values()], retain_graph=True)
    expected, differ = torch.zeros(()), torch.zeros(())
    for group in (seen[0:2], seen[2:4], seen[4:5]):
        scores, _, keep = group[0]
        targets = torch.stack([target for _, target, _ in group])
        expected = expected + len(group) * reference.indexer_kl(scores, targets.mean(0), keep) / 5
        entropies = -torch.xlogy(targets, targets).sum(-1).mean((1, 2))
        mean = targets.mean(0)
        differ = differ + len(group) * (-torch.xlogy(mean, mean).sum(-1).mean() - entropies.mean()) / 5
    assert found.item() == pytest.approx((expected + differ).item(), abs=1e-5)
    assert differ.item() > 1e-3, "the layers' attentions differ"
    for (name, _), ours, theirs in zip(own.items(), grads, torch.autograd.grad(expected, [*own.values()]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("backend", ["reference", "masked"])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_a_group_captures_one_selection(stage: Any, backend: str) -> None:
    model, captured = model_of(spec_of(2, backend=backend)).eval(), dict[int, Selection]()
    model(tokens(), ForwardPass(stage=stage, capture=captured, losses=False))
    selected = [captured[layer].selected_BTK for layer in range(5)]
    assert torch.equal(selected[0], selected[1]) and torch.equal(selected[2], selected[3])
    assert not torch.equal(selected[0], selected[2])
    mass = [captured[layer].mass_BTS for layer in range(2)]
    assert mass[0] is not None and mass[1] is not None and not torch.equal(mass[0], mass[1])


def test_the_kernels_share_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of `triton` in Triton's interpreter are the reference's; a group selects once."""
    pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
    from dsabench.attention.dsa.triton import top_k, unions

    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)
    tiling = top_k.Tiling(queries=16, keys=16, programs=1, stride=4)
    monkeypatch.setattr(top_k, "Tiling", lambda **sizes: tiling)
    calls: list[str] = []

    def counted(room: Any, name: str) -> Callable[..., Any]:
        honest = getattr(room, name)
        return lambda *given, **named: calls.append(name) or honest(*given, **named)  # type: ignore[func-returns-value]

    monkeypatch.setattr(top_k, "top_k", counted(top_k, "top_k"))
    monkeypatch.setattr(unions, "share", counted(unions, "share"))
    ids = torch.tensor([[0] * 4 + [1] * 8, [0] * 12])
    for stage in ("dense", "sparse"):
        results = []
        for backend in ("reference", "triton"):
            model = model_of(spec_of(3, backend=backend))
            forward_pass = ForwardPass(stage=stage, document_ids_BT=ids)  # type: ignore[arg-type]
            loss, rest = model.training_losses(tokens(), tokens().roll(1, 1), forward_pass)
            assert rest.attention_loss is not None
            (loss + rest.attention_loss).backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results.append({"loss": loss.detach(), "KL": rest.attention_loss.detach(), **grads})
        expected, found = results
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = float((found[name] - value).norm() / value.norm().clamp(min=1e-3))
            assert error < 1e-5, (stage, name, error)
    assert (calls.count("top_k"), calls.count("share")) == (2, 2), "one of layers 0 to 2, one of 3 and 4"


def test_the_indexer_is_counted_once() -> None:
    model = spec_of(5)
    for stage in ("dense", "sparse"):
        one, five = (flops_per_window(build(spec, VOCAB), stage) for spec in (model, spec_of(1)))  # type: ignore[arg-type]
        for item, value in five.items():
            shared = item in ("indexer", "top-k", "indexer loss")
            assert one[item] == pytest.approx(value / 5 if shared else value), item
    assert math.isclose(
        5 * sum(p.numel() for p in build(model, VOCAB).attention_own_parameters().values()),
        sum(p.numel() for p in build(spec_of(1), VOCAB).attention_own_parameters().values()),
    )


def test_a_layer_that_follows_is_rehearsed_after_its_first() -> None:
    model = build(spec_of(2), VOCAB)
    rehearse(model, ["dense", "sparse"])
    assert all(p.grad is None for p in model.parameters())
    followers = [block.attention.follows for block in model.layers()]
    assert followers == [None, 0, None, 2, None]


def test_where_layers_do_not_share_it_is_refused() -> None:
    class Mine(AttentionSpec):
        kind: str = "mine"
        indexer: IndexerSpec = IndexerSpec()

    with pytest.raises(ValueError, match=r"indexer.share_layers = 2 is not for mine"):
        Mine(indexer=IndexerSpec(share_layers=2))
    with pytest.raises(SpecError, match=r"attention.indexer.share_layers = 0 is not accepted"):
        spec_of(0)
