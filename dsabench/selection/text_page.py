"""The page of a selection: a text in which each query's selected and missed tokens light up. One file, no network.

For each layer the page holds one block of bytes, in base64, which it reads when the layer is first shown. L tokens,
little-endian, in this order:

    n_selected  L uint32     |S[t]|
    n_missed    L uint32     keys not selected that have more than an even share of the attention
    recall      L float32    attention mass inside S[t]
    low, high   L float32    lowest and highest index score of each query's selected keys
    selected    bits         one for each pair s <= t, row by row, the first in a byte's highest bit
    missed      bits         the same
    mass        uint8        of the selected and missed pairs, row by row: 0 below 1e-6, else 1e-6 * 10^(6 (q-1) / 254)
    score       uint8        of the selected pairs, row by row: low + (high - low) q / 255; absent without scores

Legend: T query, S key.
"""

from __future__ import annotations

import base64
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsabench.engine.chance import selection_chance_T
from dsabench.plain import visible
from dsabench.selection.numbers import layer_recall_T, missed_TS
from dsabench.selection.targets import question_list
from dsabench.store.files import write_file

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection
    from dsabench.selection.stored_run import Inspection

LEAST_MASS = 1e-6
"""The smallest attention that is shown as a number; below it stands `<`."""

_MARK = r"(?://|/\*|<!--) task(?: \*/| -->)?$"
_TASK_ONLY = {True: (f" +{_MARK}", ""), False: (f"^.*{_MARK}\n", "")}
"""How lines of the template that are for a task's window alone are kept (True) or cut (False)."""

_SHOWN = ("layer", "k", "mass_recall", "mass_recall_chance", "mass_recall_best", "oracle_overlap")


def selection_page(inspection: Inspection, path: Path) -> Path:
    """Write the page; the same inspection gives the same bytes. Raises ResultsError."""
    return write_file(path, page(inspection).encode())


def page(inspection: Inspection) -> str:
    """The whole HTML document."""
    blocks = (
        f'<script type="text/plain" id="layer-{i}">{base64.b64encode(layer_bytes(layer)).decode("ascii")}</script>'
        for i, layer in enumerate(inspection.layers)
    )
    parts = {
        "TITLE": html.escape(f"Selection of {inspection.run_id}"),
        "SUBTITLE": html.escape(visible(inspection.title.removeprefix(f"{inspection.run_id}: "))),
        "NOTES": "".join(f"<li>{html.escape(visible(note))}</li>" for note in inspection.notes),
        "DATA": _json(page_data(inspection)),
        "LAYERS": "\n".join(blocks),
    }
    template = (resources.files("dsabench.selection") / "text_page.html").read_text(encoding="utf-8")
    template = re.sub(*_TASK_ONLY[inspection.questions is not None], template, flags=re.MULTILINE)
    # One pass: a text that spells a placeholder is never expanded.
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)


def page_data(inspection: Inspection) -> dict[str, Any]:
    """The page's data beside the blocks of bytes; for a task with its queries, and the query to begin with."""
    layers = zip(inspection.layers, inspection.numbers["layers"], strict=True)
    task: dict[str, Any] = {}
    shown: tuple[str, ...] = _SHOWN
    if inspection.questions is not None:
        shown = (*_SHOWN, "target_recall", "target_recall_chance")
        first = inspection.layers.index(inspection.default_layer)
        task = {"separator": inspection.separator, "first": first, "asked": _asked(inspection)}
    return {
        "tokens": [_shown(piece) for piece in inspection.pieces],
        "layers": [
            {**{name: numbers[name] for name in shown}, "scores": layer.scores_TS is not None}
            for layer, numbers in layers
        ],
        "chance": [
            [round(float(share), 4) for share in selection_chance_T(layer.n_selected_T)] for layer in inspection.layers
        ],
        **task,
    }


def _asked(inspection: Inspection) -> list[dict[str, Any]]:
    """Each scored query with its answers and targets; ranks of a target, one a layer: -1 not selected, 0 selected by a
    layer without scores, else from 1 for the highest score on."""
    assert inspection.questions is not None
    return [
        {
            "query": one["query"],
            "answer": visible(one["answer"]),
            "model": visible(one["model_answer"]),
            "targets": [
                {
                    "key": target["key"],
                    "ranks": [
                        (0 if at["rank"] is None else at["rank"] + 1) if at["selected"] else -1
                        for at in target["layers"]
                    ],
                }
                for target in one["targets"]
            ],
        }
        for one in question_list(inspection.pieces, inspection.layers, inspection.questions)
    ]


def layer_bytes(layer: LayerSelection) -> bytes:
    """The block of one layer."""
    causal_TS = np.tri(layer.length, dtype=bool)
    missed = missed_TS(layer)
    low_T, high_T, score = _scores(layer)
    marked_TS = layer.member_TS | missed
    parts = [
        layer.n_selected_T.astype("<u4"),
        missed.sum(axis=1).astype("<u4"),
        layer_recall_T(layer).astype("<f4"),
        low_T.astype("<f4"),
        high_T.astype("<f4"),
        np.packbits(layer.member_TS[causal_TS]),
        np.packbits(missed[causal_TS]),
        _mass_bytes(layer.mass_TS[marked_TS]),
        score,
    ]
    return b"".join(part.tobytes() for part in parts)


def _mass_bytes(mass: NDArray[np.float32]) -> NDArray[np.uint8]:
    level = 1 + np.rint(254 * (1 - np.log10(np.maximum(mass, LEAST_MASS)) / np.log10(LEAST_MASS)))
    return np.where(mass < LEAST_MASS, 0, np.clip(level, 1, 255)).astype(np.uint8)


def _scores(layer: LayerSelection) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """low[t], high[t], and the selected pairs' levels between them."""
    if layer.scores_TS is None:
        return np.zeros(layer.length, np.float32), np.zeros(layer.length, np.float32), np.zeros(0, np.uint8)
    score = layer.scores_TS[layer.member_TS]
    finite = np.isfinite(score)
    low_T, high_T = np.full(layer.length, np.inf, np.float32), np.full(layer.length, -np.inf, np.float32)
    query = np.nonzero(layer.member_TS)[0]
    np.minimum.at(low_T, query[finite], score[finite])
    np.maximum.at(high_T, query[finite], score[finite])
    none_T = low_T > high_T
    low_T[none_T], high_T[none_T] = 0, 0
    span = np.maximum((high_T - low_T)[query], np.finfo(np.float32).tiny)
    level = np.rint(255 * (np.where(finite, score, low_T[query]) - low_T[query]) / span)
    return low_T, high_T, np.clip(level, 0, 255).astype(np.uint8)


def _shown(piece: str) -> str:
    """A token's text for the page: a mark and a line break for each end of a line, escapes for control codes."""
    if not piece:
        return "\u00b7"  # a part of a character that stands at an earlier token
    return "".join("\u21b5\n" if character == "\n" else visible(character) for character in piece)


def _json(data: Any) -> str:
    """JSON inside a script element: `<` escaped, so that no text ends the element or opens a comment."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
