"""Ladders: rungs in order, each keeping what the others changed; and the one that takes the published claim apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsabench.errors import SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.identity import flatten
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep

LADDER = """
base:
  length: 64
  attention: {kind: dsa, indexer: {loss: none, warmup_share: 0.0}}
  train: {batch_size: 4, steps: 10}
axes:
  attention.kind: [dense, random]
  seed: [1, 2]
ladder:
  bottom:
  selected: {attention.kind: [dense, dsa]}
  taught: {attention.indexer.loss: kl}
  larger steps: {train.tokens_per_step: 1024, seed: [1]}
"""


def written(tmp_path: Path, text: str = LADDER) -> Sweep:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load_sweep(str(path))


def kinds(specs: list[RunSpec]) -> list[tuple[str, int]]:
    return [(spec.attention.kind, spec.seed) for spec in specs]


def test_a_rung_keeps_what_the_rungs_before_it_changed(tmp_path: Path) -> None:
    found = written(tmp_path).rungs()
    assert list(found) == ["bottom", "selected", "taught", "larger steps"]
    assert kinds(found["bottom"]) == [("dense", 1), ("dense", 2), ("random", 1), ("random", 2)]
    assert kinds(found["selected"]) == kinds(found["taught"]) == [("dense", 1), ("dense", 2), ("dsa", 1), ("dsa", 2)]
    losses = {
        name: {flatten(s.model_dump()).get("attention.indexer.loss") for s in runs} for name, runs in found.items()
    }
    assert losses == {
        "bottom": {None},
        "selected": {None, "none"},
        "taught": {None, "kl"},
        "larger steps": {None, "kl"},
    }
    assert kinds(found["larger steps"]) == [("dense", 1), ("dsa", 1)]
    assert {spec.train.batch_size for spec in found["larger steps"]} == {None}


def test_a_run_of_two_rungs_is_one_run_in_the_order_of_the_first(tmp_path: Path) -> None:
    runs = written(tmp_path).runs()
    assert len(runs) == 4 + 2 + 2 + 2
    assert kinds(runs)[:6] == [("dense", 1), ("dense", 2), ("random", 1), ("random", 2), ("dsa", 1), ("dsa", 2)]


def test_a_single_run_and_what_looks_at_one_setting_take_the_first_rung(tmp_path: Path) -> None:
    sweep = written(tmp_path)
    assert sweep.first() == sweep.runs()[0]
    assert sweep.lowest().runs() == sweep.rungs()["bottom"]
    assert sweep.lowest().ladder == {}
    plain = load_sweep("quick")
    assert plain.lowest() is plain
    assert plain.rungs() == {}


def test_an_override_holds_on_every_rung(tmp_path: Path) -> None:
    sweep = written(tmp_path)
    sweep.set("attention.indexer.loss", "none", "--set: ")
    sweep.set_axis("seed", [7], "--seeds: ")
    found = sweep.rungs()
    assert {spec.seed for runs in found.values() for spec in runs} == {7}
    taught = [s for s in found["taught"] if s.attention.kind == "dsa"]
    assert [flatten(s.model_dump())["attention.indexer.loss"] for s in taught] == ["none"]
    sweep.set("train", {"steps": 3}, "--set: ")
    assert {spec.train.steps for spec in sweep.runs()} == {3}
    assert {spec.train.tokens_per_step for spec in sweep.runs()} == {4096}, "a rung changes no part of it any more"


def test_an_override_holds_on_a_rung_that_says_the_same_in_another_way(tmp_path: Path) -> None:
    sweep = load_sweep("seed_ladder")  # its last rung sets train.tokens_per_step
    sweep.set("train.batch_size", 3, "--set: ")
    assert {spec.train.batch_size for spec in sweep.runs()} == {3}


def test_its_record_is_a_config_of_the_same_runs(tmp_path: Path) -> None:
    from dsabench.analysis.provenance import as_yaml

    sweep = written(tmp_path)
    path = tmp_path / "again.yaml"
    path.write_text(as_yaml(sweep.plain()), encoding="utf-8")
    assert load_sweep(str(path)).rungs() == sweep.rungs()
    assert "ladder" not in load_sweep("quick").plain()


BAD: dict[str, tuple[str, list[str]]] = {
    "misspelt": ("taught: {train.stepz: 3}", [":12: unknown field train.stepz", "did you mean steps?"]),
    "misspelt attention": (
        "taught: {attention.indexr.loss: kl}",
        ["unknown field attention.indexr for attention", "did you mean indexer?"],
    ),
    "no mapping": ("taught: 3", [":12: ladder.taught = 3 is not accepted", "field paths with values"]),
    "bad value": ("taught: {train.steps: many}", [":12: train.steps = 'many'", "a whole number"]),
    "engine": ("taught: {engine.device: cpu}", [":12: engine.device is no part of what a run is"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_rung_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    text, expected = BAD[case]
    with pytest.raises(SpecError) as caught:
        written(tmp_path, LADDER.replace("taught: {attention.indexer.loss: kl}", text)).runs()
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def changes(found: dict[str, list[RunSpec]]) -> dict[str, set[str]]:
    """The fields in which the sparse runs of each rung differ from those of the rung before it."""
    sparse: list[dict[str, Any]] = [flatten(runs[-1].model_dump(mode="json")) for runs in found.values()]
    pairs = zip(list(found)[1:], sparse, sparse[1:], strict=False)
    return {
        name: {path for path in {*before, *after} if before.get(path) != after.get(path)}
        for name, before, after in pairs
    }


def test_the_ladder_of_the_published_claim_mends_one_thing_at_a_time() -> None:
    found = load_sweep("seed_ladder").rungs()
    assert changes(found) == {
        "causal mask mended": {"attention.kind"},
        "documents held out": {"data.split", "allow_leak"},
        "sane first loss": {"model.embedding_std"},
        "indexer trained": {"attention.indexer.loss", "attention.indexer.warmup_share"},
        "rate, decay, dropout": {
            "train.learning_rate", "train.schedule", "train.warmup_steps", "train.beta2", "train.weight_decay",
            "train.grad_clip", "model.dropout",
        },
        "all training text": {"data.max_tokens"},
        "vocabulary and batch": {"data.vocab_size", "train.batch_size", "train.tokens_per_step"},
    }  # fmt: skip
    for name, runs in found.items():
        sparse = "leaky_dsa" if name == "as published" else "dsa"
        assert kinds(runs) == [(kind, seed) for kind in ("dense", sparse) for seed in (42, 43, 44)]
    assert len(load_sweep("seed_ladder").runs()) == 42


def without_plugins(runs: list[RunSpec]) -> list[RunSpec]:
    return [spec.model_copy(update={"plugins": []}) for spec in runs]


def test_the_ladder_begins_at_the_replica_and_ends_at_the_seed_config() -> None:
    first, *_, last = load_sweep("seed_ladder").rungs().values()
    assert first == [spec for spec in load_sweep("seed_replica").runs() if spec.length == 128]
    seed = [spec for spec in load_sweep("seed").runs() if spec.length == 128 and spec.seed < 45]
    assert without_plugins(last) == without_plugins(seed)


@pytest.mark.parametrize("path", ["start.parent.train.steps", "start.parent", "start.run"])
def test_a_rung_without_a_parent_has_none_after_an_override_of_the_parent(path: str) -> None:
    """An override of a field holds on all rungs, but not that of a whole which a rung takes away."""
    sweep = load_sweep("convert_quick")
    value = {"start.parent.train.steps": 7, "start.parent": {"train.steps": 7}, "start.run": "dense"}[path]
    sweep.set(path, value, "--set: ")
    starts = {name: {spec.start is not None for spec in runs} for name, runs in sweep.rungs().items()}
    assert starts == {"converted": {True}, "unfrozen warm-up": {True}, "from scratch": {False}}
    sweep.set("start", None, "--set: ")
    assert all(spec.start is None for runs in sweep.rungs().values() for spec in runs)


def test_the_two_configs_of_a_conversion_ask_the_same() -> None:
    """`convert_quick` differs from `convert` in sizes, text and seeds alone."""
    large, small = load_sweep("convert"), load_sweep("convert_quick")
    assert large.axes.keys() == small.axes.keys() and list(large.ladder) == list(small.ladder)
    assert large.axes["attention.kind"] == small.axes["attention.kind"]
    assert [list(changes) for changes in large.ladder.values()] == [list(changes) for changes in small.ladder.values()]
    for sweep in (large, small):
        scratch = sweep.ladder["from scratch"]
        total = sweep.base["train"]["steps"] + sweep.base["start"]["parent"]["train.steps"]
        assert scratch["train.steps"] == total, "as many tokens as parent and child"
        assert scratch["train.learning_rate"] == sweep.base["start"]["parent"]["train.learning_rate"]
        assert scratch["attention.indexer.warmup_steps"] == [total // 5]
