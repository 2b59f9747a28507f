"""Evaluation on fixed windows: loss, accuracy, bits per byte, the unigram baseline, loss by position, mass recall.

Legend: N windows, B batch, T time, K selected slots, S key.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import Selection
from dsabench.engine.chance import selection_chance_T
from dsabench.engine.device import Execution
from dsabench.model.transformer import Transformer

BATCH_TOKENS = 16_384
"""Tokens of one evaluation batch, which bounds the memory of its logits."""

CAPTURE_PAIRS = 2**20
"""Query-key pairs that mass recall is measured on, in whole windows, at least one."""

POSITION_BINS = 256
"""Loss by position has this many equal bins, or one for each position when the window is shorter."""


def evaluate(model: Transformer, tokens_NT: np.ndarray, execution: Execution) -> dict[str, Any]:
    """Metrics of the model, as it stands and in its stage, on windows of L + 1 tokens.

    loss               nats per token, mean over all targets
    accuracy           share of targets that are the most probable token
    loss_by_position   list of mean losses of equal bins of positions 0..L-1, first to last
    kl                 the attention's own loss, None where it has none
    """
    was_training = model.training
    model.eval()
    n_windows, length = tokens_NT.shape[0], tokens_NT.shape[1] - 1
    device = execution.device
    nats_T = torch.zeros(length, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    kl, has_kl = torch.zeros((), device=device), False
    batch = max(1, BATCH_TOKENS // length)
    with torch.inference_mode(), execution.autocast():
        for first in range(0, n_windows, batch):
            tokens_BT = torch.from_numpy(tokens_NT[first : first + batch].astype(np.int64)).to(device)
            output = model(tokens_BT[:, :-1])
            targets_BT = tokens_BT[:, 1:]
            logits_NV = output.logits_BTV.flatten(0, 1).float()
            nll_N = F.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none")
            nats_T += nll_N.view_as(targets_BT).to(nats_T.device).double().sum(0)
            correct += (output.logits_BTV.argmax(-1) == targets_BT).sum()
            if output.attention_loss is not None:
                kl, has_kl = kl + output.attention_loss * len(tokens_BT), True
    model.train(was_training)
    by_position = nats_T.cpu().numpy() / n_windows
    return {
        "loss": float(by_position.mean()),
        "accuracy": int(correct) / (n_windows * length),
        "loss_by_position": [float(part.mean()) for part in np.array_split(by_position, min(length, POSITION_BINS))],
        "kl": float(kl) / n_windows if has_kl else None,
    }


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
    was_training = model.training
    model.eval()
    total, n_seen = 0.0, 0
    with torch.inference_mode(), execution.autocast():
        for first in range(0, n_windows, batch):
            tokens_BT = torch.from_numpy(tokens_NT[first : first + batch].astype(np.int64))
            captured: dict[int, Selection] = {}
            model(tokens_BT[:, :-1].to(execution.device), capture=captured)
            if not captured:
                model.train(was_training)
                return None
            recall = torch.stack([recall_BT(selection)[:, k:].mean() for selection in captured.values()])
            total += float(recall.mean()) * len(tokens_BT)
            n_seen += len(tokens_BT)
    model.train(was_training)
    return {
        "mass_recall": total / n_seen,
        "mass_recall_chance": float(selection_chance_T(np.full(length, k))[k:].mean()),
    }


def recall_BT(selection: Selection) -> Tensor:
    """Attention mass inside each query's selection, (B, T), in [0, 1]."""
    filled_BTK = selection.selected_BTK >= 0
    mass_BTK = selection.mass_BTS.gather(-1, selection.selected_BTK.clamp(min=0))
    return (mass_BTK * filled_BTK).sum(-1)
