"""Hybrid stacks in training: each layer's attention, keys, loss, rates and costs; a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from single_runs import DSA, base

import dsabench
from dsabench.attention.base import Selection
from dsabench.audit import gate
from dsabench.data import Batch
from dsabench.engine import memory_plan
from dsabench.engine.device import Execution
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.selection_recall import recall_BT, selection_recall
from dsabench.errors import LeakError
from dsabench.model.transformer import ForwardPass, Transformer, build, flops_per_window, outline
from dsabench.spec.run import RunSpec, validate
from dsabench.store.layout import run_folder
from dsabench.sweeps import plan, single_run

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
INDEXER = {"n_heads": 2, "head_dim": 8}
SIZES = {"d_model": 32, "n_layers": 4, "n_heads": 4, "d_ff": 24, "n_experts": 2, "experts_per_token": 1}
STACK = {"first_layers": ["dense"], "layers": ["dsa", {"kind": "sliding_window", "top_k": 3}], "top_k": 5}


def spec_of(attention: dict[str, Any], **rest: Any) -> RunSpec:
    attention = {**attention, "indexer": INDEXER} if "layers" in attention or attention["kind"] == "dsa" else attention
    return validate({"length": 24, "attention": attention, "model": SIZES, **rest})


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(101, (rows, 24), generator=torch.Generator().manual_seed(1))


def model_of(attention: dict[str, Any], **rest: Any) -> Transformer:
    return build(spec_of(attention, **rest), 101)


def test_each_layer_is_what_a_stack_of_its_own_kind_has() -> None:
    model = model_of(STACK)
    names = [type(block.attention).__name__ for block in model.layers()]
    assert names == ["Dense", "DSA", "SlidingWindow", "DSA"]
    pure = {kind: model_of({"kind": kind, "top_k": k}) for kind, k in (("dsa", 5), ("sliding_window", 3))}
    pure["dense"] = model_of({"kind": "dense"})
    for layer, kind in enumerate(["dense", "dsa", "sliding_window", "dsa"]):
        ours, theirs = (one.layers()[layer].attention.state_dict() for one in (model, pure[kind]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for stage in ("dense", "sparse"):
        items = flops_per_window(model, stage)  # type: ignore[arg-type]
        kinds = {kind: flops_per_window(one, stage) for kind, one in pure.items()}  # type: ignore[arg-type]
        for item, value in items.items():
            parts = [kinds[kind].get(item, 0.0) / 4 for kind in ("dense", "dsa", "sliding_window", "dsa")]
            expected = items["logits"] if item == "logits" else sum(parts)
            assert value == pytest.approx(expected), item


def test_what_selects_is_captured_and_what_has_a_loss_is_averaged() -> None:
    model, captured = model_of(STACK), dict[int, Selection]()
    output = model(tokens(), ForwardPass(capture=captured))
    assert sorted(captured) == [1, 2, 3]
    widths = {layer: int((one.selected_BTK >= 0).sum(-1).max()) for layer, one in captured.items()}
    assert widths == {1: 5, 2: 3, 3: 5}
    losses: list[torch.Tensor] = []
    for layer in (1, 3):
        attention = model.layers()[layer].attention
        attention.register_forward_hook(lambda _, given, output: losses.append(output.aux_loss))
    model(tokens())
    assert torch.stack(losses).mean() == output.attention_loss


def test_recall_judges_each_layer_by_its_own_keys() -> None:
    model, tokens_NT = model_of(STACK), tokens(8)
    windows = Batch(torch.cat([tokens_NT, tokens_NT[:, :1]], 1).numpy())
    found = selection_recall(model, windows, CPU)
    captured: dict[int, Selection] = {}
    with torch.no_grad():
        model.eval()(tokens_NT, ForwardPass(capture=captured))
    keys = {1: 5, 2: 3, 3: 5}
    expected = [recall_BT(captured[layer])[:, k:].mean() for layer, k in keys.items()]
    assert found is not None
    assert found["mass_recall"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    chance = [np.mean([k / (t + 1) for t in range(k, 24)]) for k in keys.values()]
    assert found["mass_recall_chance"] == pytest.approx(np.mean(chance))


def test_a_scheduled_layer_alone_follows_the_schedule() -> None:
    layers = [{"kind": "dsa", "top_k_schedule": [[300, 9]]}, {"kind": "sliding_window", "top_k": 3}]
    captured: dict[int, Selection] = {}
    model_of({"layers": layers, "top_k": 5})(tokens(), ForwardPass(capture=captured, top_k=9))
    assert [int((captured[layer].selected_BTK >= 0).sum(-1).max()) for layer in range(4)] == [9, 3, 9, 3]


def test_indexers_of_two_rates_are_two_groups() -> None:
    rates = [{"kind": "dsa", "indexer": {"learning_rate": rate}} for rate in (1e-3, 5e-3)]
    spec = spec_of({"layers": rates, "top_k": 5})
    model = build(spec, 101)
    groups = Optimizer(model, spec, torch.device("cpu")).groups
    for name, parameter in model.attention_own_parameters().items():
        (peak,) = {group.peak for group in groups if any(one is parameter for one in group.parameters)}
        assert peak == rates[int(name.split(".")[1]) % 2]["indexer"]["learning_rate"]


def test_memory_lies_between_that_of_its_kinds() -> None:
    dense, hybrid, dsa = (
        memory_plan.estimate(outline(spec_of(one), 101), CPU, 2, False)["activations"]
        for one in ({"kind": "dense"}, {"layers": ["dense", "dsa"], "top_k": 5}, {"kind": "dsa", "top_k": 5})
    )
    assert hybrid == pytest.approx((2 * dense + 3 * dsa) / 5), "the block more is a larger one"
    assert dense < hybrid < dsa


def test_it_trains_from_a_dense_parent_and_loads(corpus: Path, tmp_path: Path) -> None:
    values = base(corpus, steps=4, eval_every=4, log_every=2, warmup_steps=1)
    values["attention"] = {"layers": ["dense", "dsa"], **{k: v for k, v in DSA.items() if k != "kind"}}
    values["start"] = {"parent": {"attention.kind": "dense"}}
    planned = plan.plan([validate(values)], tmp_path)
    records = [single_run.train(run.spec, tmp_path) for run in sorted(planned, key=lambda run: not run.for_children)]
    parent, child = (
        load_file(run_folder(tmp_path, one.run_id) / "checkpoint" / "model.safetensors") for one in records
    )
    assert [record.run_id.split("-")[0] for record in records] == ["dense", "hybrid"]
    own = {name for name in child if name not in parent}
    assert own and all(name.startswith("blocks.1.attention.indexer.") for name in own)
    runs = dsabench.load_runs(tmp_path).set_index("run_id").loc[records[1].run_id]
    assert runs["attention"] == "hybrid"
    assert 0 < runs["indexer_params"] < runs["params"]
    assert runs["mass_recall"] > 0
    model = dsabench.load_model(tmp_path, records[1].run_id)
    assert all(torch.equal(child[name], value) for name, value in model.state_dict().items())


PLUGIN = """
from typing import Literal
from dsabench.attention import AttentionOutput, AttentionSpec, Dense, register

class PeekSpec(AttentionSpec):
    kind: Literal["peek"] = "peek"

@register
class Peek(Dense):
    spec_class = PeekSpec
    def forward(self, x_BTD, context):
        return AttentionOutput(super().forward(x_BTD, context).out_BTD + 0.1 * x_BTD.roll(-1, 1))
"""


def test_a_leak_in_one_layer_is_refused_by_its_file(corpus: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "peek.py"
    plugin.write_text(PLUGIN)
    values = {**base(corpus), "attention": {"layers": ["dense", "peek"]}, "plugins": [str(plugin)]}
    spec = validate(values)
    with pytest.raises(LeakError, match=r"attention hybrid .*mend .*peek\.py"):
        gate.refuse_leaks(spec, 300, CPU)
    first, second = (plan.plan([spec], tmp_path)[0].run_id for _ in range(2))
    plugin.write_text(PLUGIN + "\n")
    assert plan.plan([validate(values)], tmp_path)[0].run_id != first == second, "the file is part of what it is"
