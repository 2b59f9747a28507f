"""The recording of the store in this folder, made with the version of dsabench that is installed.

    python tests/recorded_store/record.py FOLDER

Run it from outside a checkout, with the older version on the path: commit c05b10a made what lies here. The folder must
not exist. What a test does not need is left out, so that the recording stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as the tests have it: another number of threads gives other bits

import numpy as np
import torch

import dsabench

SWEEP = """\
base:
  length: 16
  seed: 1
  attention: {kind: dsa, top_k_ratio: 0.25, indexer: {n_heads: 2, head_dim: 4, warmup_share: 0.2}}
  model: {d_model: 16, n_layers: 2, n_heads: 2, d_ff: 16, n_experts: 2, experts_per_token: 1}
  data: {source: "path:corpus", tokenizer: bytes}
  train: {steps: 80, tokens_per_step: 128, learning_rate: 1e-2, warmup_steps: 5, eval_every: 40, eval_tokens: 512,
          log_every: 10}
  engine: {device: cpu, checkpoint_every: 20}
axes:
  length: [16, 32]
  attention.kind: [dense, dsa]
  seed: [1, 2, 3]
"""
COMMAND = (sys.executable, "-c", "from dsabench.cli.app import main; main()")


def write_corpus(folder: Path) -> None:
    """12 documents, each a walk over 30 words with few successors a word."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghijkl"), 4)) for _ in range(30)]
    successors = generator.integers(0, 30, (30, 3))
    for i in range(12):
        word, text = 0, []
        for _ in range(200):
            word = int(successors[word, generator.integers(3)])
            text.append(words[word])
        (folder / f"document{i}.txt").write_text(" ".join(text), encoding="utf-8")


def said(*words: str) -> str:
    """What a command prints on stdout."""
    return subprocess.run([*COMMAND, *words], check=True, capture_output=True, text=True).stdout


def main(folder: Path) -> None:
    """Train a sweep, a run that is interrupted, the same undisturbed, and a task; write what is read of them."""
    folder.mkdir()
    os.chdir(folder)
    write_corpus(Path("corpus"))
    Path("sweep.yaml").write_text(SWEEP, encoding="utf-8")
    said("sweep", "--config", "sweep.yaml", "--store", "store", "--out", "results")

    spec = dsabench.load_spec("sweep.yaml", overrides={"seed": 9, "attention.kind": "dsa"})
    dsabench.train(spec, store="undisturbed")

    def interrupt(update: object) -> None:
        if update.step >= 40:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        dsabench.train(spec, store="store", observe=interrupt)
    overrides = {"data.source": "task:induction", "length": 32, "data.task.n_copied": 8, "train.steps": 20}
    dsabench.train(dsabench.load_spec("sweep.yaml", overrides=overrides), store="store")

    for path in [*Path("store").glob("*/run.json"), *Path("store/sweeps").iterdir()]:  # no word of the machine's kernel
        record = json.loads(path.read_text())
        record["environment"]["platform"] = "Linux"
        path.write_text(json.dumps(record, indent=1))
    shown = next(Path("store").glob("dsa-L32-s3-*")).name
    tokens_BT = torch.arange(64).reshape(2, 32) + 97
    with torch.no_grad():
        logits_BTV = dsabench.load_model("store", shown)(tokens_BT).logits_BTV
    Path("logits.json").write_text(json.dumps({"run_id": shown, "last": logits_BTV[:, -1, 97:109].tolist()}))
    Path("compare.json").write_text(said("compare", "--store", "store", "--json"))
    runs = dsabench.load_runs("store").sort_values("run_id")
    rows = json.loads(runs.to_json(orient="records", double_precision=15, date_format="iso", date_unit="us"))
    lines = [json.dumps({name: value for name, value in row.items() if value is not None}) for row in rows]
    Path("index.jsonl").write_text("\n".join(lines) + "\n")

    for path in Path("store").iterdir():
        if path.suffix == ".parquet" or path.name.startswith(".index") or path.name.startswith(".curves"):
            path.unlink()
        elif path.is_dir() and path.name != shown and "-s9-" not in path.name:
            shutil.rmtree(path / "checkpoint", ignore_errors=True)
    shutil.copy(next(Path("undisturbed").glob("*/metrics.jsonl")), "undisturbed.jsonl")
    for name in ("undisturbed", "results"):
        shutil.rmtree(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
