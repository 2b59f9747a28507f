"""Where a step's time goes on a GPU: kernels found, matched with replays, and attributed in both directions.

Run on a machine with one: pytest -m gpu tests/gpu/test_profile.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsabench.engine.device import resolve
from dsabench.engine.profiling.profiler import profile_cases
from dsabench.engine.profiling.result import Case, Profile
from dsabench.engine.profiling.trace import EAGER, kernels, read, timeline, windows
from dsabench.spec.run import validate

pytestmark = [
    pytest.mark.gpu_alone,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

MODEL = {"d_model": 256, "n_layers": 2, "n_heads": 4, "d_ff": 256}
DSA = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 32, "warmup_share": 0.3}}
NAMED = {"attention", "indexer", "top-k", "indexer loss", "experts", "rest of the model", "logits and loss"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(200)]
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(" ".join(generator.choice(words, 2000)), encoding="utf-8")
    return f"path:{tmp_path}/*.txt"


def profiled(
    source: str, folder: Path, attention: dict[str, Any] = DSA, engine: dict[str, Any] | None = None, **model: Any
) -> Profile:
    spec = validate(
        {
            "length": 128,
            "attention": attention,
            "model": {**MODEL, **model},
            "data": {"source": source, "vocab_size": 400},
            "train": {"steps": 60, "tokens_per_step": 4096},
            "engine": {"device": "cuda:0", **(engine or {})},
        }
    )
    return profile_cases([Case(spec, "sparse")], folder, resolve(spec.engine), steps=40)[0]


def split_of(profile: Profile) -> dict[str, float]:
    return {one.part: one.share for one in profile.parts}


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
@pytest.mark.parametrize("own_kernels", ["auto", "off"])
def test_replays_have_the_kernels_of_eager_steps_in_the_same_order(
    attention: dict[str, Any], own_kernels: str, source: str, tmp_path: Path
) -> None:
    profile = profiled(source, tmp_path / "out", attention, {"kernels": own_kernels})
    assert (profile.durations_from, profile.recognised_share) == ("replayed kernels", 1.0), profile.notes
    assert profile.kernels_per_step is not None and profile.kernels_per_step > 50
    assert 0.1 < profile.busy_share <= 1
    assert profile.kernel_ms is not None and profile.kernel_ms <= profile.traced_step_ms
    assert sum(one.ms for one in profile.parts) + profile.idle_ms == pytest.approx(profile.step_ms)
    shares = split_of(profile)
    expected = NAMED if attention is DSA else NAMED - {"indexer", "top-k", "indexer loss"}
    assert expected | {"optimizer"} <= {part for part, share in shares.items() if share > 0}
    assert shares["other"] < 0.1, shares
    for one in profile.parts:
        if one.part in expected - {"top-k"}:
            assert 0 < one.backward_ms < one.ms, one
    assert profile.peak_memory_mb is not None and profile.peak_memory_mb > 10


def test_experts_that_are_16_times_as_wide_take_the_step(source: str, tmp_path: Path) -> None:
    narrow, wide = (profiled(source, tmp_path / str(width), d_ff=width) for width in (256, 16 * 256))
    before, after = split_of(narrow), split_of(wide)
    assert after["experts"] / after["attention"] > 3 * before["experts"] / before["attention"]
    assert after["experts"] == max(share for part, share in after.items() if part != "optimizer")
    experts = next(one for one in wide.parts if one.part == "experts")
    assert 0.4 * experts.ms < experts.backward_ms < 0.9 * experts.ms


def test_without_a_graph_the_eager_kernels_are_split_and_the_gpu_idles_more(source: str, tmp_path: Path) -> None:
    eager = profiled(source, tmp_path / "eager", engine={"compile": "off"})
    graph = profiled(source, tmp_path / "graph")
    assert (eager.durations_from, eager.recognised_share) == ("eager kernels", 1.0)
    assert eager.busy_share < graph.busy_share
    assert split_of(eager)["other"] < 0.1


def test_every_triton_kernel_of_ours_has_a_part(source: str, tmp_path: Path) -> None:
    profile = profiled(source, tmp_path / "out")
    events = read(Path(profile.trace))
    (start, end), *_ = windows(events, EAGER)
    found = [kernel for kernel in kernels(events, timeline(events)) if start <= kernel.launched <= end]
    ours = [kernel for kernel in found if kernel.is_kernel and kernel.name.startswith("_")]
    assert len(ours) > 5, {kernel.name for kernel in found}
    assert not [kernel.name for kernel in ours if kernel.part == "other"]
    assert {kernel.part for kernel in ours if kernel.name.startswith("_select")} == {"top-k"}
    assert any(kernel.backward for kernel in ours)


def test_several_cases_in_one_process(source: str, tmp_path: Path) -> None:
    """The profiler comes and goes beside captured graphs, which some versions of CUPTI did not survive."""
    for i in range(3):
        assert profiled(source, tmp_path / str(i)).durations_from == "replayed kernels"
