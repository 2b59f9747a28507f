"""Evaluation on fixed windows: loss, accuracy, bits per byte, loss by position.

Legend: N windows, B batch, T time.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench import ops
from dsabench.attention.base import Stage
from dsabench.data import Batch
from dsabench.data.batch import Baseline
from dsabench.engine.device import Execution, first_line
from dsabench.engine.model_inputs import model_inputs
from dsabench.engine.staged_batches import pinned
from dsabench.engine.step import own_stream
from dsabench.model.transformer import ForwardPass, Transformer

BATCH_TOKENS = 16_384
"""Tokens of one evaluation batch, which bounds the memory of its logits."""

POSITION_BINS = 256
"""Equal bins of loss by position; one for each position where the window is shorter."""


class Evaluator:
    """Evaluates a model as it stands; whole batches are replays of one CUDA graph for each stage."""

    def __init__(self, model: Transformer, execution: Execution, pool: Any = None) -> None:
        """pool: the memory pool of the model's other graphs."""
        self.model, self.execution, self.pool = model, execution, pool
        self.graphs: dict[_Key, tuple[torch.cuda.CUDAGraph, list[Tensor], _Scores]] = {}

    def evaluate(
        self,
        windows: Batch,
        stage: Stage = "sparse",
        told: Callable[[float], None] = lambda share: None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """Metrics on windows of L + 1 tokens, of the targets that are scored; `told` is given the share that is done.
        top_k: keys that a query keeps; None: those of the spec.

        loss               nats per token, mean over all targets
        accuracy           share of targets that are the most probable token
        loss_by_position   list of mean losses of equal bins of positions 0..L-1, first to last; None in a bin in which
                           nothing is scored
        kl                 the attention's own loss, None where it has none
        nats               (N, L) array of the targets' losses, fp32; 0 where nothing is scored
        """
        tokens_NT, scored_NT = windows.tokens, windows.scored
        n_windows, length = tokens_NT.shape[0], tokens_NT.shape[1] - 1
        device = self.execution.device
        nats_T = torch.zeros(length, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        kl, has_kl = torch.zeros((), device=device), False
        nats_NT = torch.empty(n_windows, length, device=device)
        batch = max(1, BATCH_TOKENS // length)
        with torch.inference_mode(), self.execution.autocast(), evaluating(self.model):
            for first in range(0, n_windows, batch):
                tokens_BT = torch.from_numpy(tokens_NT[first : first + batch].astype(np.int64))
                others = [x for x in (scored_NT, windows.documents) if x is not None]
                given = [tokens_BT, *(torch.from_numpy(x[first : first + batch]) for x in others)]
                scores = self._score(given, batch, stage, top_k, windows.most_documents)
                nats_T += scores.nats_T.to(nats_T.device)
                nats_NT[first : first + batch] = scores.nll_BT
                correct += scores.correct
                if scores.kl is not None:
                    kl, has_kl = kl + scores.kl * len(tokens_BT), True
                told(min(1.0, (first + batch) / n_windows))
        count_T = np.full(length, n_windows) if scored_NT is None else scored_NT.sum(0)
        nats = np.array_split(nats_T.cpu().numpy(), min(length, POSITION_BINS))
        counts = [int(part.sum()) for part in np.array_split(count_T, len(nats))]
        return {
            "loss": float(nats_T.sum()) / windows.n_scored,
            "accuracy": int(correct) / windows.n_scored,
            "loss_by_position": [
                float(part.sum()) / count if count else None for part, count in zip(nats, counts, strict=True)
            ],
            "kl": float(kl) / n_windows if has_kl else None,
            "nats": nats_NT.cpu().numpy(),
        }

    def _score(
        self, given: list[Tensor], batch: int, stage: Stage, top_k: int | None, most_documents: int | None
    ) -> _Scores:
        tokens_BT = given[0]
        key = (stage, top_k, most_documents, *tokens_BT.shape)
        if key in self.graphs:
            graph, inputs, scores = self.graphs[key]
            for tensor, value in zip(inputs, given, strict=True):
                tensor.copy_(pinned(value), non_blocking=True)
            graph.replay()
            return scores
        given = [tensor.to(self.execution.device) for tensor in given]
        scores = scores_of(self.model, *key[:3], *given)
        if self.execution.graph and len(tokens_BT) == batch:
            try:
                self._capture(key, given)
            except RuntimeError as error:  # slower, and the same results: worth a warning, not an end
                self.execution = replace(self.execution, graph=False)
                warnings.warn(f"evaluation runs without a CUDA graph: {first_line(error)}", stacklevel=2)
        return scores

    def _capture(self, key: _Key, given: list[Tensor]) -> None:
        """Capture the scoring of batches of this shape; the one just scored has made what a capture needs."""
        inputs, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
        self.execution.synchronize()
        mode = self.execution.ranks.capture_mode
        with torch.cuda.graph(graph, self.pool, own_stream(self.execution), capture_error_mode=mode):
            scores = scores_of(self.model, *key[:3], *inputs)
        self.graphs[key] = (graph, inputs, scores)


_Key = tuple[Stage, int | None, int | None, int, int]
"""Of a graph: stage, top_k, most documents of a window, and the shape of its tokens."""


@dataclass(frozen=True)
class _Scores:
    """What one batch adds to the metrics, on the device."""

    nats_T: Tensor
    """Loss by position, summed over windows, fp64 (fp32 on MPS)."""

    nll_BT: Tensor
    """Loss of each target, fp32; 0 where it is not scored."""

    correct: Tensor
    kl: Tensor | None


def scores_of(
    model: Transformer,
    stage: Stage,
    top_k: int | None,
    most_documents: int | None,
    tokens_BT: Tensor,
    scored_BT: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> _Scores:
    """Of one batch of windows of T + 1 tokens, in the model's mode; the rest as `ForwardPass` has it."""
    forward_pass = ForwardPass(stage=stage, top_k=top_k, document_ids_BT=documents_BT, most_documents=most_documents)
    output = model(model_inputs(model.spec, tokens_BT, scored_BT), forward_pass)
    targets_BT = tokens_BT[:, 1:]
    nll_N, correct_N = token_scores(output.logits_BTV.flatten(0, 1), targets_BT.flatten())
    nll_BT = nll_N.view_as(targets_BT)
    if scored_BT is not None:
        nll_BT, correct_N = nll_BT * scored_BT, correct_N & scored_BT.flatten()
    nats_T = nll_BT.sum(0) if nll_BT.device.type == "mps" else nll_BT.double().sum(0)
    return _Scores(nats_T, nll_BT, correct_N.sum(), output.attention_loss)


def token_scores(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (N,) in nats, fp32, and whether the target is the most probable token (N,), the first of equals."""
    if ops.fused(logits_NV):
        from dsabench.ops.triton.scores import score_rows

        return score_rows(logits_NV, targets_N)
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(wide_NV, targets_N, reduction="none"), logits_NV.argmax(-1) == targets_N


@contextlib.contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """The model in eval mode inside, and in its own again after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss / (ln 2 * bytes per token): comparable between vocabularies."""
    return loss / (math.log(2.0) * bytes_per_token)


def evaluation_metrics(
    val: dict[str, Any], train: dict[str, Any], more: dict[str, Any], baseline: Baseline, is_task: bool
) -> dict[str, Any]:
    """The metrics of an evaluation by their names in `dsabench.metrics`: what is put in here is recorded, and is in the
    run's summary when it is the last.

    val, train: `Evaluator.evaluate` on held-out windows and on training windows. more: `selection_recall` of the former
    and `CopiedTokens.losses` on them, without lists. baseline: of the held-out windows.
    """
    bytes_per_token = baseline.bytes_per_token
    return {
        "val_loss": val["loss"],
        "val_accuracy": val["accuracy"],
        "val_bits_per_byte": None if bytes_per_token is None else bits_per_byte(val["loss"], bytes_per_token),
        "train_loss": train["loss"],
        "unigram_loss": baseline.loss,
        "task_accuracy": val["accuracy"] if is_task else None,
        "chance_accuracy": baseline.accuracy,
        "val_kl": val["kl"],
        **more,
    }


def extrapolated(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics by their names, and lists in the order of train.eval_multiples, of evaluations on longer windows."""
    return {
        "extrapolated_loss": found[-1]["loss"],
        "extrapolated_accuracy": found[-1]["accuracy"],
        "loss_by_multiple": [one["loss"] for one in found],
        "accuracy_by_multiple": [one["accuracy"] for one in found],
    }
