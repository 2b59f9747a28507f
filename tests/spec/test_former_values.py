"""Fields whose default changed: what older records mean, and identities before and after."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from dsabench.spec.former_values import former_values, with_former_values
from dsabench.spec.identity import run_id
from dsabench.spec.run import validate
from dsabench.spec.stored_spec import stored_spec

EPS = "attention.indexer.norm_eps"

PLUGIN = """
from typing import Literal
from dsabench.attention import DSA, DSASpec, register

class OldSpec(DSASpec):
    kind: Literal["of_old"] = "of_old"

@register
class Old(DSA):
    spec_class = OldSpec
"""


def record(**attention: Any) -> dict[str, Any]:
    """A stored spec without the marked fields."""
    values = validate({"attention": {"kind": "dsa", **attention}}).model_dump(mode="json")
    del values["attention"]["indexer"]["norm_eps"]
    return values


def test_a_record_without_the_field_had_the_former_value() -> None:
    values = record()
    before = copy.deepcopy(values)
    assert with_former_values(values)["attention"]["indexer"]["norm_eps"] == 1e-5
    assert values == before  # not changed in place
    assert stored_spec(values, "r").attention.indexer.norm_eps == 1e-5  # type: ignore[attr-defined]


def test_a_record_with_the_field_keeps_its_value() -> None:
    values = validate({"attention": {"kind": "dsa", "indexer": {"norm_eps": 3e-4}}}).model_dump(mode="json")
    assert with_former_values(values) == values


def test_the_former_value_has_the_identity_without_the_field_and_others_have_their_own() -> None:
    old, new, other = (
        validate({"attention": {"kind": "dsa", "indexer": {"norm_eps": eps}}}) for eps in (1e-5, 1e-6, 1e-4)
    )
    assert dict(former_values(old))[EPS] == 1e-5
    ids = {run_id(spec, {}) for spec in (old, new, other, validate({"attention": {"kind": "dsa"}}))}
    assert len(ids) == 3
    assert run_id(old, {}) == "dsa-L256-s42-0fb78b7d"  # as version 0.1.0 gave it
    assert run_id(new, {}) == run_id(validate({"attention": {"kind": "dsa"}}), {})


def test_so_has_a_record_of_a_plugin_with_an_indexer(tmp_path: Path) -> None:
    (tmp_path / "of_old.py").write_text(PLUGIN)
    plugins = [str(tmp_path / "of_old.py")]
    values = validate({"attention": {"kind": "of_old"}, "plugins": plugins}).model_dump(mode="json")
    assert values["attention"]["indexer"].pop("norm_eps") == 1e-6
    assert stored_spec(values, "r").attention.indexer.norm_eps == 1e-5  # type: ignore[attr-defined]


@pytest.mark.parametrize("attention", [None, 3, {}, {"kind": "dsa"}, {"kind": "dsa", "indexer": 3}, {"kind": "x"}])
def test_what_is_no_attention_stays_as_it_is(attention: Any) -> None:
    assert with_former_values({"attention": attention, "data": attention}) == {
        "attention": attention,
        "data": attention,
    }
