"""Hybrid stacks as settings: how they are written, refused, identified, stored, and swept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.cli.options import overridden
from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN, DSASpec, HybridSpec
from dsabench.spec.config import load_sweep
from dsabench.spec.former_values import with_former_values
from dsabench.spec.identity import run_id
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.rerun_command import command_words
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.schema import config_schema
from dsabench.spec.stored_spec import needed_plugins
from dsabench.store.record_values import check_spec

N_LAYERS = 12

entries = st.one_of(
    st.sampled_from(["dense", "dsa", "random", "strided"]),
    st.builds(lambda kind, k: {"kind": kind, "top_k": k}, st.sampled_from(["dsa", "oracle"]), st.integers(1, 300)),
    st.builds(lambda n: {"kind": "dsa", "indexer": {"n_heads": n}}, st.integers(1, 8)),
)


def spec_of(attention: dict[str, Any], **rest: Any) -> RunSpec:
    return validate({"attention": attention, "model": {"n_layers": N_LAYERS}, **rest})


@settings(deadline=None, max_examples=60)
@given(first=st.lists(entries, max_size=3), layers=st.lists(entries, min_size=1, max_size=4))
def test_a_pattern_repeats_and_survives_storing(first: list[Any], layers: list[Any]) -> None:
    kinds = {entry if isinstance(entry, str) else entry["kind"] for entry in [*first, *layers]}
    written: dict[str, Any] = {"first_layers": first, "layers": layers}
    written |= {"top_k": 24} if kinds != {"dense"} else {}
    written |= {"indexer": {"head_dim": 8}} if "dsa" in kinds else {}
    try:
        spec = spec_of(written)
    except SpecError as error:
        assert "all layers are the same" in str(error)
        return
    stack = [*first, *layers * N_LAYERS][:N_LAYERS]
    for layer, entry in enumerate(stack):
        given = {"kind": entry} if isinstance(entry, str) else entry
        found = spec.attention.at(layer)
        own = BUILT_IN[given["kind"]]
        shared = {"top_k": 24, "indexer": {"head_dim": 8, **given.get("indexer", {})}}
        asked = {**{name: value for name, value in shared.items() if name in own.model_fields}, **given}
        asked |= {"indexer": shared["indexer"]} if "indexer" in asked else {}
        assert found == own.model_validate(asked)
        assert spec.of_layer(layer).attention == found
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    stored = json.loads(spec.model_dump_json())
    check_spec(stored)
    assert with_former_values(stored) == stored
    words = command_words(stored)
    sets = [value for name, value in zip(words[2::2], words[3::2], strict=True) if name == "--set"]
    again = overridden("seed", sets, {"--attention": ("attention.kind", "hybrid")}, {}).first()
    assert again.attention == spec.attention
    fully = spec_of({"kind": "hybrid", "layers": [spec.attention.at(layer).model_dump() for layer in range(N_LAYERS)]})
    assert run_id(fully, {}) == run_id(spec, {}), "the stack that it comes to is the run's"


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"layers": ["dense", "dsq"]}, r"entry 2 of layers: attention.kind = 'dsq' .* did you mean 'dsa'\?"),
        ({"layers": ["dense", {"kind": "dsa", "top_k": 0}]}, r"entry 2 of layers \(dsa\): top_k = 0 is not accepted"),
        ({"layers": ["dsa"], "first_layers": [{"kind": "dense", "top_k": 3}]}, r"entry 1 of first_layers \(dense\)"),
        ({"layers": ["dense", {"kind": "dsa", "topk": 3}]}, r"unknown field topk; did you mean top_k\?"),
        ({"layers": ["dense", 3]}, r"entry 2 of layers = 3 is not accepted; accepted: the name of an attention"),
        ({"layers": ["dense", {"top_k": 3}]}, r"entry 2 of layers = \{'top_k': 3\} is not accepted"),
        ({"layers": ["dense", "hybrid"]}, "a hybrid in a hybrid"),
        ({"layers": ["dense", "dsa"], "foo": 3}, "unknown field attention.foo"),
        ({"layers": []}, r"attention.layers = \[\] is not accepted"),
        ({"layers": "dense"}, "attention.layers = 'dense' is not accepted; accepted: a list of attentions"),
        ({"kind": "hybrid"}, "attention.layers is missing"),
        ({"layers": ["dsa", "dsa"]}, "all layers are the same dsa"),
        ({"layers": ["dense"] * N_LAYERS + ["dsa"]}, "lists 13 layers .* model.n_layers = 12"),
        ({"layers": ["dsa", {"kind": "random", "warmup_share": 0.1}]}, "the dense warm-up is 200 steps in a layer of"),
        (
            {"layers": ["dsa", {"kind": "dsa", "indexer": {"freeze_backbone": True}}]},
            "indexer.freeze_backbone is False in a layer of dsa and True in one of dsa; a run has one",
        ),
        (
            {"layers": ["dsa", {"kind": "dsa", "indexer": {"loss_weight": 2.0}}]},
            "indexer.loss_weight is 1.0 in a layer of dsa and 2.0",
        ),
        (
            {"layers": [{"kind": "dsa", "top_k_schedule": [[300, k]]} for k in (4, 5)]},
            "top_k_schedule is .* in a layer of dsa and .* in one of dsa",
        ),
    ],
)
def test_a_mistake_names_its_entry(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec_of(attention)
    assert "\n" not in str(caught.value)


def test_an_entry_of_its_own_replaces_the_shared_alternative() -> None:
    stack = spec_of({"layers": ["dsa", {"kind": "dsa", "top_k": 4}], "top_k_ratio": 0.25}).attention
    assert [stack.at(layer).n_selected(64) for layer in (0, 1)] == [16, 4]
    assert stack.n_selected(64) == 16
    assert not stack.selects_everything(4)
    assert stack.selects_everything(1)


def test_layers_without_a_schedule_keep_their_keys() -> None:
    stack = spec_of({"layers": ["dsa", {"kind": "dsa", "top_k": 8, "top_k_schedule": [[300, 32]]}], "top_k": 64})
    attention = stack.attention
    assert (attention.top_k_at(250), attention.top_k_at(300), attention.key_changes()) == (32, None, (300,))
    assert [attention.keeping(5).at(layer).n_selected(256) for layer in (0, 1)] == [64, 5]
    assert [attention.at_most_keys(256).at(layer).n_selected(256) for layer in (0, 1)] == [64, 32]


def test_what_an_entry_has_by_default_is_no_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that a later version adds to DSA renames no hybrid."""
    spec = spec_of({"layers": ["dense", "dsa"], "top_k": 64})
    before = run_id(spec, {})
    honest = DSASpec.model_dump

    def with_a_new_field(self: DSASpec, **how: Any) -> dict[str, Any]:
        return {**honest(self, **how), "newer": 1}

    monkeypatch.setattr(DSASpec, "model_dump", with_a_new_field)
    assert run_id(spec, {}) == before
    assert run_id(spec_of({"layers": ["dense", "dsa"], "top_k": 65}), {}) != before
    assert run_id(spec_of({"layers": ["dsa", "dense"], "top_k": 64}), {}) != before


