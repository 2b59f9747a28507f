"""Kernels compiled ahead, on a GPU: a run from an empty cache compiles none itself, and the next one waits for none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

TRAIN = """
import json, sys
from collections import Counter
from triton import knobs
compiled, found = Counter(), Counter()
def listen(*, src, cache_hit, **rest):
    (found if cache_hit else compiled).update([src.name])
knobs.compilation.listener = listen
from dsabench.compilation import ahead
from dsabench.spec.run import validate
from dsabench.sweeps.single_run import train
begun = []
honest = ahead.Ahead.__init__
def watched(self, *rest):
    begun.append(self)
    honest(self, *rest)
ahead.Ahead.__init__ = watched
record = train(validate(json.loads(sys.argv[1])), sys.argv[2], progress=False)
print(json.dumps({
    "status": record.status, "error": record.error, "compiled": compiled, "found": sum(found.values()),
    "ahead": [[one.count.done, one.finished, one.failed] for one in begun],
}))
"""

DSA = {"kind": "dsa", "top_k": 32, "indexer": {"n_heads": 4, "head_dim": 32, "warmup_share": 0.5}}

RUNS: dict[str, dict[str, Any]] = {
    "dense": {"attention": {"kind": "dense"}},
    "masks": {"attention": {**DSA, "backend": "masked"}},
    "kernels": {"attention": {**DSA, "backend": "triton"}, "model": {"n_kv_heads": 1}},
    "deterministic": {"attention": {**DSA, "backend": "triton"}, "engine": {"deterministic": True}},
    "documents": {"attention": {**DSA, "backend": "triton"}, "data": {"packing": "documents"}},
    "latents": {"attention": {**DSA, "backend": "triton"}, "model": {"attention_layout": "latent"}},
    "experts": {"attention": {"kind": "dense"}, "model": {"n_experts": 16, "experts_per_token": 2}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_finds_every_kernel_compiled(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    more = RUNS[name]
    spec = {
        "length": 128,
        "train": {"steps": 8, "batch_size": 8, "warmup_steps": 2, "eval_every": 4, "eval_tokens": 1024},
        **more,
        "model": {"d_model": 128, "n_layers": 3, "n_heads": 8, "d_ff": 128, **more.get("model", {})},
        "data": {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25, **more.get("data", {})},
    }

    def trained(store: str) -> dict[str, Any]:
        program = subprocess.run(
            [sys.executable, "-c", TRAIN, json.dumps(spec), tmp_path / store], capture_output=True, text=True
        )
        assert program.returncode == 0, program.stderr
        found: dict[str, Any] = json.loads(program.stdout)
        assert found["status"] == "done", found["error"]
        return found

    first = trained("first")
    ((n_kernels, finished, failed),) = first["ahead"]
    assert finished and not failed
    assert first["compiled"] == {"_heads": 1}, "the one by which it is tried whether kernels run here"
    assert first["found"] == n_kernels > 20
    again = trained("again")
    assert again["ahead"] == [] and again["compiled"] == {}
    assert again["found"] == n_kernels + 1
