"""Which keys each selector without an indexer keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench.attention.base import AttentionContext, Selection
from dsabench.attention.registry import variant
from dsabench.engine.device import Execution
from dsabench.engine.memory_plan import MemoryPlan
from dsabench.engine.slot import Slot
from dsabench.model.transformer import ForwardPass, build, flops_per_window
from dsabench.spec.run import RunSpec, validate

KINDS = ("sliding_window", "sink_window", "strided", "random", "oracle", "moba")
MODEL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "n_experts": 2}


def spec_of(kind: str, length: int, k: int, **fields: Any) -> RunSpec:
    return validate({"length": length, "attention": {"kind": kind, "top_k": k, **fields}, "model": MODEL})


def selections(spec: RunSpec, layer: int = 0, step: int | None = None, rows: int = 1) -> Selection:
    torch.manual_seed(0)
    module = variant(spec.attention.kind)(spec, layer)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    context = AttentionContext(
        torch.arange(spec.length), "sparse", None, {}, None if step is None else torch.tensor([step])
    )
    module(torch.randn(rows, spec.length, 16), context)
    assert context.capture is not None
    return context.capture[layer]


def sets(selected_TK: Tensor) -> list[set[int]]:
    return [{key for key in row if key >= 0} for row in selected_TK.tolist()]


def keys(kind: str, length: int, k: int, **fields: Any) -> list[set[int]]:
    return sets(selections(spec_of(kind, length, k, **fields)).selected_BTK[0])


sizes = st.tuples(st.integers(2, 40), st.integers(1, 45))


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_a_window_is_the_nearest(size: tuple[int, int]) -> None:
    length, k = size
    assert keys("sliding_window", length, k) == [set(range(max(0, t - k + 1), t + 1)) for t in range(length)]


@given(sizes, st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_sinks_and_the_nearest(size: tuple[int, int], wanted: int) -> None:
    length, k = size
    n = min(wanted, min(k, length) - 1)
    for t, found in enumerate(keys("sink_window", length, k, n_sinks=wanted)):
        first = set(range(min(n, t + 1)))
        assert first <= found
        assert t in found
        others = sorted(found - first)
        assert others == list(range(t + 1 - len(others), t + 1))
        assert len(found) == min(k, t + 1)


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_a_stride_reaches_the_whole_past(size: tuple[int, int]) -> None:
    length, k = size
    stride = -(-length // min(k, length))
    for t, found in enumerate(keys("strided", length, k)):
        assert set(range(t, -1, -stride)) <= found
        assert len(found) == min(k, t + 1)


def test_the_oracle_holds_the_most_mass() -> None:
    selection = selections(spec_of("oracle", 40, 7), rows=3)
    best = selection.mass_BTS.topk(7, dim=-1).values.sum(-1)
    held = selection.mass_BTS.gather(-1, selection.selected_BTK.clamp(min=0)) * (selection.selected_BTK >= 0)
    assert torch.allclose(held.sum(-1), best, atol=1e-6)


@given(sizes, st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_blocks_are_whole(size: tuple[int, int], block: int) -> None:
    length, k = size
    block = min(block, k, length)
    for t, found in enumerate(keys("moba", length, k, block_size=block)):
        own = set(range(t // block * block, t + 1))
        assert own <= found
        assert len(found) == min(k, t + 1)
        whole = [b for b in range(t // block) if set(range(b * block, (b + 1) * block)) <= found]
        assert len(whole) >= min(max(1, min(k, length) // block) - 1, t // block)


def test_a_block_is_chosen_by_its_mean_key() -> None:
    spec = spec_of("moba", 48, 16, block_size=8)
    module = variant("moba")(spec, 0)
    q = torch.ones(1, 48, 2, 8)
    k = torch.zeros(1, 48, 2, 8)
    k[:, 16:24] = 1.0  # the third block
    k[:, 0:1] = 3.0  # one high key in the first: a lower mean
    scores = module.scores(q, k, AttentionContext(torch.arange(48)))  # type: ignore[operator]
    assert (scores[0, 47] == 1).nonzero().flatten().tolist() == [*range(16, 24), *range(40, 48)]


def test_random_is_new_in_every_step_and_layer_and_fixed_in_evaluation() -> None:
    spec = spec_of("random", 64, 16)

    def chosen(layer: int, step: int | None) -> Tensor:
        return selections(spec, layer, step).selected_BTK[0].sort(-1).values

    found = [chosen(0, None), chosen(1, None), chosen(0, 1), chosen(0, 2), chosen(1, 1)]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not torch.equal(one, other)
    assert torch.equal(chosen(0, None), chosen(0, None))
    assert torch.equal(chosen(0, None), chosen(0, 0))


def test_random_is_uniform() -> None:
    """Of 200 steps: every key of query 63 is kept a quarter of the time, within five standard deviations."""
    spec = spec_of("random", 64, 16)
    counts = torch.zeros(64)
    for step in range(200):
        counts[selections(spec, 0, step).selected_BTK[0, 63]] += 1
    assert (counts - 50).abs().max() < 5 * (200 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_stages_are_those_of_dsa(kind: str) -> None:
    for steps in (1, 7, 1000):
        assert spec_of(kind, 16, 4).attention.warmup_steps(steps) == spec_of("dsa", 16, 4).attention.warmup_steps(steps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_up_is_dense(kind: str) -> None:
    tokens = torch.randint(50, (2, 24))
    dense = build(validate({"length": 24, "attention": {"kind": "dense"}, "model": MODEL}), 50)
    model = build(spec_of(kind, 24, 3), 50)
    warm_up = model(tokens, ForwardPass(stage="dense"))
    assert torch.allclose(warm_up.logits_BTV, dense(tokens).logits_BTV, atol=1e-5)
    assert not torch.allclose(model(tokens).logits_BTV, dense(tokens).logits_BTV, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_fall_with_k_and_the_oracle_never_costs_less_than_its_scores(kind: str) -> None:
    def flops(k: int, stage: Any = "sparse") -> dict[str, float]:
        return flops_per_window(build(spec_of(kind, 64, k), 50), stage)

    assert flops(8)["attention"] < flops(32)["attention"] < flops(64)["attention"]
    assert flops(8, "dense")["attention"] == flops(64)["attention"]
    assert ("selection" in flops(8)) == (kind in ("oracle", "moba"))


def test_the_training_step_counts_for_the_selection() -> None:
    """TrainStep gives the model its step, wherever a run resumes, and evaluation does not look at it."""
    spec = spec_of("random", 16, 4)
    cpu = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
    slot = Slot(spec, 50, cpu, MemoryPlan(spec.batch_size, False, {}))
    seen: list[int | None] = []
    addresses: set[int] = set()
    first = slot.model.layers()[0].attention
    honest = first.forward

    def spy(x_BTD: Tensor, context: AttentionContext) -> Any:
        seen.append(None if context.step is None else int(context.step))
        addresses.update([] if context.step is None else [context.step.data_ptr()])
        return honest(x_BTD, context)

    first.forward = spy  # type: ignore[method-assign]
    batches = torch.randint(50, (3, spec.batch_size, 17))
    slot.step.run(7, "sparse", batches)
    slot.step.run(20, "dense", batches[:1])
    slot.model.eval()
    slot.model(batches[0, :, :-1], ForwardPass(step=torch.tensor([5])))
    assert seen == [7, 8, 9, 20, None]
    assert len(addresses) == 1, "a captured graph keeps the address of the step"
