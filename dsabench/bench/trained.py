"""A trained model's own queries, keys, values and index projections, layer by layer, at any length.

Hidden states are those before a layer's attention, of the run's validation windows: each window goes through the
model by itself at the length it was trained at, so that they are what training saw and memory stays small. Windows
are laid end to end (from the first again when there are too few), and the layer projects them at positions 0 to L - 1:
the layer under the clock selects from the whole past, with rotary positions beyond those trained where L is longer.

Legend: B batch, T time, N windows, W tokens of a window, D model width, J indexer heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsabench import data as data_package
from dsabench import models
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.layer import DSA
from dsabench.bench.document import Settings
from dsabench.bench.inputs import DTYPES, Inputs
from dsabench.data import cut
from dsabench.engine.device import Execution
from dsabench.errors import SpecError
from dsabench.model.transformer import ForwardPass
from dsabench.ops import rotate
from dsabench.spec.stored_spec import stored_spec
from dsabench.store import find_run

_TOKENS_A_PASS = 8192


class TrainedRun:
    """Layers of a stored run: all, or one. Raises StoreError when there is no such run, SpecError when it is not DSA or
    has no such layer."""

    def __init__(self, store: str | Path, run: str, layer: int | None) -> None:
        record = find_run(store, run)
        self.run_id, self.spec = record.run_id, stored_spec(record.spec, record.run_id)
        if self.spec.attention.kind != "dsa":
            raise SpecError(f"--run {self.run_id}: its attention is {self.spec.attention.kind}; name a run of dsa")
        if self.spec.model.latent is not None:
            raise SpecError(
                f"--run {self.run_id}: its layout is latent, and what is timed here are heads with keys and values of "
                "their own; name a run with model.attention_layout = heads"
            )
        n_layers = self.spec.model.n_layers
        if layer is not None and not 0 <= layer < n_layers:
            raise SpecError(f"--layer {layer}: run {self.run_id} has layers 0 to {n_layers - 1}")
        self.model = models.load_model(store, self.run_id)
        self.attentions: dict[int, DSA] = {}
        """The attention of each layer that is looked at."""
        for i, block in enumerate(self.model.layers()):
            assert isinstance(block.attention, DSA)
            if layer == i and block.attention.follows is not None:
                raise SpecError(
                    f"--layer {layer}: it has the selection of layer {block.attention.follows}; name that one"
                )
            if layer in (None, i) and block.attention.indexer is not None:
                self.attentions[i] = block.attention

    def sizes(self) -> dict[str, int]:
        """The sizes of a layer, as fields of Settings; k is what the run keeps at its own length."""
        model, attention = self.spec.model, next(iter(self.attentions.values()))
        indexer = attention.indexer
        assert indexer is not None, "only layers with one are looked at"
        return {
            "heads": model.n_heads,
            "kv_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "indexer_heads": indexer.n_heads,
            "indexer_dim": indexer.head_dim,
            "top_k": attention.config.n_selected(self.spec.length),
        }

    def inputs(self, settings: Settings, execution: Execution) -> TrainedInputs:
        """The layers' inputs for the lengths of these settings. Raises DataError when the run's corpus is not here."""
        return TrainedInputs(self, settings, execution)


class TrainedInputs:
    """The `Source` of a trained run."""

    def __init__(self, run: TrainedRun, settings: Settings, execution: Execution) -> None:
        self.run, self.settings, self.execution = run, settings, execution
        needed = settings.batch * max(settings.lengths)
        windows = cut(data_package.prepare(run.spec.data), run.spec.length).evaluation("val", needed)
        self.tokens_NW = torch.from_numpy(np.asarray(windows.inputs, np.int64))
        run.model.to(execution.device)
        self.hidden = {layer: x_ND[:needed] for layer, x_ND in self._hidden().items()}

    def about(self) -> dict[str, Any]:
        """Where the inputs come from, as `measure.bench` takes it."""
        run, n_windows, length = self.run, len(self.tokens_NW), self.run.spec.length
        notes = []
        beyond = [one for one in self.settings.lengths if one > length]
        if beyond:
            which = ", ".join(f"L = {one}" for one in beyond)
            notes.append(
                f"{which}: beyond the {length} tokens that the run was trained at; selections are extrapolated:"
            )
            notes.append(
                f"windows of {length} tokens, end to end, are one text to the layer, at positions it never saw."
            )
        if self.settings.batch * max(self.settings.lengths) > n_windows * length:
            notes.append(f"There are {n_windows * length:,} validation tokens; longer inputs repeat them.")
        whose = ", ".join(map(str, run.attentions))
        layers = f"layer {whose}" if len(run.attentions) == 1 else f"layers {whose}"
        text = f"{n_windows} windows of {length} validation tokens"
        words = f"random; DSA also with those of run {run.run_id}, {layers}, on {text}"
        return {"inputs": words, "run_id": run.run_id, "layers": list(run.attentions), "notes": notes}

    def __call__(self, length: int, layer: int) -> Inputs:
        """A layer's inputs at positions 0 to L - 1, B rows; the gradient of the output is standard normal."""
        batch, device, dtype = self.settings.batch, self.execution.device, DTYPES[self.settings.dtype]
        x_ND = self.hidden[layer]
        at_N = torch.arange(batch * length, device=x_ND.device) % len(x_ND)
        x_BTD = x_ND[at_N].to(device).unflatten(0, (batch, length))
        context = AttentionContext(torch.arange(length, device=device))
        attention = self.run.attentions[layer]
        indexer = attention.indexer
        assert indexer is not None, "only layers with one are looked at"
        with torch.no_grad(), self.execution.autocast():
            q_BTHD, k_BSGD, v_BSGD = attention.projections.heads(x_BTD, context)
            cos_TD, sin_TD = indexer.rotation(context)
            q_BTJI = rotate(indexer.query(x_BTD).unflatten(-1, (-1, indexer.head_dim)), cos_TD, sin_TD)
            k_BSI = rotate(indexer.key_norm(indexer.key(x_BTD))[:, :, None], cos_TD, sin_TD)[:, :, 0]
            w_BTJ = indexer.weight(x_BTD) * indexer.scale
        generator = torch.Generator(device).manual_seed(length)
        d_out_BTHD = torch.randn(q_BTHD.shape, generator=generator, device=device)
        return Inputs(*(x.to(dtype).contiguous() for x in (q_BTHD, k_BSGD, v_BSGD, q_BTJI, k_BSI, w_BTJ, d_out_BTHD)))

    def _hidden(self) -> dict[int, Tensor]:
        """(tokens, D): what enters each layer's attention, window by window. On the host, where there is room."""
        caught: dict[int, list[Tensor]] = {layer: [] for layer in self.run.attentions}

        def catch(layer: int) -> Callable[[Any, tuple[Any, ...]], None]:
            return lambda module, given: caught[layer].append(given[0].flatten(0, 1).cpu())

        hooks = [a.register_forward_pre_hook(catch(layer)) for layer, a in self.run.attentions.items()]
        try:
            with torch.no_grad(), self.execution.autocast():
                for part_NW in self.tokens_NW.split(max(1, _TOKENS_A_PASS // self.run.spec.length)):
                    self.run.model.features(part_NW.to(self.execution.device), ForwardPass(losses=False))
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: torch.cat(parts) for layer, parts in caught.items()}
