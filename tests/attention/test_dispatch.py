"""Which backend computes DSA: what `auto` takes, what is refused, and what is planned and recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import resealed
import torch

from dsabench import models
from dsabench.attention.dsa import backends
from dsabench.audit import gate
from dsabench.engine import memory_plan
from dsabench.engine.backend import backend, resolved
from dsabench.engine.device import Execution
from dsabench.errors import SpecError
from dsabench.model.transformer import build, outline
from dsabench.spec.run import RunSpec, validate
from dsabench.sweeps import single_run

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
GPU = Execution(torch.device("cuda", 0), "bf16", graph=True, deterministic=False, fused=True)
VOCAB = 31
TOKENS = torch.arange(16)[None] % VOCAB


def small_spec(name: str) -> RunSpec:
    return validate(
        {
            "length": 16,
            "attention": {"kind": "dsa", "top_k": 4, "backend": name, "indexer": {"n_heads": 2, "head_dim": 8}},
            "model": {"d_model": 32, "n_layers": 1, "n_heads": 4, "d_ff": 16},
            "train": {"steps": 1, "batch_size": 1},
        }
    )


def long_spec(backend: str = "auto", length: int = 16_384, n_kv_heads: int | None = None, **attention: Any) -> RunSpec:
    attention = {"top_k": 1024, **attention}
    return validate(
        {
            "length": length,
            "attention": {"kind": "dsa", "backend": backend, **attention},
            "model": {"n_kv_heads": n_kv_heads},
            "train": {"batch_size": 1},
        }
    )


@pytest.mark.parametrize(
    ("n_kv_heads", "length", "top_k", "expected"),
    [(1, 2048, 512, "triton"), (1, 2048, 513, "masked"), (1, 2047, 128, "masked"), (1, 2047, 127, "triton"),
     (1, 1024, 64, "triton"), (1, 1024, 65, "masked"), (1, 1023, 16, "masked"), (1, 65_536, 4096, "triton"),
     (1, 65_536, 4097, "masked"), (1, 256, 32, "masked"), (None, 8192, 1024, "triton"), (None, 8192, 1025, "masked"),
     (None, 8191, 64, "masked")],
)  # fmt: skip
def test_auto_takes_the_kernels_where_they_pay_and_run(
    n_kv_heads: int | None, length: int, top_k: int, expected: str
) -> None:
    spec = long_spec(length=length, n_kv_heads=n_kv_heads, top_k=top_k)
    assert backend(spec, GPU) == expected
    assert backend(spec, CPU) == "masked"
    assert resolved(spec, GPU).attention.backend == expected  # type: ignore[attr-defined]
    assert spec.attention.backend == "auto", "what is stored and hashed stays as it was asked for"  # type: ignore[attr-defined]


def test_packed_documents_change_nothing() -> None:
    spec = long_spec()
    packed = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": "documents"})})
    assert backend(packed, GPU) == backend(spec, GPU) == "triton"


def test_other_attentions_have_no_choice() -> None:
    spec = validate({"attention": {"kind": "dense"}})
    assert resolved(spec, GPU) is spec
    assert backend(spec, GPU) is None


@pytest.mark.parametrize(
    ("execution", "reason"),
    [
        (CPU, "it needs a CUDA GPU, and the device is cpu"),
        (Execution(torch.device("cuda", 0), "bf16", True, False, fused=False), "engine.kernels = off"),
    ],
)
def test_triton_that_cannot_run_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, execution: Execution, reason: str
) -> None:
    monkeypatch.setattr("dsabench.ops.why_not", lambda device: None)
    with pytest.raises(SpecError, match=f"attention.backend = triton cannot run: {reason}; use auto or masked"):
        memory_plan.plan(small_spec("triton"), VOCAB, execution)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"top_k": 4097}, "attention.top_k keeps 4097, and its kernels take at most 4096"),
        ({"indexer": {"head_dim": 512}}, "attention.indexer.head_dim is 512"),
        ({"indexer": {"n_heads": 65}}, "attention.indexer.n_heads is 65"),
    ],
)
def test_sizes_that_the_kernels_do_not_take_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError, match=what):
        outline(long_spec("triton", **changes), VOCAB)
    assert backend(long_spec("auto", **changes), GPU) == "masked"


def test_a_model_asked_for_kernels_where_there_are_none_says_so() -> None:
    with pytest.raises(SpecError, match="backend = triton cannot run: it needs a CUDA GPU"):
        build(small_spec("triton"), VOCAB)(TOKENS)


@pytest.mark.parametrize("kind", ["dsa", "random", "sliding_window"])
def test_small_copies_are_audited_by_the_runs_own_backend(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def copies(spec: RunSpec, device: torch.device) -> list[RunSpec]:
        seen.append(getattr(spec.attention, "backend" if kind == "dsa" else "selection_backend"))
        raise RuntimeError("seen enough")

    monkeypatch.setattr(gate, "small_copies", copies)
    attention = {"kind": kind, "top_k": 1024}
    model = outline(validate({"length": 16_384, "attention": attention, "train": {"batch_size": 1}}), VOCAB)
    for fused in (True, False):
        gate.audit_model(model, Execution(torch.device("cpu"), "fp32", False, True, fused=fused))
    assert seen == ["triton", "masked"]


def test_a_run_of_the_kernels_can_be_loaded_without_them(corpus: Path, tmp_path: Path) -> None:
    spec = small_spec("masked")
    data = {"source": f"path:{corpus}/*.txt", "tokenizer": "bytes"}
    spec = validate(
        {**spec.model_dump(), "data": data, "engine": {"device": "cpu"}, "train": {"steps": 1, "batch_size": 1}}
    )
    record = single_run.train(spec, tmp_path)
    assert record.summary["attention_backend"] == "masked"
    path = tmp_path / record.run_id / "run.json"
    resealed.replace(path, '"masked"', '"triton"')
    model = models.load_model(tmp_path, record.run_id)
    assert model(TOKENS).logits_BTV.isfinite().all()


def test_limits_are_the_kernels() -> None:
    top_k = pytest.importorskip("dsabench.attention.dsa.triton.top_k")
    assert backends.MOST_KEYS == top_k.MOST_KEYS


def test_the_memory_estimate_follows_the_backend() -> None:
    """Quadratic with masks; with the kernels four bytes for each of a query's keys."""
    sizes = {
        (name, length): memory_plan.estimate(outline(long_spec(name, length), VOCAB), GPU, 1, False)["activations"]
        for name in ("masked", "triton")
        for length in (16_384, 32_768)
    }
    assert sizes["masked", 32_768] > 3.9 * sizes["masked", 16_384]
    assert sizes["triton", 32_768] == pytest.approx(2 * sizes["triton", 16_384])
    layer = outline(long_spec("triton"), VOCAB).layers()[0].attention
    assert layer.kept_per_pair(2) * 16_384 == 7 * 1024
