"""Look-ahead found by experiment: change what comes later, and see whether what came before notices.

    leak at t  <=>  |f(x)[t] - f(x')[t]| > tolerance  for some x' that agrees with x at 0..t

The outputs of every layer and the final hidden state are compared. Logits at t are a product with the hidden state at
t alone, so nothing that reaches them is missed. A difference is relative to the RMS of its own layer's output at that
position, so that a leak is seen however small its layer's share of the residual stream is. Both passes have the same
shapes and the same random state, so rounding is the same in both and drops out.

Legend: R rows of a batch, T time, D model width, M modules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsabench.attention.base import Attention, Stage
from dsabench.audit.contract_calls import check_output
from dsabench.model.transformer import ForwardPass, Transformer

TOLERANCE_FP64 = 1e-5
"""Tolerance in fp64. Parts of a model may still compute in fp32, whose rounding (2e-6 of a padded FFT) it allows."""

QUIET = 0.1
"""An output below this share of its layer's RMS is compared with that share of it: where terms nearly cancel, rounding
is large beside the output."""

Kind = Literal["look-ahead", "rows", "calls"]
Outputs = Mapping[str, Tensor]
"""What a model computed, (R, T, ...) each, by the name of the module, in the order of computation."""

Forward = Callable[[Tensor, int], Outputs]
"""(inputs (R, T, ...), random seed) -> outputs."""


@dataclass(frozen=True)
class Leak:
    """An output that changed although nothing it may depend on did."""

    position: int
    """The first output position that changed."""

    boundary: int
    """The last position that was left as it was: only later ones were changed."""

    size: float
    """Largest change of that output, relative to its RMS; NaN when it became NaN."""

    kind: Kind = "look-ahead"
    """`look-ahead`; `rows`: it depends on other rows of the batch; `calls`: on chance or on earlier calls."""

    where: str = ""
    """The first module whose output changed there."""


@dataclass(frozen=True)
class Trial:
    """One row: which positions are changed, and up to which none is."""

    boundary: int
    changed: range


def later(boundary: int, length: int) -> Trial:
    """Everything after `boundary` is changed; at length - 1 nothing is, so that only other rows could matter."""
    return Trial(boundary, range(boundary + 1, length))


def thorough(boundary: int, length: int) -> list[Trial]:
    """Everything after `boundary`, the next position alone, the last one alone."""
    ways = {range(boundary + 1, length), range(boundary + 1, min(boundary + 2, length))}
    ways.add(range(max(boundary + 1, length - 1), length))
    return [Trial(boundary, way) for way in sorted(ways, key=len, reverse=True) if len(way)]


class Examination:
    """Trials on one model in one mode and stage, `rows` of them at a time, all against the same unchanged batch."""

    def __init__(
        self, forward: Forward, x_T: Tensor, other: Callable[[int], Tensor], rows: int, tolerance: float
    ) -> None:
        """x_T: the unchanged inputs of a row, (T, ...). other(rows): (rows, T, ...) inputs that differ from x
        everywhere, new ones each time."""
        self.forward, self.x_T, self.other, self.rows, self.tolerance = forward, x_T, other, rows, tolerance
        self.base: Outputs | None = None

    def calls(self, seed: int) -> Leak | None:
        """A leak from chance or earlier calls: another call with the random state `seed` gives other outputs than the
        first. To be called after `leaks`, whose calls had other inputs."""
        # NaN in both calls is no difference here: `leaks` has reported it.
        base = {name: value.nan_to_num() for name, value in self._base().items()}
        again = {name: value.nan_to_num() for name, value in self.forward(self._copies(), seed).items()}
        nothing = [later(len(self.x_T) - 1, len(self.x_T))] * self.rows
        found = [leak for _, leak in differences(base, again, nothing, "calls", self.tolerance)]
        return min(found, key=lambda leak: leak.position, default=None)

    def leaks(self, trials: Sequence[Trial]) -> list[Leak]:
        """The first confirmed leak into earlier positions, and the first one from other rows.

        A trial that finds a leak is done again with other inputs, in all rows of a batch. A choice between two keys or
        experts that rounding had tipped is then not tipped again, and other rows cannot be the cause.
        """
        found = sorted(self._run(trials), key=lambda pair: pair[1].position)
        rows = [leak for _, leak in found if leak.kind == "rows"][:1]
        suspects = list({trial: None for trial, leak in found if leak.kind == "look-ahead"})
        for trial in suspects[:4]:
            again = [leak for _, leak in self._run([trial] * self.rows)]
            if again:
                same = [leak for one, leak in found if one == trial]
                return [min([*same, *again], key=lambda leak: leak.position), *rows]
        return rows

    def first_leak(self, end: int, seconds: float) -> Leak | None:
        """The first position below `end` that leaks, searched from 0 on for at most so many seconds; None if none is
        found."""
        length, until = len(self.x_T), time.perf_counter() + seconds
        for start in range(0, min(end, length - 1), self.rows):
            boundaries = range(start, min(start + self.rows, end, length - 1))
            found = [leak for _, leak in self._run([later(t, length) for t in boundaries])]
            found = [leak for leak in found if leak.kind == "look-ahead"]
            if found or time.perf_counter() > until:
                return min(found, key=lambda leak: leak.position, default=None)
        return None

    def _run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Leak]]:
        base = self._base()
        last = len(self.x_T) - 1
        for first in range(0, len(trials), self.rows):
            chunk = list(trials[first : first + self.rows])
            chunk += [later(-1, len(self.x_T))] * (self.rows - len(chunk))  # fillers, in which no output is compared
            copies, other = self._copies(), self.other(self.rows)
            for row, trial in enumerate(chunk):
                copies[row, trial.changed.start : trial.changed.stop] = other[
                    row, trial.changed.start : trial.changed.stop
                ]
            for row, leak in differences(base, self.forward(copies, 0), chunk, "look-ahead", self.tolerance):
                trial = chunk[row]
                kind: Kind = "rows" if trial.boundary == last else "look-ahead"
                yield trial, Leak(leak.position, leak.boundary, leak.size, kind, leak.where)

    def _base(self) -> Outputs:
        if self.base is None:
            self.base = self.forward(self._copies(), 0)
        return self.base

    def _copies(self) -> Tensor:
        return self.x_T.expand(self.rows, *self.x_T.shape).clone()


def differences(
    base: Outputs, outputs: Outputs, trials: Sequence[Trial], kind: Kind, tolerance: float
) -> Iterator[tuple[int, Leak]]:
    """(row, its first leak) for every row in which an output at or before its trial's boundary changed."""
    change_MRT = torch.stack([relative_change(base[name], outputs[name]) for name in base])
    position_T = torch.arange(change_MRT.shape[-1], device=change_MRT.device)
    boundary_R = torch.tensor([trial.boundary for trial in trials], device=change_MRT.device)
    bad_MRT = ~(change_MRT <= tolerance) & (position_T <= boundary_R[:, None])  # `not <=`: NaN is a leak
    for row in bad_MRT.any(2).any(0).nonzero().flatten().tolist():
        position = int(bad_MRT[:, row].any(0).nonzero()[0])
        module = int(bad_MRT[:, row, position].nonzero()[0])
        size = float(change_MRT[module, row, position])
        yield row, Leak(position, trials[row].boundary, size, kind, list(base)[module])


