"""Runs on the CPU whose kernels are not executed: launches are seen, and what a kernel would have written is zeros.

Zeros are valid indices and finite losses, so that a run goes its whole way: audit, training, evaluation. Started as a
program it reports, for runs of the shapes below, what they launch and what `launch_all` foretells of them.

    python zero_filled.py launches CORPUS     one JSON object: run -> [launched, foretold], each a sorted list
    python zero_filled.py compiled CORPUS     kernels that a run compiles, and those that it finds in Triton's cache

In a process of its own, because Triton's kernels are interpreted in that of the tests.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from dsabench import ops
from dsabench.bench import check, measure
from dsabench.bench.document import Settings
from dsabench.bench.first_use import BenchLaunches
from dsabench.compilation.ahead import Ahead
from dsabench.compilation.compile_order import Order
from dsabench.compilation.done_before import DoneBefore
from dsabench.compilation.run_shape import Shape
from dsabench.compilation.specialisations import described, recorded
from dsabench.compilation.standby import Standby
from dsabench.engine.device import Execution
from dsabench.ops import Gpu
from dsabench.spec.run import RunSpec, validate
from dsabench.sweeps import single_run

GPU = Gpu((9, 0), 132)

DSA = {"kind": "dsa", "top_k": 8, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.5}}

RUNS: dict[str, dict[str, Any]] = {
    "dense": {},
    "masks": {"attention": {**DSA, "top_k_schedule": [[3, 16]]}, "model": {"n_experts": 8, "short_convolution": 4}},
    "latents": {
        "attention": {**DSA, "backend": "triton"},
        "model": {"attention_layout": "latent"},
        "data": {"packing": "documents"},
    },
    "hybrid": {
        "attention": {
            "kind": "hybrid",
            "layers": [
                {**DSA, "backend": "triton"},
                {"kind": "random", "selection_backend": "triton", "warmup_share": 0.5},
            ],
        },
        "model": {"n_heads": 8, "n_kv_heads": 1},
    },
}
"""Of different ways through the model's code, by what they add to `spec_of`."""


def spec_of(corpus: Path, name: str) -> RunSpec:
    more = RUNS.get(name, {})
    return validate(
        {
            "length": 40,
            "attention": {"kind": "dense"},
            "train": {"steps": 4, "tokens_per_step": 160, "warmup_steps": 1, "eval_every": 2, "eval_tokens": 520},
            **more,
            "model": {"d_model": 32, "n_layers": 3, "n_heads": 2, "d_ff": 32, **more.get("model", {})},
            "data": {"source": f"path:{corpus}", "tokenizer": "bytes", **more.get("data", {})},
        }
    )


class ZeroFilled(TorchDispatchMode):
    """Memory that is not written yet is zeros, in our operators, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dsabench":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if "empty" in func.overloadpacket.__name__:
            out.zero_()
        return out


@contextmanager
def as_on_the_gpu() -> Iterator[None]:
    """Runs inside choose their kernels as on the GPU, on tensors of the CPU."""
    honest = single_run.resolve
    single_run.resolve = lambda engine: Execution(torch.device("cpu"), "bf16", False, False, fused=True)
    try:
        with ops.planned(GPU), ZeroFilled():
            yield
    finally:
        single_run.resolve = honest


def trained(spec: RunSpec) -> None:
    with tempfile.TemporaryDirectory() as store, as_on_the_gpu():
        record = single_run.train(spec, store, progress=False)
    assert record.status == "done", record.error


def order_of(*specs: RunSpec) -> Order:
    shapes = tuple(Shape(spec, spec.expected_vocab_size, spec.batch_size, False) for spec in specs)
    return Order(shapes, GPU, "bf16", False, processes=2, scratch=tempfile.gettempdir())


def launches(corpus: Path) -> dict[str, list[list[str]]]:
    found = {}
    for name in sorted(RUNS.keys() - {"dense"}):
        order = order_of(spec := spec_of(corpus, name))
        with recorded(GPU) as foretold:  # first, because nothing of the attention is imported then
            order.wanted[0].launch(order)
        with recorded(GPU) as launched:
            trained(spec)
        found[name] = [sorted(f"{one.name} {one.data}" for one in them) for them in (launched, foretold)]
    return {**found, "bench": of_bench()}


def of_bench() -> list[list[str]]:
    """[launched, foretold] of a bench, whose implementations are taken to be right."""
    cpu, patch = torch.device("cpu"), pytest.MonkeyPatch()
    settings = Settings(
        lengths=[192], heads=8, head_dim=32, top_k=64, dtype="bf16", repeats=1, stages=["sparse", "dense"]
    )
    right = {"ok": True, "status": "timed", "error": 0.0, "reason": None}
    patch.setattr(measure, "small", lambda settings, device: check.small(settings, torch.device("cuda")))
    patch.setattr(measure, "check", lambda *rest: check.check(*rest).model_copy(update=right))
    patch.setattr(measure, "wrong_rows", lambda *rest: None)
    with recorded(GPU) as launched, ops.planned(GPU), ZeroFilled():
        document = measure.bench(settings, Execution(cpu, "bf16", False, False, fused=True))
    assert {cell.status for cell in document.cells if cell.implementation == "dsa-triton"} == {"timed"}
    patch.undo()
    with recorded(GPU) as foretold:
        BenchLaunches(settings).launch(Order((), GPU, "bf16", False))
    return [sorted(f"{one.name} {one.data}" for one in them) for them in (launched, foretold)]


def compiled(corpus: Path) -> dict[str, Any]:
    from triton import knobs
    from triton.runtime.jit import JITFunction

    order = order_of(spec := spec_of(corpus, "dense"))
    before, told = DoneBefore(order), list[str]()
    ahead = Ahead(Standby(), order, before)
    ahead.wait(told.append, lambda part, share: told.append(part))
    hits = Counter[bool]()
    launch = JITFunction.run
    knobs.compilation.listener = lambda *, cache_hit, **rest: hits.update([cache_hit])
    JITFunction.run = lambda self, *args, warmup, **rest: launch(self, *args, warmup=True, **rest)
    with described(GPU):
        trained(spec)
    return {
        "kernels": ahead.count.done, "failed": ahead.failed, "told": told, "remembered": before.holds(),
        "found": hits[True], "compiled": hits[False],
    }  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({"launches": launches, "compiled": compiled}[sys.argv[1]](Path(sys.argv[2]))))
