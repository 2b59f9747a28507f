"""Evaluation on fixed windows: loss, accuracy, bits per byte, the unigram baseline, loss by position, mass recall.

Legend: N windows, B batch, T time, K selected slots, S key.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench import kernels
from dsabench.attention.base import Selection, Stage
from dsabench.engine.chance import selection_chance_T
from dsabench.engine.device import Execution, first_line
from dsabench.engine.step import own_stream
from dsabench.model.transformer import Transformer

BATCH_TOKENS = 16_384
"""Tokens of one evaluation batch, which bounds the memory of its logits."""

CAPTURE_PAIRS = 2**20
"""Query-key pairs that mass recall is measured on, in whole windows, at least one."""

POSITION_BINS = 256
"""Loss by position has this many equal bins, or one for each position when the window is shorter."""


class Evaluator:
    """Evaluates a model, as it stands and in its stage; whole batches are replays of one CUDA graph for each stage."""

    def __init__(self, model: Transformer, execution: Execution, pool: Any = None) -> None:
        """pool: the memory pool of the model's other graphs."""
        self.model, self.execution, self.pool = model, execution, pool
        self.graphs: dict[tuple[Stage, int, int], tuple[torch.cuda.CUDAGraph, Tensor, _Scores]] = {}

    def evaluate(self, tokens_NT: np.ndarray) -> dict[str, Any]:
        """Metrics on windows of L + 1 tokens.

        loss               nats per token, mean over all targets
        accuracy           share of targets that are the most probable token
        loss_by_position   list of mean losses of equal bins of positions 0..L-1, first to last
        kl                 the attention's own loss, None where it has none
        """
        n_windows, length = tokens_NT.shape[0], tokens_NT.shape[1] - 1
        device = self.execution.device
        nats_T = torch.zeros(length, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        kl, has_kl = torch.zeros((), device=device), False
        batch = max(1, BATCH_TOKENS // length)
        with torch.inference_mode(), self.execution.autocast(), _evaluating(self.model):
            for first in range(0, n_windows, batch):
                tokens_BT = torch.from_numpy(tokens_NT[first : first + batch].astype(np.int64))
                scores = self._score(tokens_BT, batch)
                nats_T += scores.nats_T.to(nats_T.device)
                correct += scores.correct
                if scores.kl is not None:
                    kl, has_kl = kl + scores.kl * len(tokens_BT), True
        by_position = nats_T.cpu().numpy() / n_windows
        bins = np.array_split(by_position, min(length, POSITION_BINS))
        return {
            "loss": float(by_position.mean()),
            "accuracy": int(correct) / (n_windows * length),
            "loss_by_position": [float(part.mean()) for part in bins],
            "kl": float(kl) / n_windows if has_kl else None,
        }

    def _score(self, tokens_BT: Tensor, batch: int) -> _Scores:
        key = (self.model.stage, *tokens_BT.shape)
        if key in self.graphs:
            graph, input_BT, scores = self.graphs[key]
            input_BT.copy_(tokens_BT.pin_memory(), non_blocking=True)
            graph.replay()
            return scores
        tokens_BT = tokens_BT.to(self.execution.device)
        scores = _scores(self.model, tokens_BT)
        if self.execution.graph and len(tokens_BT) == batch:
            try:
                self._capture(key, tokens_BT)
            except RuntimeError as error:  # slower, and the same results: worth a warning, not an end
                self.execution = replace(self.execution, graph=False)
                warnings.warn(f"evaluation runs without a CUDA graph: {first_line(error)}", stacklevel=2)
        return scores

    def _capture(self, key: tuple[Stage, int, int], tokens_BT: Tensor) -> None:
        """For the next batches of this shape; the one just scored has warmed up what a capture needs."""
        input_BT, graph = tokens_BT.clone(), torch.cuda.CUDAGraph()
        self.execution.synchronize()
        with torch.cuda.graph(graph, pool=self.pool, stream=own_stream(self.execution)):
            scores = _scores(self.model, input_BT)
        self.graphs[key] = (graph, input_BT, scores)


@dataclass(frozen=True)
class _Scores:
    """What one batch adds to the metrics, on the device."""

    nats_T: Tensor
    """Loss by position, summed over windows, fp64 (fp32 on MPS)."""

    correct: Tensor
    kl: Tensor | None


def _scores(model: Transformer, tokens_BT: Tensor) -> _Scores:
    output = model(tokens_BT[:, :-1])
    targets_BT = tokens_BT[:, 1:]
    nll_N, correct_N = token_scores(output.logits_BTV.flatten(0, 1), targets_BT.flatten())
    nll_BT = nll_N.view_as(targets_BT)
    nats_T = nll_BT.sum(0) if nll_BT.device.type == "mps" else nll_BT.double().sum(0)
    return _Scores(nats_T, correct_N.sum(), output.attention_loss)


def token_scores(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (N,) in nats, fp32, and whether the target is the most probable token (N,), the first of equals."""
    if kernels.fused(logits_NV):
        from dsabench.kernels.scores import score_rows

        return score_rows(logits_NV, targets_N)
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(wide_NV, targets_N, reduction="none"), logits_NV.argmax(-1) == targets_N


@contextlib.contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def baselines(tokens_NT: np.ndarray, unigram_nats_V: np.ndarray, token_bytes_V: np.ndarray) -> tuple[float, float]:
    """Of the windows' targets: mean unigram loss in nats per token, and mean bytes per token (for bits per byte)."""
    targets = np.asarray(tokens_NT[:, 1:])
    return float(unigram_nats_V[targets].mean()), float(token_bytes_V[targets].mean())


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss / (ln 2 * bytes per token): comparable between vocabularies."""
    return loss / (math.log(2.0) * bytes_per_token)


def selection_recall(model: Transformer, tokens_NT: np.ndarray, execution: Execution) -> dict[str, float] | None:
    """Mass recall of a selecting variant, mean over layers and evenly spaced windows, beside its chance; else None.

        mass_recall         share of full softmax attention mass (mean of heads) inside S[t], mean over rows t >= k
        mass_recall_chance  the same for a random causal set of k keys: mean over those rows of k / (t + 1)

    None when the variant does not select, keeps k >= L keys, where no row has a choice, or captures nothing.
    """
    length = tokens_NT.shape[1] - 1
    k = model.spec.attention.n_selected(length)
    if k is None or k >= length:
        return None
    n_windows = min(len(tokens_NT), max(8, CAPTURE_PAIRS // length**2))
    # Evenly spaced, so that every length looks at the same documents and not at the first ones only.
    tokens_NT = tokens_NT[(2 * np.arange(n_windows) + 1) * len(tokens_NT) // (2 * n_windows)]
    batch = max(1, BATCH_TOKENS // length)
    total, n_seen = torch.zeros((), device=execution.device), 0
    with torch.inference_mode(), execution.autocast(), _evaluating(model):
        for first in range(0, n_windows, batch):
            tokens_BT = torch.from_numpy(tokens_NT[first : first + batch].astype(np.int64))
            captured: dict[int, Selection] = {}
            model(tokens_BT[:, :-1].to(execution.device), capture=captured)
            if not captured:
                return None
            recall = torch.stack([recall_BT(selection)[:, k:].mean() for selection in captured.values()])
            total += recall.mean() * len(tokens_BT)
            n_seen += len(tokens_BT)
    return {
        "mass_recall": float(total) / n_seen,
        "mass_recall_chance": float(selection_chance_T(np.full(length, k))[k:].mean()),
    }


def recall_BT(selection: Selection) -> Tensor:
    """Attention mass inside each query's selection, (B, T), in [0, 1]."""
    filled_BTK = selection.selected_BTK >= 0
    mass_BTK = selection.mass_BTS.gather(-1, selection.selected_BTK.clamp(min=0))
    return (mass_BTK * filled_BTK).sum(-1)
