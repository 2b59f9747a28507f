"""An axis of whole attentions: chosen by flags, set by fields, and configs/methods.yaml, which has one."""

from __future__ import annotations

from typing import Any

import pytest

from dsabench.errors import SpecError
from dsabench.spec.attention_axis import in_words
from dsabench.spec.config import load_sweep
from dsabench.spec.sweep import Sweep

DSA: dict[str, Any] = {"kind": "dsa", "top_k": 8, "indexer": {"n_heads": 2}}
ATTENTIONS: list[dict[str, Any]] = [
    {"kind": "dense"},
    DSA,
    {**DSA, "top_k": 4},
    {"kind": "csa", "top_k_ratio": 0.5, "sliding_window": 4},
    {"layers": ["dense", "dsa"], "top_k": 6},
]


def sweep_of(**base: Any) -> Sweep:
    return Sweep({"length": 64, **base}, {"attention": [dict(one) for one in ATTENTIONS], "seed": [1, 2]})


def kinds(sweep: Sweep) -> list[tuple[str, int | None]]:
    runs = [spec for spec in sweep.runs() if spec.seed == 1]
    return [(spec.attention.kind, getattr(spec.attention, "top_k", None)) for spec in runs]


def test_each_value_is_an_attention_with_fields_of_its_own() -> None:
    sweep = sweep_of()
    assert kinds(sweep) == [("dense", None), ("dsa", 8), ("dsa", 4), ("csa", None), ("hybrid", None)]
    assert sweep.axes["attention"] == ATTENTIONS, "the sweep's record holds what was written"


def test_flags_choose_among_them() -> None:
    sweep = sweep_of()
    sweep.set_axis("attention.kind", ["csa", "dsa"], "--attentions: ")
    assert kinds(sweep) == [("csa", None), ("dsa", 8), ("dsa", 4)]
    sweep.set("attention.kind", "dsa", "--attention: ")
    assert kinds(sweep) == [("dsa", 8), ("dsa", 4)]
    one = sweep_of()
    one.set("attention.kind", "csa", "--attention: ")
    assert kinds(one) == [("csa", None)] and one.first().attention.kind == "csa"
    with pytest.raises(SpecError, match=r"--attentions: attention.kind = 'moba': .* has dense, dsa, csa, hybrid"):
        sweep_of().set_axis("attention.kind", ["moba"], "--attentions: ")


def test_a_field_is_set_in_those_that_have_it() -> None:
    """And takes the place of its alternative."""
    sweep = sweep_of()
    sweep.set("attention.top_k", 5, "--set attention.top_k: ")
    assert kinds(sweep) == [("dense", None), ("dsa", 5), ("csa", 5), ("hybrid", None)], "the two of dsa are one"
    sweep.set("attention.indexer.head_dim", 32, "--set: ")
    assert {spec.attention.indexer.head_dim for spec in sweep.runs() if spec.attention.kind == "dsa"} == {32}
    with pytest.raises(SpecError, match=r"--set: unknown field attention.window for .*: dense, dsa, csa, hybrid"):
        sweep.set("attention.window", 5, "--set: ")


def test_rungs_with_attentions_of_their_own_are_changed_too() -> None:
    """What is asked for holds on all rungs: nothing that was not chosen is trained."""
    sweep = load_sweep("methods")
    sweep.set("data.source", "sotu", "")
    sweep.set_axis("attention.kind", ["dense", "nsa"], "--attentions: ")
    sweep.set("attention.window", 96, "--set: ")
    found = [(spec.length, spec.attention.kind, getattr(spec.attention, "window", None)) for spec in sweep.runs()]
    assert found[::3] == [(2048, "dense", None), (2048, "nsa", 96), (8192, "dense", None), (8192, "nsa", 96)]


def test_it_is_said_in_words() -> None:
    assert in_words(DSA) == "dsa(top_k=8, indexer=(n_heads=2))"
    assert in_words({"kind": "dense"}) == "dense" and in_words(3) == "3"


def test_the_methods_have_one_budget() -> None:
    """An eighth of the window for the last query, within a tenth, of all but dense attention."""
    sweep = load_sweep("methods")
    sweep.set("data.source", "sotu", "")
    runs = [spec for spec in sweep.runs() if spec.seed == 42]
    assert {spec.length for spec in runs} == {2048, 8192} and len(runs) == 24
    for spec in runs:
        read = spec.attention.keys_read(spec.length)
        assert (
            read == spec.length if spec.attention.kind == "dense" else abs(read - spec.length / 8) <= spec.length / 80
        )
    assert len({spec.attention.kind for spec in runs}) == 11
