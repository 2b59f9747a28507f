"""A store of models of several sizes, with a known curve for each attention and a known gap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import synthetic

from dsabench.spec.run import validate
from dsabench.store import SweepRecord, write_sweep

SHAPES = ((192, 3, 256), (384, 5, 512), (576, 8, 768), (896, 12, 1200), (1280, 17, 1712))
"""d_model, n_layers and d_ff of the rungs of configs/sizes.yaml."""

VOCAB, TOKENS = 8192, 2400 * 16384


def active(d_model: int, n_layers: int, d_ff: int) -> int:
    """About the active parameters of a rung: heads of 64 on one KV head, 2 of 4 experts."""
    return n_layers * (2 * d_model**2 + 128 * d_model + 6 * d_model * d_ff) + VOCAB * d_model


def sizes(
    store: Path,
    *,
    gap: Callable[[float], float],
    curve: tuple[float, float, float] = (1.6, 0.5, 0.2),
    cheaper: float = 0.9,
    noise: float = 0.002,
    seeds: Iterable[int] = (42, 43, 44),
    attentions: Iterable[dict[str, Any]] = ({"kind": "dense"}, {"kind": "dsa", "top_k": 64}),
    shapes: Iterable[tuple[int, int, int]] = SHAPES,
    lengths: Iterable[int] = (1024,),
    **summary: Any,
) -> None:
    """Write a ladder of finished runs: loss = a + b (C / 8e15)^-c of dense's FLOPs, a seed's own offset, noise, and
    gap(log10 of the active parameters) for what is not dense, which costs `cheaper` times as much."""
    generator = np.random.default_rng(3)
    a, b, c = curve
    rungs: dict[str, list[str]] = {}
    for d_model, n_layers, d_ff in shapes:
        n = active(d_model, n_layers, d_ff)
        ids = rungs.setdefault(f"{n / 1e6:.3g}M", [])
        for length in lengths:
            for attention in attentions:
                dense = attention["kind"] == "dense"
                for seed in seeds:
                    model = {"d_model": d_model, "n_layers": n_layers, "n_heads": d_model // 64, "d_ff": d_ff}
                    train = {"steps": 2400, "tokens_per_step": 16384}
                    spec = validate(
                        {"length": length, "seed": seed, "attention": attention, "model": model, "train": train}
                    )
                    flops = 6.0 * n * TOKENS
                    loss = a + b * (flops / 8e15) ** -c + 0.01 * (seed % 7) + noise * generator.standard_normal()
                    idle, indexer = 6 * n_layers * d_model * d_ff, 0 if dense else 324 * n_layers * d_model
                    ids.append(
                        synthetic.finished(
                            store,
                            spec,
                            loss + (0 if dense else gap(float(np.log10(n)))),
                            sweep="sizes-00000000",
                            flops=flops * (1 if dense else cheaper),
                            params=n + idle + indexer,
                            indexer_params=indexer,
                            text_tokens=TOKENS,
                            **summary,
                        )
                    )
    ids = [run for runs in rungs.values() for run in runs]
    write_sweep(store, SweepRecord(id="sizes-00000000", spec={"verdict": {"margin": 0.02}}, run_ids=ids, rungs=rungs))
