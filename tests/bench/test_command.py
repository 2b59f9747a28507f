"""`dsabench bench` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from shell import Shell

from dsabench.attention.base import AttentionContext, Selection, capture_mass
from dsabench.attention.dsa import reference
from dsabench.bench.document import load, settings
from dsabench.bench.sparse_cases import Masked
from dsabench.bench.trained import TrainedRun
from dsabench.engine.device import Execution
from dsabench.model.transformer import ForwardPass

SMALL = [
    "bench", "--device", "cpu", "--lengths", "16", "24", "--heads", "4", "--head-dim", "8", "--top-k", "5",
    "--indexer-heads", "2", "--indexer-dim", "8", "--repeats", "2",
]  # fmt: skip


def test_on_a_cpu_it_runs_what_there_is_and_says_what_not(shell: Shell) -> None:
    code, out, err = shell(*SMALL)
    assert code == 0, err
    lines = out.splitlines()
    names = [line[4:20].strip() for line in lines[lines.index("") + 3 :][:10]]
    assert names == ["dense-flash", "dense-flash-gqa", "dense-math", "dsa-reference", "dsa-masked"] * 2
    assert "skipped: window-flex: FlexAttention's backward pass needs a CUDA GPU." in lines
    assert any(line.startswith("skipped: dsa-triton: Triton kernels need a CUDA GPU") for line in lines)
    assert not any(line.startswith("crossover") for line in lines), "skipped: says it already"
    assert "L=24: dsa-masked" in err
    assert (shell.folder / "results/bench.png").read_bytes().startswith(b"\x89PNG")
    assert [cell.length for cell in load(shell.folder / "results/bench.json").cells] == [16] * 10 + [24] * 10


def test_json_is_the_document_that_is_written(shell: Shell) -> None:
    code, out, err = shell(*SMALL, "--json", "--quiet", "--out", "elsewhere", "--only", "dense-math", "dsa-masked")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed == json.loads((shell.folder / "elsewhere/bench.json").read_text())
    schema = json.loads(shell("schema", "bench")[1])
    jsonschema.Draft202012Validator(schema).validate(printed)
    assert "rows" in schema["$defs"]["Settings"]["properties"]["batch"]["description"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**printed, "cells": [{"ms": 1.0}]})
    assert printed["environment"]["device"] == "cpu"
    assert [(cell["implementation"], cell["length"]) for cell in printed["cells"]] == [
        ("dense-math", 16), ("dsa-masked", 16), ("dense-math", 24), ("dsa-masked", 24),
    ]  # fmt: skip


def test_a_trained_model_s_own_projections(shell: Shell, corpus: Path, execution: Execution) -> None:
    words = [
        "--config", "quick", "--device", "cpu", "--quiet", "--length", "16", "--set", f"data.source=path:{corpus}",
        "--set", "model.d_model=32", "--set", "model.n_heads=4", "--set", "model.n_kv_heads=2", "--set",
        "model.d_ff=16", "--set", "train.tokens_per_step=64", "--set", "train.steps=2", "--set", "data.vocab_size=300",
        "--set", "data.val_share=0.25",
    ]  # fmt: skip
    own = ["--attention", "dsa", "--set", "attention.top_k=6", "--set", "attention.indexer.head_dim=8"]
    code, _, err = shell("train", *words, *own)
    assert code == 0, err
    bench = ["bench", "--device", "cpu", "--quiet", "--repeats", "1", "--only", "dense-math", "dsa-masked"]
    code, out, err = shell(*bench, "--run", "dsa", "--lengths", "12", "40", "--batch", "2", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["run_id"].startswith("dsa-L16-")
    sizes = {name: document["settings"][name] for name in ("heads", "kv_heads", "head_dim", "top_k", "indexer_dim")}
    assert sizes == {"heads": 4, "kv_heads": 2, "head_dim": 8, "top_k": 6, "indexer_dim": 8}
    assert "on 5 windows of 16 validation tokens" in document["inputs"]
    assert {cell["status"] for cell in document["cells"]} == {"timed"}
    as_the_model_has_them(TrainedRun("runs", "dsa", None), execution)
    code, _, err = shell(*bench, "--run", "dsa", "--layer", "9")
    assert code == 2
    assert "--layer 9: run dsa-L16-" in err
    assert shell("train", *words, "--attention", "dense")[0] == 0
    code, _, err = shell(*bench, "--run", "dense")
    assert code == 2
    assert "its attention is dense; name a run of dsa" in err


def as_the_model_has_them(run: TrainedRun, execution: Execution) -> None:
    """On windows of the trained length: the index scores and the attention that the model captures of itself; what
    begins after the last validation window is the first again."""
    inputs = run.inputs(settings(lengths=[16], batch=1000, dtype="fp32", **run.sizes()), execution)
    n = len(inputs.tokens_NW)
    assert 5 < n < 998
    captured: dict[int, Selection] = {}
    with torch.no_grad():
        run.model(inputs.tokens_NW, ForwardPass(capture=captured))
        context = AttentionContext(torch.arange(16))
        assert [*run.attentions] == sorted(captured)
        for layer, theirs in captured.items():
            x = inputs(16, layer)
            mine = reference.index_scores(x.q_BTJI, x.k_BSI, x.w_BTJ), capture_mass(x.q_BTHD, x.k_BSGD, context)
            for found, expected in zip(mine, (theirs.scores_BTS, theirs.mass_BTS), strict=True):
                assert expected is not None
                torch.testing.assert_close(found[:n], expected, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found[n : n + 2], expected[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_triton_by_its_interpreter(tmp_path: Path) -> None:
    words = [
        "bench", "--device", "cpu", "--quiet", "--json", "--lengths", "9", "--heads", "2", "--head-dim", "8",
        "--top-k", "4", "--indexer-heads", "1", "--indexer-dim", "8", "--repeats", "1", "--stage", "both",
        "--only", "dense-math", "dsa-triton",
    ]  # fmt: skip
    pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r}); "
        "from interpreter import quicken; quicken(); from dsabench.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(c["implementation"], c["stage"], c["ok"]) for c in document["checks"]] == [
        ("dense-math", "sparse", True), ("dsa-triton", "sparse", True), ("dsa-triton", "dense", True),
    ]  # fmt: skip
    assert max(check["error"] for check in document["checks"]) < 1e-5
    assert [(c["status"], c["speed_up"]) for c in document["cells"]] == [
        ("timed", 1.0),
        ("timed", None),
        ("timed", None),
    ]
    assert [part["part"] for part in document["parts"]] == [
        "scores + top-k", "attention forward", "attention backward", "KL loss", "attention forward",
        "attention backward", "KL loss, all keys",
    ]  # fmt: skip
    assert all(part["ms"] > 0 for part in document["parts"])
    assert document["crossovers"] == [], "times of an interpreter are compared with nothing"
    assert any("interpreter: they mean nothing" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "warm"], "--stage warm: accepted are sparse, dense, both"),
        (["--dtype", "fp16"], "--dtype fp16: accepted are bf16, fp32"),
        (["--kv-heads", "3"], "heads = 4 is no multiple of kv_heads = 3"),
        (["--lengths", "0"], "--lengths 0: Input should be greater than or equal to 1"),
        (["--only", "sparse"], "--only sparse: there is no such implementation; there are dense-flash, "),
        (["--layer", "1"], "--layer names a layer of --run"),
        (["--run", "dsa"], "--heads, --head-dim, --indexer-heads, --indexer-dim: --run has its own"),
        (["--device", "gpu"], "'gpu' is not a device"),
        (["--repeats", "0"], "--repeats"),
        (["--out", "a_file"], "a_file is a file"),
    ],
)
def test_mistakes_are_one_message(shell: Shell, words: list[str], message: str) -> None:
    (shell.folder / "a_file").touch()
    code, out, err = shell(*SMALL, *words)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (shell.folder / "results").exists()


def test_a_wrong_or_failing_implementation_ends_with_1(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Masked, *rest: Any, **named: Any) -> Any:
        raise RuntimeError("illegal address")

    monkeypatch.setattr(Masked, "forward", broken)
    code, out, _ = shell(*SMALL, "--only", "dense-math", "dsa-masked", "--lengths", "16")
    assert code == 1 and "illegal address" in out
    statuses = {cell.implementation: cell.status for cell in load(shell.folder / "results/bench.json").cells}
    assert statuses == {"dense-math": "timed", "dsa-masked": "failed"}
