"""Models of dsabench, written as folders of `transformers`: logits, generated tokens, tokenizers, and a trained run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Parity
from single_runs import base, dense

import dsabench
from dsabench.data import prepare
from dsabench.errors import CheckpointError
from dsabench.model.foreign import read_checkpoint
from dsabench.model.transformer import Transformer, build
from dsabench.model.transformers_folder import architecture_of, write_folder
from dsabench.spec.run import validate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

LENGTH, VOCABULARY = 40, 90
SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 40}
ONE = {"n_experts": 1, "experts_per_token": 1}
STRETCHED = {"factor": 8.0, "original_length": 40}

LOGITS = Parity("logits of an exported model", "`transformers` Llama, Mixtral", 1e-4)
GREEDY = Parity("20 greedy tokens of an exported model", "`transformers` Llama, Mixtral", 0)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one expert": ("LlamaForCausalLM", ONE),
    "embedding not multiplied": ("LlamaForCausalLM", {**ONE, "embedding_std": 1.0}),
    "own head": ("LlamaForCausalLM", {**ONE, "tied_head": False, "norm_eps": 3e-3}),
    "wide heads, GQA": ("LlamaForCausalLM", {**ONE, "head_width": 24, "n_kv_heads": 2, "rope_base": 500.0}),
    "stretched": ("LlamaForCausalLM", {**ONE, "rope_scaling": STRETCHED, "rope_base": 500.0}),
    "biases": ("Qwen2ForCausalLM", {**ONE, "qkv_bias": True, "n_kv_heads": 1, "head_width": 12}),
    "normed heads": ("Qwen3ForCausalLM", {**ONE, "qk_norm": True, "vocab_size": 128}),
    "four experts": ("MixtralForCausalLM", {"n_kv_heads": 2}),
    "experts, wide heads": ("MixtralForCausalLM", {"n_experts": 3, "head_width": 12, "tied_head": False}),
    "all experts, stretched": ("MixtralForCausalLM", {"n_experts": 2, "rope_scaling": STRETCHED, "rope_base": 500.0}),
}


def random_model(**model: Any) -> Transformer:
    spec = validate({"length": LENGTH, "attention": {"kind": "dense"}, "model": {**SMALL, **model}})
    made = build(spec, VOCABULARY)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            generator = torch.Generator().manual_seed(len(name) + parameter.numel())
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "embedding" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(2.0)
    return made.eval()


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(case: str, tmp_path: Path) -> None:
    """Logits, and 20 greedy tokens."""
    name, settings = CASES[case]
    ours = random_model(**settings)
    assert write_folder(ours, tmp_path, None, None, {}) == name
    theirs = loaded(tmp_path)
    assert type(theirs).__name__ == name
    tokens_BT = torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, found = ours(tokens_BT).logits_BTV, theirs(tokens_BT).logits
    assert float(expected.std()) > 0.1
    LOGITS.check(expected, found)
    prompt_BT = expected_BT = tokens_BT[:, :9]
    for _ in range(20):
        with torch.no_grad():
            expected_BT = torch.cat([expected_BT, ours(expected_BT).logits_BTV[:, -1:].argmax(-1)], dim=1)
    GREEDY.check(expected_BT, theirs.generate(prompt_BT, max_new_tokens=20))


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name != "MixtralForCausalLM"])
def test_it_is_read_back_as_the_same_model(case: str, tmp_path: Path) -> None:
    """But for an embedding that is multiplied, which comes back multiplied."""
    ours = random_model(**CASES[case][1])
    write_folder(ours, tmp_path, None, None, {})
    foreign = read_checkpoint(tmp_path)
    back = build(validate({"length": LENGTH, "attention": {"kind": "dense"}, "model": dict(foreign.config.fields)}), 2)
    assert foreign.copy_into(back) == ()
    tokens_BT = torch.arange(LENGTH)[None]
    torch.testing.assert_close(back.eval()(tokens_BT).logits_BTV, ours(tokens_BT).logits_BTV, rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dsa": ({"kind": "dsa"}, ONE, "attention dsa has no class in transformers: .*latent attention.*dense"),
    "window": ({"kind": "sliding_window"}, ONE, "attention sliding_window has no class"),
    "switch": ({"kind": "dense"}, {"experts_per_token": 1}, "experts_per_token = 1 of 4 experts.*another model"),
    "biases": ({"kind": "dense"}, {"qkv_bias": True}, "qkv_bias = true with 4 experts: Mixtral has no such"),
    "norms": ({"kind": "dense"}, {"qk_norm": True}, "qk_norm = true with 4 experts"),
    "both": ({"kind": "dense"}, {**ONE, "qk_norm": True, "qkv_bias": True}, "both model.qkv_bias and model.qk_norm"),
    "heads": ({"kind": "dense"}, {**ONE, "n_heads": 5, "head_width": 8}, "n_heads = 5 does not divide .* = 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_class_is_refused_with_the_reason(case: str) -> None:
    attention, model, told = REFUSED[case]
    spec = validate({"length": LENGTH, "attention": attention, "model": {**SMALL, **model}})
    with pytest.raises(CheckpointError, match=told):
        architecture_of(spec)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"the cat sat on mat {number} \u00e9\u20ac and then some more " * 30)
    return folder


@pytest.mark.parametrize(
    "changed",
    [{"n_experts": 1}, {"n_experts": 4, "experts_per_token": 2}, {"tokenizer": "bytes"}, {"packing": "documents"}],
    ids=str,
)
def test_a_trained_run_is_loaded_with_its_tokenizer(changed: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    fields = base(corpus, steps=6, eval_every=6)
    data = {name: value for name, value in changed.items() if name in ("tokenizer", "packing")}
    fields["data"] |= data
    fields["model"] = {**fields["model"], "experts_per_token": 2, **({} if data else changed)}
    if fields["model"]["n_experts"] == 1:
        fields["model"]["experts_per_token"] = 1
    record = dsabench.train(dense(validate(fields)), store=tmp_path / "runs")
    assert record.status == "done"
    folder = dsabench.export_model(tmp_path / "runs", record.run_id, tmp_path / "exported")
    ours, theirs = dsabench.load_model(tmp_path / "runs", record.run_id), loaded(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the cat \u20ac sat\n on  Mat 77 \U0001f600"
    own = prepare(validate(record.spec).data)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == own.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == own.end_of_document == theirs.config.eos_token_id
    tokens_BT = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens_BT).logits, ours(tokens_BT).logits_BTV, rtol=0, atol=1e-4)


def test_exporting_again_replaces_and_other_files_stay(corpus: Path, tmp_path: Path) -> None:
    fields = {**base(corpus, steps=2, eval_every=2), "attention": {"kind": "dense"}}
    fields["model"] = {**fields["model"], "n_experts": 1}
    record = dsabench.train(validate(fields), store=tmp_path / "runs")
    out = tmp_path / "out" / "here"
    first, again = (
        {
            path.name: path.read_bytes()
            for path in dsabench.export_model(tmp_path / "runs", record.run_id, out).iterdir()
        }
        for _ in range(2)
    )
    assert first == again
    assert json.loads(first["config.json"])["dsabench"]["run"] == record.run_id
    (out / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"here holds mine.txt, which is no file of an export"):
        dsabench.export_model(tmp_path / "runs", record.run_id, out)
    assert (out / "mine.txt").read_text() == "mine"
    (corpus / "0.txt").write_text("now with other words, over and over " * 40)
    with pytest.raises(CheckpointError, match=r"its tokenizer \(bpe, of path:.*\) is another one now"):
        dsabench.export_model(tmp_path / "runs", record.run_id, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