def test_records_of_entries_mean_their_former_values_and_need_their_plugins() -> None:
    old = {"kind": "dsa", "indexer": {"n_heads": 2}}
    record = {"attention": {"kind": "hybrid", "layers": ["dense", old, {"kind": "mine"}]}, "plugins": ["mine.py"]}
    layers = with_former_values(record)["attention"]["layers"]
    assert layers[1]["indexer"]["norm_eps"] == 1e-5
    assert layers[2] == {"kind": "mine"}
    assert needed_plugins(record) == ["mine.py"]
    assert needed_plugins({**record, "attention": {"kind": "hybrid", "layers": ["dense", old]}}) == []
    with pytest.raises(ValueError, match=r"attention\.layers\[1\]\.top_k = 0 is not accepted"):
        check_spec({"attention": {"kind": "hybrid", "layers": [{"kind": "dense"}, {"kind": "dsa", "top_k": 0}]}})


CONFIG = """
base:
  attention: {layers: [dense, dsa], top_k: 16}
  model: {n_layers: 4}
axes:
  attention.kind: [dense, dsa, hybrid]
"""


def test_a_sweep_shares_fields_between_a_kind_and_the_layers_of_it(tmp_path: Path) -> None:
    config = tmp_path / "stacks.yaml"
    config.write_text(CONFIG)
    dense, dsa, hybrid = (spec.attention for spec in load_sweep(str(config)).runs())
    assert (dense.kind, hybrid.at(0), hybrid.at(1)) == ("dense", dense, dsa)
    fields = {"--top-k": ("attention.top_k", 8), "--attention": ("attention.kind", "hybrid")}
    assert overridden(str(config), [], fields, {}).first().attention.n_selected(64) == 8
    stacks = {"--x": ("attention.layers", [["dense", "dsa"], ["dsa", "random"]])}
    swept = overridden(str(config), ["attention.kind=hybrid"], {}, stacks).runs()
    assert [spec.attention.kinds for spec in swept] == [("dense", "dsa"), ("dsa", "random")]
    config.write_text(CONFIG.replace("axes:\n  attention.kind: [dense, dsa, hybrid]\n", ""))
    assert isinstance(load_sweep(str(config)).first().attention, HybridSpec), "a list of layers is a hybrid"
    with pytest.raises(SpecError, match=r"unknown field attention\.top_q"):
        overridden(str(config), ["attention.top_q=3"], {}, {}).first()
    config.write_text(CONFIG.replace("[dense, dsa], top_k: 16", "[dense, {kind: dsa, top_k: 0}]"))
    with pytest.raises(SpecError, match=r"stacks\.yaml:3: attention: entry 2 of layers \(dsa\): top_k = 0"):
        load_sweep(str(config)).runs()


def test_a_parent_may_be_dense_or_another_stack() -> None:
    child = {"layers": ["dense", "dsa"], "top_k": 16}
    dense = parent_spec(spec_of(child, start={"parent": {"attention.kind": "dense"}}))
    assert dense is not None and dense.attention.kind == "dense"
    other = {"attention.kind": "hybrid", "attention.layers": ["dense", "dsa"]}
    stack = parent_spec(spec_of({"kind": "dsa", "top_k": 16}, start={"parent": other}))
    assert stack is not None and [one.n_selected(64) for one in stack.attention.distinct()] == [None, 16]


def test_editors_know_the_form() -> None:
    hybrid = config_schema()["$defs"]["HybridSpec"]
    assert {"enum", "$ref"} == {key for one in hybrid["properties"]["layers"]["items"]["anyOf"] for key in one}
    assert hybrid["additionalProperties"] is True
