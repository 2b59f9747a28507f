"""A profile of real steps, with a slow part planted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from dsabench.attention import registry
from dsabench.attention.base import Attention, AttentionContext, AttentionOutput, Stage
from dsabench.data import TokenData, prepare
from dsabench.engine.device import Execution
from dsabench.engine.profiling.attribution import Split
from dsabench.engine.profiling.profiler import profile_cases, trace_steps
from dsabench.engine.profiling.result import Case, Profile, cases_of
from dsabench.engine.profiling.trace import EAGER, read
from dsabench.ops import profile_labels
from dsabench.ops.profile_labels import PREFIX, part
from dsabench.spec.attention import AttentionSpec
from dsabench.spec.run import RunSpec, validate

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)


MODEL = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 32, "n_experts": 2, "experts_per_token": 1}


DSA = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.25}}


def spec_of(corpus: Path, attention: dict[str, Any] = DSA, **model: Any) -> RunSpec:
    return validate(
        {
            "length": 32,
            "attention": attention,
            "model": {**MODEL, **model},
            "data": {"source": f"path:{corpus}", "vocab_size": 300, "val_share": 0.25},
            "train": {"steps": 40, "tokens_per_step": 256},
        }
    )


def traced(spec: RunSpec, folder: Path, stage: Stage = "sparse") -> Split:
    data: TokenData = prepare(spec.data)
    return trace_steps(Case(spec, stage), data, CPU, folder / "trace.json.gz")


# Real steps on the CPU


def test_every_part_of_a_dsa_step_is_there_and_together_they_are_the_busy_time(corpus: Path, tmp_path: Path) -> None:
    found = traced(spec_of(corpus), tmp_path)
    assert found.source == "operators"
    named = {"attention", "indexer", "top-k", "indexer loss", "experts", "rest of the model", "logits and loss"}
    assert set(found.parts) == named | {"optimizer", "other"}
    assert sum(found.parts.values()) == pytest.approx(found.busy_share)
    assert 0.2 < found.busy_share < 1
    assert found.parts["other"] < 0.1
    for name in named - {"top-k"}:
        assert 0 < found.backward[name] < found.parts[name], name
    for name in ("top-k", "optimizer"):  # no gradient passes either
        assert found.backward[name] == 0, name


@pytest.mark.slow
def test_the_dense_stage_selects_nothing(corpus: Path, tmp_path: Path) -> None:
    found = traced(spec_of(corpus), tmp_path, "dense")
    assert "top-k" not in found.parts
    assert found.parts["indexer loss"] > 0


@pytest.mark.slow
def test_experts_that_are_64_times_as_wide_take_the_step_forward_and_backward(corpus: Path, tmp_path: Path) -> None:
    narrow, wide = (traced(spec_of(corpus, d_ff=width), tmp_path) for width in (32, 64 * 32))
    # The optimizer has 64 times as much to do too: what is told apart is the model's parts.
    for before, after in ((narrow.parts, wide.parts), (narrow.backward, wide.backward)):
        assert after["experts"] / after["attention"] > 5 * before["experts"] / before["attention"]
        assert after["experts"] == max(share for part, share in after.items() if part != "optimizer")
    assert 0.3 * wide.parts["experts"] < wide.backward["experts"] < 0.95 * wide.parts["experts"]


class Wait(torch.autograd.Function):
    """The identity; takes 20 ms forward and 40 ms backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        time.sleep(0.04)
        return grads[0]


class SlowSpec(AttentionSpec):
    kind: Literal["slow"] = "slow"


class Slow(Attention):
    """A plugin that knows nothing of parts, and does its work in a custom autograd function."""

    spec_class = SlowSpec

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        _, _, v_BTGD = self.projections.heads(x_BTD, context)
        return AttentionOutput(Wait.apply(self.projections.merge(v_BTGD)))

    def flops(self, stage: Stage) -> dict[str, float]:
        return {"made up": 1e6}


@pytest.fixture
def slow(own_registry: None) -> None:
    registry.register(Slow)


@pytest.mark.usefixtures("slow")
def test_all_of_an_unknown_attention_is_attention(corpus: Path, tmp_path: Path) -> None:
    spec = spec_of(corpus, {"kind": "slow"})
    found = traced(spec, tmp_path)
    ms = {name: share * found.wall_ms for name, share in found.parts.items()}
    assert not {"indexer", "top-k", "indexer loss"} & set(ms)
    assert ms["attention"] == pytest.approx(2 * 60, rel=0.5)  # two layers
    assert found.backward["attention"] == pytest.approx(2 / 3 * found.parts["attention"], rel=0.2)
    assert found.parts["attention"] > 0.5  # the rest takes longer on a busy machine
    profile = profiled(spec, tmp_path)
    assert {one.part: one.flops for one in profile.parts}["attention"] == 2 * 1e6 * spec.batch_size


def profiled(spec: RunSpec, folder: Path, stage: Stage = "sparse") -> Profile:
    return profile_cases([Case(spec, stage)], folder, CPU, steps=3)[0]


@pytest.mark.slow
def test_parts_and_idle_are_the_step(corpus: Path, tmp_path: Path) -> None:
    profile = profiled(spec_of(corpus), tmp_path)
    assert sum(one.ms for one in profile.parts) + profile.idle_ms == pytest.approx(profile.step_ms)
    assert sum(one.share for one in profile.parts) == pytest.approx(profile.busy_share)
    assert sum(one.flops or 0 for one in profile.parts) == pytest.approx(profile.flops_per_step)
    assert profile.step_ms_p20 <= profile.step_ms <= profile.step_ms_p80
    assert (profile.blocks, profile.steps_per_block) == (3, 1)
    assert profile.tokens_per_second == pytest.approx(256e3 / profile.step_ms)
    assert profile.trace == str(tmp_path / "dsa-L32" / "trace.json.gz")
    names = {event["name"] for event in read(Path(profile.trace))}
    assert {EAGER, PREFIX + "indexer", PREFIX + "optimizer"} <= names


@pytest.mark.slow
def test_recomputed_blocks_are_still_split(corpus: Path, tmp_path: Path) -> None:
    spec = spec_of(corpus)
    again = RunSpec.model_validate({**spec.model_dump(), "engine": {"recompute": True}})
    found, plain = traced(again, tmp_path), traced(spec, tmp_path)
    assert set(found.parts) == set(plain.parts)
    assert found.backward["top-k"] > 0  # once more, in the backward pass
    assert found.parts["other"] < 0.1


def test_an_attention_without_a_dense_stage_is_one_case(corpus: Path) -> None:
    specs = [spec_of(corpus), spec_of(corpus, {"kind": "dense"})]
    for stage, names in (
        ("sparse", ["dsa-L32", "dense-L32"]),
        ("dense", ["dsa-L32-dense-stage", "dense-L32"]),
        ("both", ["dsa-L32-dense-stage", "dsa-L32", "dense-L32"]),
    ):
        assert [case.name for case in cases_of(specs, stage)] == names


# The ranges


def test_a_part_is_nothing_while_nobody_profiles_and_in_compiled_code() -> None:
    assert part("indexer") is part("experts")

    @torch.compile(backend="eager", fullgraph=True)
    def double(x: Tensor) -> Tensor:
        with part("experts"):
            return x * 2

    torch._dynamo.utils.counters.clear()
    assert double(torch.ones(2)).sum() == 4
    with profile_labels.named():
        assert part("indexer") is not part("experts")
        assert double(torch.ones(2)).sum() == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # not compiled again
