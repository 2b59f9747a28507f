"""One training step: forward, backward, clipping, AdamW; the same code for every variant, eager or in a CUDA graph.

Nothing in a step waits for the host. Metrics stay on the device in `history` until the loop fetches them.

Legend: B batch, T time, V vocabulary, S steps of a segment, M metrics.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dsabench.attention.base import Stage
from dsabench.engine.device import Execution
from dsabench.engine.optimization import Optimizer, learning_rate_factor
from dsabench.engine.weights import Weights
from dsabench.model.transformer import Transformer
from dsabench.spec.fields import RunSpec

METRICS = (
    "loss",
    "kl",
    "balance_loss",
    "grad_norm",
    "indexer_grad_norm",
    "router_entropy",
    "expert_load_max",
    "expert_load_min",
)
"""Columns of the step history, in order; `kl` and `indexer_grad_norm` are 0 where there is no indexer loss."""

EAGER_STEPS = 3
"""Steps at the start of a stage that run eagerly: they create optimizer state and library handles, which must exist
before a capture, and they are real training steps, so that capturing changes nothing that is learnt."""


class TrainStep:
    """Runs steps on static buffers; after `capture(stage)` the stage's steps are replays of one CUDA graph."""

    def __init__(self, model: Transformer, optimizer: Optimizer, spec: RunSpec, execution: Execution) -> None:
        self.model, self.optimizer, self.spec, self.execution = model, optimizer, spec, execution
        device = execution.device
        self.tokens_BT = torch.zeros(spec.batch_size, spec.length + 1, dtype=torch.int64, device=device)
        self.weights = Weights(model, execution)
        self.metrics_M = torch.zeros(len(METRICS), device=device)
        self.graphs: dict[Stage, torch.cuda.CUDAGraph] = {}
        self.has_own_loss = False
        """Whether the last computed step had a loss of the attention's own (an indexer's KL)."""
        self.stream = _side_stream(device) if device.type == "cuda" else None

    def run(self, first: int, stage: Stage, batches_SBT: Tensor) -> Tensor:
        """Train on batches[i] as step first + i; the metrics (S, M), on the device and possibly still running."""
        self.model.stage = stage
        batches_SBT = batches_SBT.to(self.execution.device, non_blocking=True)
        history_SM = torch.zeros(len(batches_SBT), len(METRICS), device=self.execution.device)
        with self._on_stream():
            for i, batch_BT in enumerate(batches_SBT):
                self.optimizer.set_rate(learning_rate_factor(self.spec.train, first + i))
                if self.spec.model.dropout:
                    # Keyed by seed and step alone: the same masks for every variant, and after a resume.
                    torch.manual_seed(dropout_seed(self.spec.seed, first + i))
                self.tokens_BT.copy_(batch_BT)
                if stage in self.graphs:
                    self.graphs[stage].replay()
                else:
                    self._compute(stage)
                history_SM[i].copy_(self.metrics_M)
        return history_SM

    def capture(self, stage: Stage) -> None:
        """Capture the stage's step in a CUDA graph; nothing is executed. Call after EAGER_STEPS steps of the stage."""
        assert self.stream is not None, "CUDA graphs need a CUDA device"
        self.execution.synchronize()
        self.model.stage = stage
        self.optimizer.adamw.zero_grad(set_to_none=True)  # gradients are then allocated in the graph's own pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._compute(stage)
        self.graphs = {stage: graph}  # an earlier stage's graph and its memory are no longer needed

    def _compute(self, stage: Stage) -> None:
        self.optimizer.adamw.zero_grad(set_to_none=True)
        with self.execution.autocast():
            self.weights.cast()
            loss, output = self.weights.call(self.tokens_BT[:, :-1], self.tokens_BT[:, 1:])
        self.has_own_loss = output.attention_loss is not None
        zero = torch.zeros((), device=loss.device)
        kl = zero if output.attention_loss is None else output.attention_loss
        total = zero
        if not (stage == "dense" and self.spec.attention.warmup_freezes_backbone()):
            total = total + loss + self.spec.model.balance_loss_weight * output.balance_loss
        if output.attention_loss is not None:
            total = total + self.spec.attention.own_loss_weight() * output.attention_loss
        total.backward()
        self.weights.collect()
        norm, own_norm = self.optimizer.step()
        load_E = output.expert_load_E
        values = (
            loss,
            kl,
            output.balance_loss,
            norm,
            own_norm,
            output.router_entropy,
            load_E.max(),
            load_E.min(),
        )
        torch.stack([value.detach().float() for value in values], out=self.metrics_M)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Work on the stream that captures use, ordered after and before the work around it."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.execution.device))
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream(self.execution.device).wait_stream(self.stream)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device for all runs of a process: PyTorch keeps cuBLAS workspaces for every stream that was ever
    used (64 MiB each on an H100), which would count in the peak memory of each later run."""
    return torch.cuda.Stream(device)


def dropout_seed(seed: int, step: int) -> int:
    """63 bits keyed by training seed and step."""
    digest = hashlib.blake2b(f"dropout/{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
