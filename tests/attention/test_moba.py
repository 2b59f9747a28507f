"""MoBA against a loop over its paper's formula, planted defects, and the name that it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention.ablations.moba import MoBA
from dsabench.attention.base import AttentionContext
from dsabench.attention.plugins import load_plugin
from dsabench.attention.registry import kinds, variant
from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN, BY_EVERY_NAME, FORMER_NAMES
from dsabench.spec.config import load_sweep
from dsabench.spec.identity import run_id
from dsabench.spec.rerun_command import spec_as_command
from dsabench.spec.run import validate
from dsabench.spec.stored_spec import stored_spec
from dsabench.store.record_values import check_spec
from dsabench.testing import check_causal, check_documents_are_separate


def spec_of(length: int = 20, k: int = 6, size: int = 3, kind: str = "moba") -> Any:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24}
    return validate({"length": length, "attention": {"kind": kind, "top_k": k, "block_size": size}, "model": model})


@given(length=st.integers(2, 40), size=st.integers(1, 6), blocks=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_blocks_are_those_of_the_papers_gate(length: int, size: int, blocks: int, seed: int) -> None:
    """s[i] = <q, mean of K of block i>, -inf for a block of the future, +inf for the own; the top blocks, whole, and
    the own as far as the query (arXiv 2502.13189, section 2.2). What else is selected is nearer than all that is not.
    """
    spec = spec_of(length, blocks * size, size)
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(1, length, 4, 8, generator=generator), torch.randn(1, length, 2, 8, generator=generator)
    module: Any = variant("moba")(spec, 0)
    scores = module.scores(q, k, AttentionContext(torch.arange(length)))[0]
    size = min(size, blocks * size)
    for t in range(length):
        own = t // size
        means = [k[0, i * size : (i + 1) * size].mean(0) for i in range(own)]
        gate = {i: sum(float(q[0, t, h] @ means[i][h // 2]) for h in range(4)) for i in range(own)}
        best = [own, *sorted(gate, key=lambda i: -gate[i])[: blocks - 1]]
        expected = {s for i in best for s in range(i * size, (i + 1) * size) if s <= t}
        assert set((scores[t, : t + 1] == 1).nonzero().flatten().tolist()) == expected
        rest = [s for s in range(t + 1) if s not in expected]
        assert [float(scores[t, s]) for s in rest] == [s - t for s in rest]


def test_a_block_that_is_not_past_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean is over all its tokens, those after the query among them."""

    def every(self: MoBA, q: Any, k: Any, context: AttentionContext) -> Any:
        context = AttentionContext(context.positions_T)
        context._allowed = torch.ones(len(context.positions_T), len(context.positions_T), dtype=torch.bool)
        return honest(self, q, k, context)

    honest = MoBA.scores
    monkeypatch.setattr(MoBA, "scores", every)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(k=4, size=2))


def test_a_block_of_two_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean is over both documents."""
    honest = MoBA.scores
    monkeypatch.setattr(
        MoBA, "scores", lambda self, q, k, context: honest(self, q, k, AttentionContext(context.positions_T))
    )
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of(40, k=6, size=3))


# The name `block`, which it had until version 0.4.


def test_the_former_name_is_accepted_and_not_listed() -> None:
    assert variant("block") is variant("moba") is MoBA
    assert "block" not in kinds() and "block" not in BUILT_IN
    assert BY_EVERY_NAME["block"] is BUILT_IN["moba"]
    for former, name in FORMER_NAMES.items():
        assert BUILT_IN[name].model_validate({"kind": former}).kind == former
        assert BUILT_IN[name].model_fields["kind"].default == name


def test_runs_of_the_former_name_keep_their_ids_and_records() -> None:
    """As version 0.4.0 gave them."""
    old = spec_of(64, 16, 8, kind="block")
    assert run_id(old, {}) == "block-L64-s42-9e003a49"
    assert run_id(validate({"attention": {"kind": "block"}}), {}) == "block-L256-s42-221d9c69"
    record = old.model_dump(mode="json")
    check_spec(record)
    assert record["attention"]["kind"] == "block" and stored_spec(record, "r") == old
    assert "--attention block" in spec_as_command(record)
    with pytest.raises(ValueError, match="block_size"):
        check_spec({**record, "attention": {**record["attention"], "block_size": "x"}})
    assert run_id(spec_of(64, 16, 8), {}).startswith("moba-L64-s42-")


def test_a_config_may_say_the_former_name(tmp_path: Path) -> None:
    config = tmp_path / "old.yaml"
    config.write_text(
        "base:\n  attention: {block_size: 8, top_k: 16}\naxes:\n  attention.kind: [dense, block]\n  length: [64]\n"
    )
    runs = load_sweep(str(config)).runs()
    assert [run.attention.kind for run in runs] == ["dense", "block"]
    assert runs[1].attention.block_size == 8  # type: ignore[attr-defined]


def test_a_plugin_cannot_take_the_former_name(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from typing import Literal\nfrom dsabench.attention import Dense, AttentionSpec, register\n"
        "class MySpec(AttentionSpec):\n    kind: Literal['block'] = 'block'\n"
        "@register\nclass Mine(Dense):\n    spec_class = MySpec\n"
    )
    with pytest.raises(SpecError, match="attention kind 'block' is built in and cannot be replaced"):
        load_plugin(str(plugin), "")


def test_the_same_run_by_either_name(tmp_path: Path) -> None:
    """Selections, and so everything that is computed."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 20, 4, 8, generator=generator), torch.randn(1, 20, 2, 8, generator=generator)
    one, other = (
        variant(name)(spec_of(kind=name), 0).scores(q, k, AttentionContext(torch.arange(20)))  # type: ignore[attr-defined]
        for name in ("moba", "block")
    )
    assert torch.equal(one, other)
