"""Recall of attention mass and of known targets: the share of them inside a model's selections.

Legend: N windows, B batch, T time, K selected slots, S key, Q queries, G layers, M known targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsabench.attention.base import Selection, Stage, recall_queries
from dsabench.data import Batch
from dsabench.data.batch import evenly_spaced
from dsabench.engine.chance import selection_chance_T
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import BATCH_TOKENS, evaluating
from dsabench.model.transformer import ForwardPass, Transformer
from dsabench.spec.run import RunSpec

CAPTURE_PAIRS = 2**20
"""Query-key pairs that mass recall is measured on, rounded to whole windows, at least eight where there are so many."""


def selection_recall(
    model: Transformer, windows: Batch, execution: Execution, stage: Stage = "sparse", top_k: int | None = None
) -> dict[str, Any] | None:
    """Recall of a selecting variant on evenly spaced windows, beside its chance; None where nothing is to be judged.
    top_k: keys that a query keeps; None: those of the spec.

        mass_recall              share of full softmax attention mass (mean of heads) inside S[t], mean over layers and
                                 rows that kept fewer keys than they see (t >= k, where all keep k); of windows above
                                 RECALL_QUERIES tokens, of so many rows evenly spaced
        mass_recall_chance       the same for a random set of as many of the keys seen: mean over those rows of
                                 kept / seen, which is t + 1, or the place in the document where windows pack several

    and of windows with known targets also

        target_recall            share of the scored inputs' targets that are in S[t], mean over layers
        target_recall_by_layer   the same of each layer, first to last; None of one that does not select
        target_recall_best       of the best layer: one layer that finds them is enough
        target_recall_chance     for a random causal set: mean over targets of min(1, k / (t + 1))

    None when the variant does not select, keeps k >= L keys, where no row has a choice (nor in documents of k tokens or
    fewer), or captures nothing. In a hybrid stack, of the layers that select and have such rows, each with its own k.
    """
    inputs_NT, length = windows.inputs, windows.tokens.shape[1] - 1
    keys = {layer: k for layer, k in _keys_of_layers(model.spec, length, top_k).items() if k < length}
    if not keys:
        return None
    pairs = CAPTURE_PAIRS if windows.targets is None else 4 * CAPTURE_PAIRS  # targets are few: more windows
    n_windows = min(len(inputs_NT), max(8, pairs // length**2))
    # Evenly spaced over the split, so that short and long windows look at the same documents.
    chosen_N = evenly_spaced(len(inputs_NT), n_windows)
    inputs_NT = inputs_NT[chosen_N]
    targets_NTM = None if windows.targets is None else windows.targets[chosen_N]
    batch = max(1, BATCH_TOKENS // length)
    query_Q = recall_queries(length).numpy()
    documents_NT = None if windows.documents is None else windows.documents[chosen_N]
    seen_NQ = torch.from_numpy(keys_seen(documents_NT, n_windows, length)[:, query_Q]).to(execution.device)
    tallies: list[Tensor] = []
    found: list[Tensor] = []
    with torch.inference_mode(), execution.autocast(), evaluating(model):
        for first in range(0, n_windows, batch):
            inputs_BT = torch.from_numpy(inputs_NT[first : first + batch].astype(np.int64)).to(execution.device)
            captured: dict[int, Selection] = {}
            some = slice(first, first + batch)
            ids_BT = None if documents_NT is None else torch.from_numpy(documents_NT[some]).to(execution.device)
            forward_pass = ForwardPass(
                stage=stage,
                top_k=top_k,
                document_ids_BT=ids_BT,
                most_documents=windows.most_documents,
                capture=captured,
                whole_mass=False,
            )
            model(inputs_BT, forward_pass)
            judged = {layer: k for layer, k in keys.items() if layer in captured}
            if not judged:
                return None
            tallies.append(torch.stack([_tally(captured[layer], query_Q, seen_NQ[some]) for layer in judged]))
            if targets_NTM is not None:
                targets_BTM = torch.from_numpy(targets_NTM[first : first + batch]).to(execution.device)
                found.append(torch.stack([found_targets(captured[layer], targets_BTM) for layer in judged]))
    tally_G4 = torch.stack(tallies).sum(0).cpu()
    chose_G = tally_G4[:, 3] > 0
    if not chose_G.any():
        return None
    mass_G, chance_G, kept_G = (tally_G4[chose_G, :3] / tally_G4[chose_G, 3:]).T
    result: dict[str, Any] = {"mass_recall": float(mass_G.mean()), "mass_recall_chance": float(chance_G.mean())}
    if targets_NTM is not None:
        listed_T = (targets_NTM >= 0).sum((0, 2))
        layers = [layer for layer, chose in zip(judged, chose_G.tolist(), strict=True) if chose]
        found_G = torch.stack(found).sum(0)[chose_G.to(execution.device)] / int(listed_T.sum())
        recall = dict(zip(layers, found_G.tolist(), strict=True))
        chances = [np.minimum(1.0, selection_chance_T(np.full(length, kept))) for kept in kept_G.tolist()]
        result["target_recall"] = sum(recall.values()) / len(recall)
        result["target_recall_by_layer"] = [recall.get(layer) for layer in range(model.spec.model.n_layers)]
        result["target_recall_best"] = max(recall.values())
        result["target_recall_chance"] = float(np.mean([(listed_T * one).sum() / listed_T.sum() for one in chances]))
    return result


def _tally(selection: Selection, query_Q: NDArray[np.int64], seen_BQ: Tensor) -> Tensor:
    """Of the rows of a layer that kept fewer keys than they see: the sums of mass inside, of kept / seen and of the
    number kept, and how many rows there are; fp64 (fp32 on MPS). A selection may keep other numbers in other rows."""
    query = torch.from_numpy(query_Q).to(seen_BQ.device)
    kept_BQ = (selection.selected_BTK[:, query] >= 0).sum(-1)
    choice_BQ = kept_BQ < seen_BQ
    wide = torch.float32 if kept_BQ.device.type == "mps" else torch.float64
    values = (recall_BQ(selection, query_Q), kept_BQ.to(wide) / seen_BQ, kept_BQ, torch.ones_like(kept_BQ))
    return torch.stack([(value.to(wide) * choice_BQ).sum() for value in values])


def _keys_of_layers(spec: RunSpec, length: int, top_k: int | None) -> dict[int, int]:
    """k of each layer that selects, where a schedule says top_k (None: nothing)."""
    found = {}
    for layer in range(spec.model.n_layers):
        attention = spec.attention.at(layer)
        if (k := attention.n_selected(length)) is not None:
            follows = attention.key_changes() or not spec.attention.key_changes()
            found[layer] = top_k if top_k is not None and follows else k
    return found


def keys_seen(documents_NT: NDArray[np.int32] | None, n_windows: int, length: int) -> NDArray[np.int64]:
    """(N, T) how many keys each query may see: t + 1, or its place in its document, from 1."""
    place_NT = np.tile(np.arange(length), (n_windows, 1))
    if documents_NT is None:
        return place_NT + 1
    begins_NT = np.diff(documents_NT, axis=1, prepend=-1) != 0
    seen_NT: NDArray[np.int64] = place_NT - np.maximum.accumulate(place_NT * begins_NT, axis=1) + 1
    return seen_NT


def recall_BQ(selection: Selection, query_Q: NDArray[np.int64]) -> Tensor:
    """recall_BT of these queries: what the layer gave as mass_inside_BQ, else computed from its whole mass."""
    if selection.mass_inside_BQ is not None:
        return selection.mass_inside_BQ
    inside_BT = recall_BT(selection)
    return inside_BT[:, torch.from_numpy(query_Q).to(inside_BT.device)]


def recall_BT(selection: Selection) -> Tensor:
    """Attention mass inside each query's selection: (B, T), from 0 to 1."""
    filled_BTK = selection.selected_BTK >= 0
    assert selection.mass_BTS is not None
    mass_BTK = selection.mass_BTS.gather(-1, selection.selected_BTK.clamp(min=0))
    return (mass_BTK * filled_BTK).sum(-1)


def found_targets(selection: Selection, targets_BTM: Tensor) -> Tensor:
    """Number of listed positions in their query's selection; unused places and empty slots (-1) do not count."""
    b, t, m = (targets_BTM >= 0).nonzero(as_tuple=True)
    return (selection.selected_BTK[b, t] == targets_BTM[b, t, m][:, None]).any(-1).sum()