def relative_change(base: Tensor, outputs: Tensor) -> Tensor:
    """max_d |outputs - base| / RMS of base at that position, (R, T); where base is silent, beside its layer's RMS."""
    base, outputs = base.flatten(2), outputs.flatten(2)
    square_RT = base.square().mean(-1)
    scale_RT = torch.maximum(square_RT.sqrt(), QUIET * square_RT.nanmean().sqrt())
    scale_RT = torch.where(scale_RT > 0, scale_RT, torch.ones_like(scale_RT))
    return (outputs - base).abs().amax(-1) / scale_RT


def layer_outputs(
    model: Transformer, stage: Stage, losses: bool = True, packed: bool = False, step: int = 0
) -> Forward:
    """Tokens (R, T) -> the output of every attention and expert layer and the final hidden state, in the model's mode,
    called as training or evaluation calls it: code may ask whether gradients are on, and for the step.

    losses: as AttentionContext has it. packed: each row has two documents, which meet elsewhere than in the next row.
    step: of training; evaluation has none. Raises SpecError when an attention returns something else than the contract
    asks for.
    """

    def forward(tokens_RT: Tensor, seed: int) -> Outputs:
        torch.manual_seed(seed)
        outputs: dict[str, Tensor] = {}
        forward_pass = ForwardPass(
            stage=stage,
            step=torch.full((1,), step, dtype=torch.int64, device=tokens_RT.device),
            document_ids_BT=two_documents(*tokens_RT.shape).to(tokens_RT.device) if packed else None,
            most_documents=2,
            losses=losses,
        )
        with torch.enable_grad() if model.training else torch.inference_mode(), _recording(model, outputs):
            outputs["the final hidden state"] = model.features(tokens_RT, forward_pass).x_BTD.detach()
        return outputs

    return forward


def two_documents(rows: int, length: int) -> Tensor:
    """Document ids (rows, length), int32: the second document of row r begins at 1 + 7 r mod (length - 1)."""
    start_R = 1 + 7 * torch.arange(rows) % max(1, length - 1)
    return (torch.arange(length) >= start_R[:, None]).int()


@contextmanager
def _recording(model: Transformer, outputs: dict[str, Tensor]) -> Iterator[None]:
    def attention_hook(name: str) -> Any:
        def hook(module: Attention, inputs: tuple[Any, ...], output: Any) -> None:
            check_output(module, inputs[0], output)
            outputs[name] = output.out_BTD.detach()

        return hook

    def experts_hook(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            outputs[name] = output[0].detach()

        return hook

    handles = []
    for layer, block in enumerate(model.layers()):
        handles.append(block.attention.register_forward_hook(attention_hook(f"layer {layer}'s attention")))
        handles.append(block.experts.register_forward_hook(experts_hook(f"layer {layer}'s experts")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def other_tokens(x_T: Tensor, vocab_size: int, seed: int) -> Callable[[int], Tensor]:
    """rows -> (rows, T) tokens that differ from x everywhere; drawn on the CPU, the same on every device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        steps = 1 + torch.randint(vocab_size - 1, (rows, len(x_T)), generator=generator)
        return (x_T + steps.to(x_T.device)) % vocab_size

    return draw
