"""Models made with `transformers` that arrive by start.checkpoint: logits, loss and generated text before any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from single_runs import base
from theirs import CASES, LENGTH, STRETCHED, greedy, theirs_of
from torch import Tensor

import dsabench
from dsabench.data import cut, prepare
from dsabench.data.tokenizer import train_bpe
from dsabench.engine.loop import TrainingRun
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.sweeps import single_run

ROWS = 320

SHARDED = {"max_shard_size": "20KB"}

STARTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (kind, settings, {}) for name, (kind, settings) in CASES.items()},
    "llama 3 stretched, sharded": ("Llama", {"rope_parameters": STRETCHED, "tie_word_embeddings": True}, SHARDED),
    "qwen2, sharded": ("Qwen2", {}, SHARDED),
    "qwen3, sharded": ("Qwen3", {"head_dim": 16}, SHARDED),
}


def saved(case: str, folder: Path, corpus: Path) -> Any:
    """The model of `transformers`, saved to a folder with a tokenizer of the corpus."""
    kind, settings, how = STARTS[case]
    theirs = theirs_of(kind, **{**settings, "vocab_size": ROWS})
    theirs.save_pretrained(folder, **how)
    assert (len(list(folder.glob("*.safetensors"))) > 2) == bool(how)
    train_bpe([path.read_text() for path in sorted(corpus.glob("*.txt"))], 300).save(folder / "tokenizer.json")
    return theirs


def spec_from(folder: Path, corpus: Path, attention: dict[str, Any]) -> RunSpec:
    values = base(corpus, steps=1, eval_tokens=512)
    del values["model"], values["data"]["vocab_size"]
    return Sweep({**values, "length": LENGTH, "attention": attention, "start": {"checkpoint": str(folder)}}, {}).first()


def tokens() -> Tensor:
    return torch.randint(300, (3, LENGTH), generator=torch.Generator().manual_seed(5))


def at_start(spec: RunSpec, store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, float]:
    """Logits and 20 greedy tokens of a run's model before its first step, and its validation loss there."""
    seen: list[Tensor] = []
    honest = TrainingRun._launch

    def launch(self: TrainingRun, *given: Any) -> Any:
        self.model.eval()
        with torch.no_grad():
            seen.append(self.model(tokens()).logits_BTV.clone())
        seen.append(greedy(self.model, tokens()[:, :9], 20))
        self.model.train()
        return honest(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_launch", launch)
        record = single_run.train(spec, store)
    assert record.status == "done", record.error
    metrics = dsabench.load_metrics(store, run_ids=[record.run_id])
    return seen[0], seen[1], metrics[(metrics["kind"] == "eval") & (metrics["step"] == 0)]["val_loss"].item()


@pytest.mark.parametrize("case", STARTS)
def test_before_the_first_step_it_is_their_model(
    case: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = saved(case, tmp_path / "theirs", corpus)
    spec = spec_from(tmp_path / "theirs", corpus, {"kind": "dense"})
    logits, generated, loss = at_start(spec, tmp_path / "runs", monkeypatch)
    windows = torch.from_numpy(cut(prepare(spec.data), LENGTH).evaluation("val", 512).tokens.astype("int64"))
    with torch.no_grad():
        expected = theirs(tokens()).logits
        their_loss = F.cross_entropy(theirs(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
    assert float(expected.std()) > 0.1
    assert float((logits - expected).abs().max()) < 1e-4
    assert loss == pytest.approx(float(their_loss), abs=1e-4)
    their_text = theirs.generate(
        tokens()[:, :9], max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(generated, their_text)


@pytest.mark.parametrize("warmup_steps", [0, 1])
@pytest.mark.parametrize("case", ["llama 3 stretched, sharded", "qwen2, tied", "qwen3"])
def test_at_full_k_a_converted_model_is_its_dense_parent(
    case: str, warmup_steps: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the dense warm-up as in the sparse stage."""
    theirs = saved(case, tmp_path / "theirs", corpus)
    indexer = {"n_heads": 2, "head_dim": 8, "warmup_steps": warmup_steps}
    dsa = {"kind": "dsa", "top_k": LENGTH, "indexer": indexer}
    found = [
        at_start(spec_from(tmp_path / "theirs", corpus, attention), tmp_path / "runs", monkeypatch)
        for attention in (dsa, {"kind": "dense"})
    ]
    (ours, our_text, our_loss), (dense, dense_text, dense_loss) = found
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-5)
    assert torch.equal(our_text, dense_text) and our_loss == pytest.approx(dense_loss, abs=1e-5)
    with torch.no_grad():
        assert float((ours - theirs(tokens()).logits).abs().max()) < 1e-4
