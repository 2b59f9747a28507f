"""Commands with `--from FOLDER` of a model that others trained: plan, memory, audit, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import foreign_folder_at
from shell import Shell

from dsabench.engine import memory_plan
from dsabench.engine.device import Execution, resolve
from dsabench.model.foreign import read_checkpoint
from dsabench.models import load_spec
from dsabench.spec.run import RunSpec

QWEN = {  # the config.json of Qwen2.5-0.5B
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> list[str]:
    """Options of a small run of the model in tmp_path/theirs."""
    foreign_folder_at(tmp_path / "theirs", corpus)
    fields = [f"data.source=path:{corpus}", "data.val_share=0.25", "train.tokens_per_step=64", "train.steps=4"]
    sets = [word for field in [*fields, "train.eval_tokens=256"] for word in ("--set", field)]
    return ["--from", "theirs", "--config", "quick", "--length", "32", "--device", "cpu", *sets]


def test_the_plan_shows_the_model(words: list[str], shell: Shell) -> None:
    code, out, err = shell("train", "--attention", "dsa", *words, "--dry-run")
    assert (code, err) == (0, "")
    assert "  from                 theirs: d_model 24, 2 layers, 4 heads of 6 on 2 KV heads, d_ff 40\n" in out
    code, out, _ = shell("train", "--attention", "dsa", *words, "--dry-run", "--json")
    spec = json.loads(out)["runs"][0]["spec"]
    assert (code, spec["model"]["d_model"], spec["model"]["vocab_size"]) == (0, 24, 320)
    assert spec["data"]["tokenizer"] == "theirs/tokenizer.json"


@pytest.mark.parametrize("by", ["--set", "--config"])
def test_a_contradiction_is_a_usage_error(by: str, words: list[str], shell: Shell, tmp_path: Path) -> None:
    if by == "--config":
        (tmp_path / "mine.yaml").write_text("base:\n  model:\n    d_model: 48\n")
        words[words.index("quick")] = "mine.yaml"
    else:
        words += ["--set", "model.d_model=48"]
    code, out, err = shell("train", *words)
    origin = "mine.yaml:3: " if by == "--config" else "--set model.d_model: "
    assert (code, out) == (2, "")
    assert f"{origin}model.d_model = 48 contradicts hidden_size of theirs, where it is 24" in err
    assert not (tmp_path / "runs").exists()


def test_a_vocabulary_larger_than_expected_is_planned(words: list[str], corpus: Path, shell: Shell) -> None:
    """data.vocab_size, which a tokenizer.json does not heed, is no size of the model."""
    spec = load_spec("quick", {"start.checkpoint": "theirs", "data.vocab_size": 5000})
    assert spec.expected_vocab_size == 320
    assert load_spec("quick", {"data.vocab_size": 5000}).expected_vocab_size == 5000
    assert load_spec("quick", {"model.vocab_size": 9000}).expected_vocab_size == 2048, "bpe's own"
    shown = shell("train", *words, "--set", "data.vocab_size=5000", "--dry-run")
    assert shown[0] == 0, shown


def test_a_first_loss_is_not_judged(words: list[str], shell: Shell) -> None:
    """By ln V: no weights are drawn. Any other check is made."""
    words = ["start.checkpoint=theirs" if word == "theirs" else word for word in words]
    code, out, _ = shell("audit", *["--set" if word == "--from" else word for word in words], "--json")
    found: dict[str, Any] = {check["check"]: check for run in json.loads(out)["audits"] for check in run["checks"]}
    assert code == 0
    assert found["first loss near ln V"]["result"] == "n.a." and found["causal, eval mode"]["result"] == "ok"


def test_a_dense_run_goes_back(words: list[str], shell: Shell, tmp_path: Path) -> None:
    """As the same architecture, and starts another run."""
    assert shell("train", "--attention", "dense", *words)[0] == 0
    assert shell("export", "--to", "transformers", "--out", "back", "dense")[0] == 0
    back = next(path for path in (tmp_path / "back").iterdir() if path.is_dir())
    theirs, ours = read_checkpoint(tmp_path / "theirs"), read_checkpoint(back)
    assert ours.config.fields == theirs.config.fields and ours.shapes == theirs.shapes
    assert ours.digest() != theirs.digest(), "it was trained"
    words[words.index("theirs")] = str(back)
    assert shell("train", "--attention", "dsa", *words)[0] == 0


def half_a_billion(folder: Path, **changes: Any) -> RunSpec:
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "tokenizer.json").write_text("{}")
    return load_spec("seed", {"start.checkpoint": str(folder), "length": 4096, **changes})


@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_the_memory_of_half_a_billion_parameters_is_planned(kind: str, tmp_path: Path) -> None:
    """By config.json alone: 494,032,768 parameters, 24 routers of one expert, which decide nothing, and an indexer."""
    spec = half_a_billion(tmp_path, **{"attention.kind": kind, "train.batch_size": 1})
    plan = memory_plan.plan(spec, spec.expected_vocab_size, resolve(spec.engine))
    indexer = 0
    if kind == "dsa":
        own = memory_plan.outline(spec, spec.expected_vocab_size).attention_own_parameters()
        indexer = sum(parameter.numel() for parameter in own.values())
    assert plan.bytes["weights"] == 4 * (494_032_768 + 24 * 896 + indexer)


GPU = Execution(torch.device("cuda"), "bf16", graph=True, deterministic=False, fused=True)
H200_BYTES = 139.8 * 2**30


@pytest.mark.parametrize(("warmup_steps", "windows"), [(0, 4), (3, 4), (20, 2)])
def test_the_graph_of_a_warm_up_is_planned(
    warmup_steps: int, windows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on an H200 with 4 windows at a time: 92.4 GB without a warm-up; with one, all memory at its end. A
    warm-up of no more than EAGER_STEPS is not captured."""
    indexer = {"n_heads": 4, "head_dim": 64, "warmup_steps": warmup_steps, "freeze_backbone": True}
    spec = half_a_billion(
        tmp_path,
        **{
            "attention": {"kind": "dsa", "top_k": 1024, "indexer": indexer},
            "train.tokens_per_step": 4 * 4096,
            "train.steps": 40,
        },
    )
    monkeypatch.setattr(memory_plan, "resolved", lambda spec, execution: spec)
    monkeypatch.setattr(memory_plan, "capacity", lambda execution: H200_BYTES)
    plan = memory_plan.plan(spec, spec.expected_vocab_size, GPU)
    assert (plan.micro_batch, plan.recompute) == (windows, False)
    if windows == 4:
        assert plan.total == pytest.approx(92.4e9, rel=0.05)
    eager = memory_plan.plan(spec, spec.expected_vocab_size, replace(GPU, graph=False))
    assert eager.micro_batch == 4
