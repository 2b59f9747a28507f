"""One window through a model with its selections captured, as plain numpy arrays: what analysis and plots look at.

Legend: T query, S key, K selected slots.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsabench.attention.base import Selection
from dsabench.attention.dsa.reference import EMPTY
from dsabench.engine.device import Execution
from dsabench.errors import DeviceError
from dsabench.model.transformer import ForwardPass, Transformer


@dataclass(frozen=True, eq=False)
class LayerSelection:
    """What one layer selected in one window, and what full attention would have looked at."""

    layer: int

    selected_TK: NDArray[np.int32]
    """Selected keys, the highest score first (rank 0), each once and none after its query; EMPTY (-1) at the end."""

    mass_TS: NDArray[np.float32]
    """Full softmax attention probabilities, mean over heads."""

    scores_TS: NDArray[np.float32] | None
    """Index scores; None for a variant that has none. Scores of keys after the query have no meaning."""

    @property
    def length(self) -> int:
        """Tokens of the window."""
        return len(self.selected_TK)

    @functools.cached_property
    def member_TS(self) -> NDArray[np.bool_]:
        """True where query t selected key s."""
        member_TS = np.zeros((self.length, self.length + 1), bool)
        np.put_along_axis(member_TS, self.selected_TK, True, axis=1)  # EMPTY is the last column
        return member_TS[:, :-1]

    @functools.cached_property
    def n_selected_T(self) -> NDArray[np.int64]:
        """|S[t]|."""
        count_T: NDArray[np.int64] = (self.selected_TK != EMPTY).sum(axis=1)
        return count_T

    @functools.cached_property
    def k(self) -> int:
        """The most keys that any query of the window selected."""
        return int(self.n_selected_T.max(initial=0))

    def at_slots(self, values_TS: NDArray[np.float32]) -> NDArray[np.float32]:
        """values[t, S[t]], (T, K); 0 in empty slots."""
        values_TK = np.take_along_axis(values_TS, np.maximum(self.selected_TK, 0), axis=1)
        return np.where(self.selected_TK == EMPTY, np.float32(0), values_TK)


def inspect(model: Transformer, tokens_T: NDArray[Any], execution: Execution) -> list[LayerSelection]:
    """The selections of every layer that captures one, first to last, in eval mode and the sparse stage; [] if none.

    The model must be on the execution's device, and is left as it was. Raises DeviceError when memory is too small.
    """
    captured: dict[int, Selection] = {}
    _logits_TV(model, tokens_T, execution, captured)
    return [_plain(layer, captured.pop(layer)) for layer in sorted(captured)]


def most_probable_T(model: Transformer, tokens_T: NDArray[Any], execution: Execution) -> NDArray[np.int64]:
    """The token that the model finds most probable after each of `tokens_T`, in eval mode and the sparse stage.

    Of equals the first. Raises DeviceError, as `inspect`.
    """
    found_T: NDArray[np.int64] = _logits_TV(model, tokens_T, execution).argmax(-1).cpu().numpy()
    return found_T


def _logits_TV(
    model: Transformer,
    tokens_T: NDArray[Any],
    execution: Execution,
    capture: dict[int, Selection] | None = None,
) -> torch.Tensor:
    was_training = model.training
    model.eval()
    tokens_BT = torch.from_numpy(np.asarray(tokens_T, np.int64))[None].to(execution.device)
    try:
        with torch.inference_mode(), execution.autocast():
            logits_TV: torch.Tensor = model(tokens_BT, ForwardPass(capture=capture)).logits_BTV[0]
            return logits_TV
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"out of memory on {execution.device} with a window of {len(tokens_T)} tokens, whose attention is stored "
            "whole; use --device cpu or a shorter text"
        ) from None
    finally:
        model.train(was_training)


def _plain(layer: int, selection: Selection) -> LayerSelection:
    scores_TS = None if selection.scores_BTS is None else selection.scores_BTS[0].float().cpu().numpy()
    assert selection.mass_BTS is not None, "the whole mass was asked for"
    selected_TK = ranked(selection.selected_BTK[0].cpu().numpy(), scores_TS)
    return LayerSelection(layer, selected_TK, selection.mass_BTS[0].float().cpu().numpy(), scores_TS)


def ranked(selected_TK: NDArray[Any], scores_TS: NDArray[np.float32] | None) -> NDArray[np.int32]:
    """The same sets with the highest score first, equal ones (and all, without scores) in the order given.

    A key after its query, and a key that is there twice, become empty slots; empty slots come last.
    """
    query_T1 = np.arange(len(selected_TK))[:, None]
    selected_TK = np.where((selected_TK >= 0) & (selected_TK <= query_T1), selected_TK, EMPTY).astype(np.int32)
    in_order_TK = np.sort(selected_TK, axis=1)
    twice_TK = (in_order_TK[:, 1:] == in_order_TK[:, :-1]) & (in_order_TK[:, 1:] != EMPTY)
    for t in np.flatnonzero(twice_TK.any(axis=1)):
        again_K = np.ones(selected_TK.shape[1], bool)
        again_K[np.unique(selected_TK[t], return_index=True)[1]] = False
        selected_TK[t, again_K] = EMPTY
    if scores_TS is not None:
        slots_TK = np.take_along_axis(scores_TS, np.maximum(selected_TK, 0), axis=1)
        selected_TK = np.take_along_axis(selected_TK, np.argsort(-slots_TK, axis=1, kind="stable"), axis=1)
    return np.take_along_axis(selected_TK, np.argsort(selected_TK == EMPTY, axis=1, kind="stable"), axis=1)
