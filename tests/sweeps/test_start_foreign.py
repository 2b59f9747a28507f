"""Runs that start from models that others trained: whose fields count, weights to the bit, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import MODEL, ROWS, foreign_folder_at, hub_with
from safetensors.torch import load_file, save_file
from single_runs import base, stopped_at_a_checkpoint

import dsabench
from dsabench.engine.loop import TrainingRun
from dsabench.errors import CheckpointError, DataError, DsabenchError, SpecError, StoreError
from dsabench.model.transformer import build
from dsabench.models import load_spec
from dsabench.spec.config import load_sweep
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.sweep import Sweep
from dsabench.store import read_run
from dsabench.sweeps import single_run
from dsabench.sweeps.origin import identity_of

TOKENIZER = "tokenizer.json"


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama of 320 rows with a tokenizer of 300 ids."""
    path = tmp_path_factory.mktemp("foreign") / "llama"
    foreign_folder_at(path, corpus)
    return path


def values_of(corpus: Path, checkpoint: Path | str, **changes: Any) -> dict[str, Any]:
    values = base(corpus, steps=4, eval_every=2, log_every=1, warmup_steps=1)
    del values["model"], values["data"]["vocab_size"]
    return {**values, "start": {"checkpoint": str(checkpoint)}, **changes}


def spec_from(corpus: Path, checkpoint: Path | str, **changes: Any) -> RunSpec:
    return Sweep(values_of(corpus, checkpoint, **changes), {}).first()


@pytest.mark.parametrize("config", ["seed", "quick", "convert", "seed_replica", "small_data"])
def test_fields_of_a_shipped_config_give_way(config: str, folder: Path) -> None:
    sweep = load_sweep(config)
    sweep.set("start", {"checkpoint": str(folder)}, "--from: ")
    specs = sweep.runs()
    assert len({spec.model for spec in specs}) == 1
    assert {name: getattr(specs[0].model, name) for name in MODEL} == MODEL
    assert {spec.data.tokenizer for spec in specs} == {str(folder / TOKENIZER)}
    assert load_spec(config, {"start": {"checkpoint": str(folder)}}).model == specs[0].model


@pytest.mark.parametrize("path", ["start", "start.parent.train.steps"])
def test_a_rung_from_scratch_is_left_out(path: str, folder: Path) -> None:
    """With a model that is there; a parent of other steps leaves all rungs."""
    sweep = load_sweep("convert")
    before = [name for name, _ in sweep.climb()]
    value: Any = {"start": {"checkpoint": str(folder)}}.get(path, 7)
    sweep.set(path, value, "--from: ")
    left = {name: {spec.start.checkpoint for spec in specs if spec.start} for name, specs in sweep.rungs().items()}
    assert "from scratch" in before
    assert list(left) == [name for name in before if name != "from scratch" or value == 7]
    assert left["converted"] == {None if value == 7 else str(folder)}


OURS = [("model.d_model", 24), ("model.n_kv_heads", 2), ("model.head_width", 6), ("model.dropout", 0.5)]
THEIRS = [
    ("model.d_model", 32, "hidden_size of .*, where it is 24"),
    ("model.n_kv_heads", None, "num_key_value_heads of .*, where it is 2"),
    ("model.n_experts", 4, "the architecture LlamaForCausalLM of .*, where it is 1"),
    ("model.vocab_size", 300, "vocab_size of .*, where it is 320"),
    ("model.rope_scaling", {"factor": 4.0}, "llama3 scaling of rope_parameters of .*, where it is null"),
    ("data.tokenizer", "bytes", f"contradicts .*{TOKENIZER}; leave data.tokenizer out"),
]


@pytest.mark.parametrize(("path", "value"), OURS)
def test_a_field_that_was_given_may_say_the_same(path: str, value: Any, folder: Path) -> None:
    spec = load_spec("quick", {"start.checkpoint": str(folder), path: value})
    assert spec.model.dropout == (value if path == "model.dropout" else 0.0)


