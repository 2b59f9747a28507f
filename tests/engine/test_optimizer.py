"""Schedule, stages, optimizer groups, and clipping apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adamw import train_beside_adamw
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.engine.loop import segments
from dsabench.engine.optimizer import Optimizer, learning_rate_factor, stage_at
from dsabench.model.transformer import Transformer, build
from dsabench.spec.run import RunSpec, validate

TINY = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8}


def spec_of(**fields: Any) -> RunSpec:
    attention = {"kind": "dsa", "top_k": 4, "indexer": {"n_heads": 2, "head_dim": 4, "learning_rate": 5e-3}}
    return validate({"length": 16, "model": TINY, "attention": attention, **fields})


def test_the_schedule_by_its_values() -> None:
    spec = spec_of(train={"steps": 110, "warmup_steps": 10})
    assert learning_rate_factor(spec, 0) == pytest.approx(0.1)
    assert learning_rate_factor(spec, 9) == pytest.approx(1.0)
    assert learning_rate_factor(spec, 59) == pytest.approx(0.55)
    assert learning_rate_factor(spec, 109) == pytest.approx(0.1)
    constant = spec_of(train={"steps": 110, "warmup_steps": 0, "schedule": "constant"})
    assert {learning_rate_factor(constant, step) for step in range(110)} == {1.0}


def test_stages_of_a_conversion_have_schedules_of_their_own() -> None:
    """The sparse stage's is that of a run of its length; a warm-up that is not frozen, or not of a trained model, is
    part of the one schedule."""
    indexer = {"n_heads": 2, "head_dim": 4, "warmup_steps": 30, "freeze_backbone": True}
    start = {"parent": {"attention.kind": "dense"}}
    train = {"steps": 140, "warmup_steps": 10}

    def factors(spec: RunSpec) -> list[float]:
        return [learning_rate_factor(spec, step) for step in range(spec.train.steps)]

    def spec(start: dict[str, Any] | None, indexer: dict[str, Any] = indexer) -> RunSpec:
        return spec_of(attention={"kind": "dsa", "top_k": 4, "indexer": indexer}, start=start, train=train)

    found = factors(spec(start))
    assert found[:30] == [*((i + 1) / 10 for i in range(10)), *[1.0] * 20]
    assert found[30:] == factors(spec_of(train={"steps": 110, "warmup_steps": 10}))
    whole = factors(spec_of(train=train))
    assert factors(spec(None)) == whole
    assert factors(spec(start, {**indexer, "freeze_backbone": False})) == whole


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 300),
    log=st.integers(1, 50),
    evaluate=st.integers(1, 100),
    save=st.integers(1, 100),
    share=st.floats(0, 0.99),
    data=st.data(),
)
def test_segments_cover_every_step_once_in_one_stage(
    steps: int, log: int, evaluate: int, save: int, share: float, data: st.DataObject
) -> None:
    spec = validate(
        {
            "attention": {"kind": "dsa", "indexer": {"warmup_share": share}},
            "train": {"steps": steps, "log_every": log, "eval_every": evaluate},
        }
    )
    start = data.draw(st.integers(0, steps))
    cut = list(segments(spec, start, save))
    covered = [step for first, end, _ in cut for step in range(first, end)]
    assert covered == list(range(start, steps))
    for first, end, stage in cut:
        assert {stage_at(spec, step) for step in range(first, end)} == {stage}
    ends = {end for _, end, _ in cut}
    for every in (log, evaluate, save):
        assert {step for step in range(start + 1, steps) if step % every == 0} <= ends


def test_dense_has_no_warm_up_stage_and_dsa_a_fifth() -> None:
    dsa, dense = spec_of(), spec_of(attention={"kind": "dense"})
    assert [stage_at(dsa, step) for step in (0, 199, 200, 999)] == ["dense", "dense", "sparse", "sparse"]
    assert {stage_at(dense, step) for step in range(1000)} == {"sparse"}


def model_and_optimizer(spec: RunSpec) -> tuple[Transformer, Optimizer]:
    model = build(spec, 40)
    return model, Optimizer(model, spec, torch.device("cpu"))


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    model, optimizer = model_and_optimizer(spec_of())
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.groups:
        for parameter in group.parameters:
            assert names[parameter] not in seen
            seen[names[parameter]] = (group.peak, group.weight_decay)
    assert seen.keys() == set(names.values())
    for name, (peak, decay) in seen.items():
        assert peak == (5e-3 if "indexer" in name else 1e-3), name
        matrix = "norm" not in name and name != "embedding.weight" and not name.endswith("bias")
        assert decay == (0.1 if matrix else 0.0), name


def test_steps_have_the_bits_of_pytorchs_adamw() -> None:
    train_beside_adamw(spec_of(train={"grad_clip": None, "beta2": 0.97, "weight_decay": 0.3}), torch.device("cpu"))


def test_indexer_and_backbone_are_clipped_apart() -> None:
    """A huge indexer gradient must not shrink the backbone's step, nor the other way round."""
    model, optimizer = model_and_optimizer(spec_of(train={"grad_clip": 1.0}))
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 1e6 if "indexer" in name else 1e-4)
    backbone_before = torch.cat([p.grad.flatten() for p in optimizer.backbone if p.grad is not None])
    norm, own_norm = optimizer.step()
    assert float(norm) == pytest.approx(float(backbone_before.norm()), rel=1e-5)
    assert float(norm) < 1.0 < float(own_norm)
    clipped = torch.cat([p.grad.flatten() for p in optimizer.own if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(1.0, rel=1e-4)
    after = torch.cat([p.grad.flatten() for p in optimizer.backbone if p.grad is not None])
    assert torch.equal(after, backbone_before)


def test_optimizer_state_survives_a_round_trip() -> None:
    """Two steps, save, one more step: the same bits as saved, loaded into a fresh optimizer, and stepped."""
    models = [model_and_optimizer(spec_of()) for _ in range(2)]

    def step(model: Transformer, optimizer: Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.set_rate(torch.ones(1))
        optimizer.step()

    (one, one_optimizer), (other, other_optimizer) = models
    for seed in (1, 2):
        step(one, one_optimizer, seed)
    other.load_state_dict(one.state_dict())
    other_optimizer.load_state({name: value.clone() for name, value in one_optimizer.state()})
    step(one, one_optimizer, 3)
    step(other, other_optimizer, 3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
