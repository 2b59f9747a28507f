"""Folders of weights that cannot be read: pickles, missing, misshapen, unexpected or contradicting tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsabench.errors import CheckpointError, SpecError
from dsabench.model import foreign
from dsabench.model.foreign import read_checkpoint
from dsabench.model.transformer import build
from dsabench.model.transformers_folder import write_folder
from dsabench.spec.run import validate

SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "n_experts": 1, "experts_per_token": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tied Llama of 30 tokens."""
    spec = validate({"length": 16, "attention": {"kind": "dense"}, "model": {**SMALL, "embedding_std": 1.0}})
    write_folder(build(spec, 30), tmp_path, None, None, {})
    return tmp_path


def weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


UP = "model.layers.1.mlp.up_proj.weight"

BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda t: t.pop(UP), f"holds no tensor {UP}, which its config.json promises .shape .24, 16.."),
    "misshapen": (lambda t: t.update({UP: t[UP].t()}), f"{UP} has shape .16, 24.; by its config.json it has shape .24"),
    "narrow": (
        lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}),
        f"{UP} is of type F8_E4M3; accepted: F32, BF16",
    ),
    "whole numbers": (lambda t: t.update({UP: t[UP].int()}), f"{UP} is of type I32; accepted"),
    "unexpected": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}),
        "holds a tensor model.layers.0.self_attn.q_proj.bias, which a LlamaForCausalLM .* has not",
    ),
    "another head": (
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
        "tie_word_embeddings = true of config.json and a tensor lm_head.weight .* contradict",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_do_not_fit_are_refused(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is built."""
    change, told = BROKEN[case]
    weights(folder, change)
    monkeypatch.setattr(foreign, "as_ours", None)
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(folder)


def test_what_follows_from_the_rest_may_be_there(folder: Path) -> None:
    """The frequencies of old files, and a tied head that was stored as well."""
    before = read_checkpoint(folder).digest()
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    weights(folder, lambda t: t.update({**more, "lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert read_checkpoint(folder).digest() == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_a_pickle_is_never_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").rename(folder / name)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(
        CheckpointError, match=f"only {name}: a pickle, which executes code when it is read.*safetensors"
    ):
        read_checkpoint(folder)


def test_files_that_are_damaged_or_not_there(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"\xff" * 200):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
            read_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor model.safetensors.index.json"):
        read_checkpoint(folder)


def test_an_index_of_shards_is_checked(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    index = folder / "model.safetensors.index.json"

    def place(places: Any) -> None:
        index.write_text(places if isinstance(places, str) else json.dumps({"weight_map": places}))

    place(dict.fromkeys(names, "part.safetensors"))
    with pytest.raises(CheckpointError, match=r"holds model.safetensors and model.safetensors.index.json: two sets"):
        read_checkpoint(folder)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    assert read_checkpoint(folder).files[UP] == folder / "part.safetensors"
    for places, told in (
        ("{", "holds no weight_map"),
        ("[]", "holds no weight_map"),
        ({}, "holds no tensor model.embed_tokens.weight"),
        (dict.fromkeys(names, "../part.safetensors"), r"names '../part.safetensors'; accepted: .safetensors files of"),
        (dict.fromkeys(names, "part.bin"), "names 'part.bin'; accepted"),
        (dict.fromkeys(names, "other.safetensors"), "names other.safetensors, which is not there"),
        ({**dict.fromkeys(names, "part.safetensors"), "x": "part.safetensors"}, "holds no tensor x, though"),
    ):
        place(places)
        with pytest.raises(CheckpointError, match=told):
            read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"d_ff": 32}, r"has blocks.0.experts.gate_EDF of shape \(1, 16, 24\); .* needs shape \(1, 16, 32\)"),
        ({"tied_head": False}, r"has no head.weight; the model to be trained needs shape \(30, 16\)"),
        ({"n_layers": 1}, "has blocks.1.attention_norm.weight, which the model to be trained has not"),
        ({"n_experts": 2}, r"has blocks.0.experts.gate_EDF of shape \(1, 16, 24\); .* needs shape \(2, 16, 24\)"),
    ],
    ids=str,
)
def test_another_model_is_refused_with_both_shapes(changed: dict[str, Any], told: str, folder: Path) -> None:
    model = build(validate({"length": 16, "attention": {"kind": "dense"}, "model": {**SMALL, **changed}}), 30)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(folder).copy_into(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), "nothing is half copied"


def test_a_tokenizer_with_more_ids_than_rows_is_refused() -> None:
    spec = validate({"length": 16, "attention": {"kind": "dense"}, "model": {**SMALL, "vocab_size": 40}})
    assert build(spec, 40).vocab_size == build(spec, 30).vocab_size == 40
    with pytest.raises(SpecError, match=r"model.vocab_size = 40 is less than the 41 ids of the tokenizer"):
        build(spec, 41)