@pytest.mark.parametrize(("path", "value", "told"), THEIRS)
@pytest.mark.parametrize("by", ["override", "axis", "own config", "ladder", "python"])
def test_a_field_that_was_given_and_contradicts_names_both(
    by: str, path: str, value: Any, told: str, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    """And who gave it."""
    section, name = path.split(".")
    start = {"checkpoint": str(folder)}
    file = tmp_path / "mine.yaml"
    own: dict[str, Any] = {"base": {"start": start}}
    if by == "own config":
        own["base"][section] = {name: value}
    elif by == "ladder":
        own["ladder"] = {"one": {path: value}}
    file.write_text(json.dumps(own))
    sweep = load_sweep("quick" if by in ("override", "axis") else str(file))
    if by == "override":
        sweep.set(path, value, f"--set {path}: ")
    elif by == "axis":
        sweep.set_axis(path, [value], "--some-flag: ")
    elif by == "python":
        sweep = Sweep({"start": start, section: {name: value}}, {})
    sweep.set("start", start, "--from: ") if by != "python" else None
    origin = {"override": f"--set {path}: ", "axis": "--some-flag: ", "own config": rf"{file}:1: "}.get(by, "")
    with pytest.raises(SpecError, match=rf"^{origin}.*{path} = {'.*' if value is None else ''}.*{told}"):
        sweep.runs()


def test_all_contradictions_are_named_at_once(folder: Path) -> None:
    changes = {"model.d_ff": 48, "model.n_layers": 3, "start.checkpoint": str(folder)}
    with pytest.raises(SpecError) as caught:
        load_spec("quick", changes)
    assert {line.split(" contradicts ")[0] for line in str(caught.value).splitlines()} == {
        "overrides: model.d_ff = 48", "overrides: model.n_layers = 3"
    }  # fmt: skip


def test_a_spec_whose_fields_nobody_filled_in_is_refused(folder: Path, corpus: Path, tmp_path: Path) -> None:
    """One that did not come through a sweep: by its fields, or by its tokenizer."""
    values = values_of(corpus, folder)
    with pytest.raises(SpecError, match=r"model\.d_model = 256 contradicts hidden_size"):
        single_run.train(validate(values), tmp_path / "runs")
    filled = spec_from(corpus, folder).model_dump(mode="json")
    filled["data"]["tokenizer"] = "bpe"
    with pytest.raises(SpecError, match=r"data.tokenizer = 'bpe' contradicts"):
        single_run.train(validate(filled), tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*-L*"))


def weights_before_the_first_step(
    spec: RunSpec, store: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    honest = TrainingRun._launch

    def launch(self: TrainingRun, first: int, *rest: Any) -> Any:
        if first == 0:
            seen.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return honest(self, first, *rest)

    monkeypatch.setattr(TrainingRun, "_launch", launch)
    assert single_run.train(spec, store).status == "done"
    return seen


@pytest.mark.parametrize("changes", [{}, {"tied_head": False, "qkv_bias": True, "head_width": 10}, {"qk_norm": True}])
def test_parameters_are_theirs_to_the_bit(
    changes: dict[str, Any], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an indexer, which they have not, is drawn as always."""
    theirs = dict(foreign_folder_at(tmp_path / "theirs", corpus, **changes).named_parameters())
    spec = spec_from(corpus, tmp_path / "theirs")
    seen = weights_before_the_first_step(spec, tmp_path / "runs", monkeypatch)
    model = build(spec, ROWS)
    drawn, own = dict(model.named_parameters()), model.attention_own_parameters()
    assert own and seen.keys() == drawn.keys() == theirs.keys() | own.keys()
    for name, value in seen.items():
        if "router" not in name:  # of one expert, which decides nothing, and which they have not
            assert torch.equal(value, drawn[name] if name in own else theirs[name]), name


def test_the_record_tells_the_lineage(folder: Path, corpus: Path, tmp_path: Path, shell: Any) -> None:
    record = single_run.train(spec_from(corpus, folder), tmp_path / "runs")
    about = record.environment["start"]
    assert about == {
        "run": None,
        "weights": record.fingerprint["start"],
        "steps": 0,
        "val_loss": None,
        "checkpoint": str(folder),
        "model": "LlamaForCausalLM",
    }
    assert record.spec["model"]["d_model"] == 24 and record.spec["data"]["tokenizer"] == str(folder / TOKENIZER)
    assert record.summary["vocab_size"] == ROWS
    shown = shell("runs", "show", record.run_id, "--store", str(tmp_path / "runs"))
    assert "LlamaForCausalLM that others trained" in " ".join(shown[1].split())


def test_the_identity_is_that_of_the_weights(folder: Path, corpus: Path, tmp_path: Path) -> None:
    """A copy, shards and bf16 of the same values are one model; another value is another."""
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "shards")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, tmp_path / "shards" / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "shards/model.safetensors").unlink()
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    same = {
        identity_of(spec_from(corpus, path), tmp_path)[0] for path in (folder, tmp_path / "copy", tmp_path / "shards")
    }
    assert len(same) == 1
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, tmp_path / "copy/model.safetensors")
    assert identity_of(spec_from(corpus, tmp_path / "copy"), tmp_path)[0] not in same, (
        "a file that changed is read anew"
    )


def test_an_interrupted_run_resumes_to_the_same_bits(folder: Path, corpus: Path, tmp_path: Path) -> None:
    spec = spec_from(corpus, folder, engine={"device": "cpu", "checkpoint_every": 2})
    calm = single_run.train(spec, tmp_path / "calm")
    stopped_at_a_checkpoint(spec, tmp_path / "wild")
    assert read_run(tmp_path / "wild", calm.run_id).status == "interrupted"
    again = single_run.train(spec, tmp_path / "wild")
    assert (again.run_id, again.environment["start"]) == (calm.run_id, calm.environment["start"])
    ours, theirs = (load_file(tmp_path / s / calm.run_id / "checkpoint/model.safetensors") for s in ("calm", "wild"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def changed(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


NORM = "model.norm.weight"


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def more_ids(folder: Path) -> None:
    set_config(folder, vocab_size=299)
    changed(folder, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:299]}))


REFUSED: dict[str, tuple[Any, type[DsabenchError], str]] = {
    "architecture": (
        lambda f: set_config(f, architectures=["GPT2LMHeadModel"], model_type="gpt2"),
        CheckpointError,
        "GPT2LMHeadModel.*accepted: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        CheckpointError,
        "only pytorch_model.bin: a pickle, which executes code",
    ),
    "pickle without a config": (
        lambda f: ((f / "config.json").unlink(), (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        StoreError,
        "no model that can be read; pytorch_model.bin is a pickle.*accepted: a run's folder",
    ),
    "nothing": (lambda f: (f / "config.json").unlink(), StoreError, "no model that can be read; accepted"),
    "missing shard": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: "a.safetensors"}})),
        ),
        CheckpointError,
        "names a.safetensors, which is not there",
    ),
    "shape": (
        lambda f: changed(f, lambda t: t.update({NORM: torch.ones(25)})),
        CheckpointError,
        rf"the tensor {NORM} has shape \(25,\); by its config.json it has shape \(24,\)",
    ),
    "no tokenizer": (
        lambda f: (f / TOKENIZER).unlink(),
        CheckpointError,
        "holds no tokenizer.json; give one of its tokenizer in data.tokenizer",
    ),
    "broken tokenizer": (lambda f: (f / TOKENIZER).write_text("{"), DataError, "not a tokenizer.json"),
    "more ids than rows": (more_ids, SpecError, r"model.vocab_size = 299 is less than the 300 ids of the tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_started_from_is_one_message(case: str, folder: Path, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "theirs")
    change, kind, told = REFUSED[case]
    change(tmp_path / "theirs")
    with pytest.raises(kind, match=told) as caught:
        single_run.train(spec_from(corpus, tmp_path / "theirs"), tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/*-L*")), "nothing half made"


def test_a_tokenizer_of_the_same_content_may_lie_elsewhere(folder: Path, corpus: Path, tmp_path: Path) -> None:
    """As for a model whose folder holds none."""
    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / TOKENIZER).rename(tmp_path / "mine.json")
    names = set()
    for checkpoint in (folder, tmp_path / "theirs"):
        values = values_of(corpus, checkpoint)
        values["data"]["tokenizer"] = str(tmp_path / "mine.json")
        names.add(identity_of(Sweep(values, {}).first(), tmp_path)[0])
    assert names == {identity_of(spec_from(corpus, folder), tmp_path)[0]}


def test_a_task_has_ids_of_its_own(folder: Path) -> None:
    spec = load_spec("quick", {"start.checkpoint": str(folder), "data.source": "task:recall"})
    assert (spec.data.tokenizer, spec.model.vocab_size) == ("bpe", ROWS)


@pytest.mark.parametrize("length", [32, 33])
def test_windows_longer_than_the_model_was_made_for_are_told_of(
    length: int, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    values = values_of(corpus, folder, length=length)
    assert single_run.train(Sweep(values, {}).first(), tmp_path / "runs", notify=lines.append).status == "done"
    told = [line for line in lines if "made for windows of up to 32 tokens, and those here have 33" in line]
    assert bool(told) == (length > 32)


def test_a_model_of_the_hub(folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for once, recorded with its commit, and the same run as from the folder."""
    commit = "0123456789" * 4
    shutil.copytree(folder, tmp_path / "snapshots" / commit)
    hub = hub_with(tmp_path / "snapshots" / commit, monkeypatch)
    sweep = Sweep(values_of(corpus, "hf:some/model"), {"seed": [1, 2, 3]})
    specs = sweep.runs()
    assert [spec.start.checkpoint for spec in specs if spec.start] == [f"hf:some/model@{commit}"] * 3
    assert len(hub.asked) == 1
    record = single_run.train(specs[0], tmp_path / "runs")
    assert record.run_id == identity_of(spec_from(corpus, folder), tmp_path)[0]
    assert record.environment["start"]["checkpoint"] == f"hf:some/model@{commit}"
    assert {revision for _, revision, _ in hub.asked[1:]} == {commit}
    frame = dsabench.load_runs(tmp_path / "runs")
    assert list(frame["environment.start.model"]) == ["LlamaForCausalLM"]
