"""Models made with `transformers`, read by dsabench: logits, gradients, generated tokens, and DSA at k >= L."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Parity
from theirs import CASES, LENGTH, STRETCHED, VOCABULARY, greedy, theirs_of
from torch import Tensor

from dsabench.model.foreign import read_checkpoint
from dsabench.model.parameter_names import as_ours, their_names
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.run import RunSpec, validate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

LOGITS = Parity(
    "logits of a model that is read: RMSNorm, RoPE, heads, SwiGLU", "`transformers` Llama, Qwen2, Qwen3", 1e-4
)
GREEDY = Parity("20 greedy tokens of a model that is read", "`transformers` Llama, Qwen2, Qwen3", 0)
LOSS = Parity("loss of a model that is read", "`transformers` Llama, Qwen2, Qwen3", 1e-4)
GRADIENTS = Parity("gradients of every parameter of a model that is read", "`transformers` Llama, Qwen2, Qwen3", 1e-4)


def ours_of(folder: Path, attention: dict[str, Any] | None = None, **fields: Any) -> Transformer:
    foreign = read_checkpoint(folder)
    spec = spec_with(dict(foreign.config.fields), attention, **fields)
    model = build(spec, VOCABULARY)
    foreign.copy_into(model)
    return model.eval()


def spec_with(model: dict[str, Any], attention: dict[str, Any] | None = None, **fields: Any) -> RunSpec:
    return validate({"length": LENGTH, "attention": attention or {"kind": "dense"}, "model": model, **fields})


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(5))


def both(model: Transformer, theirs: Any) -> tuple[Tensor, Tensor]:
    """Logits of the same tokens."""
    with torch.no_grad():
        ours, expected = model(tokens()).logits_BTV, theirs(tokens()).logits
    assert float(expected.std()) > 0.1
    return ours, expected


def difference(model: Transformer, theirs: Any) -> float:
    return LOGITS.difference(*both(model, theirs))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    kind, settings = CASES[case]
    theirs = theirs_of(kind, **settings)
    theirs.save_pretrained(tmp_path)
    LOGITS.check(*both(ours_of(tmp_path), theirs))


@pytest.mark.parametrize(
    "changed",
    [
        {"norm_eps": 1e-6},
        {"rope_base": 1e4},
        {"rope_scaling": None},
        {"rope_scaling": {"factor": 4.0, "original_length": 40}},
    ],
    ids=str,
)
def test_a_wrong_field_is_seen(changed: dict[str, Any], tmp_path: Path) -> None:
    """The tolerance is not too wide: with any of these fields wrong, logits are far beyond it."""
    theirs = theirs_of("Llama", rms_norm_eps=3e-3, rope_parameters=STRETCHED)
    theirs.save_pretrained(tmp_path)
    foreign = read_checkpoint(tmp_path)
    model = build(spec_with({**foreign.config.fields, **changed}), VOCABULARY)
    foreign.copy_into(model)
    assert difference(model.eval(), theirs) > 1e-2


def test_shards_and_other_dtypes_are_the_same_model(tmp_path: Path) -> None:
    """Sharded as single; bf16 as the fp32 model with the rounded weights."""
    theirs = theirs_of("Qwen3", head_dim=16)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    whole, shards = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "shards")
    assert whole.digest() == shards.digest()
    assert difference(ours_of(tmp_path / "shards"), theirs) < 1e-4
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    rounded = type(theirs).from_pretrained(tmp_path / "narrow", dtype=torch.float32, attn_implementation="eager").eval()
    assert difference(ours_of(tmp_path / "narrow"), rounded) < 1e-4
    assert read_checkpoint(tmp_path / "narrow").digest() != whole.digest()


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_twenty_greedy_tokens_are_the_same(kind: str, tmp_path: Path) -> None:
    theirs = theirs_of(kind)
    theirs.save_pretrained(tmp_path)
    model, prompt_BT = ours_of(tmp_path), tokens()[:, :9]
    found_BT = greedy(model, prompt_BT, 20)
    expected_BT = theirs.generate(
        prompt_BT, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    GREEDY.check(found_BT, expected_BT)
    assert len(found_BT[:, 9:].unique()) > 5, "they are not one token over and over"


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_loss_and_gradients_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Of every parameter, as training computes them."""
    theirs = theirs_of(kind, tie_word_embeddings=kind == "Qwen3", rms_norm_eps=3e-3)
    theirs.save_pretrained(tmp_path)
    model, tokens_BT = ours_of(tmp_path), tokens()
    loss = model.training_losses(tokens_BT[:, :-1], tokens_BT[:, 1:])[0]
    expected = theirs(tokens_BT, labels=tokens_BT).loss
    LOSS.check(loss, expected)
    loss.backward()
    expected.backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if names := their_names(name, 1):
            gradients = [grads[one] for one in names]
            GRADIENTS.check(parameter.grad, as_ours(name, gradients))


SELECTIVE: list[dict[str, Any]] = [
    {"kind": "dsa", "top_k": LENGTH, "indexer": {"n_heads": 2, "head_dim": 8}},
    {"kind": "dsa", "top_k": LENGTH, "backend": "reference", "indexer": {"n_heads": 2, "head_dim": 8}},
    {"kind": "sliding_window", "top_k": LENGTH},
    {"kind": "oracle", "top_k": LENGTH},
    {"kind": "moba", "top_k": LENGTH},
]


@pytest.mark.parametrize("attention", SELECTIVE, ids=lambda attention: "-".join(map(str, list(attention.values())[:3])))
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_at_full_k_a_converted_model_is_its_parent(kind: str, attention: dict[str, Any], tmp_path: Path) -> None:
    theirs = theirs_of(kind, head_dim=24) if kind == "Qwen3" else theirs_of(kind)
    theirs.save_pretrained(tmp_path)
    parent, child = ours_of(tmp_path), ours_of(tmp_path, attention)
    with torch.no_grad():
        expected = parent(tokens()).logits_BTV
        for stage in ("dense", "sparse"):
            found = child(tokens(), ForwardPass(stage=stage)).logits_BTV
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert difference(child, theirs) < 1e-4


def test_the_indexer_is_drawn_as_always(tmp_path: Path) -> None:
    theirs_of("Qwen3").save_pretrained(tmp_path)
    child = ours_of(tmp_path, SELECTIVE[0])
    drawn = dict(build(child.spec, VOCABULARY).named_parameters())
    own = child.attention_own_parameters()
    assert own
    for name, parameter in child.named_parameters():
        assert name not in own or torch.equal(parameter, drawn[name]), name
