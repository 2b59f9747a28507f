"""The calls that training makes of an attention, each made once on little data before anything is written.

They are the forward and the backward pass, and the capture of selections that an evaluation asks for. The causality
audit checks outputs of its own forward passes by `check_output`, too.

Legend: B batch, T query, S key, D model width, K selected slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dsabench.attention.base import Attention, AttentionContext, AttentionOutput, Selection, Stage, recall_queries
from dsabench.attention.construction import DEBUG
from dsabench.attention.faults import fault, file_of, line_in, said
from dsabench.errors import DsabenchError, SpecError
from dsabench.model.transformer import Transformer

TOLERANCE = 1e-4
"""Largest change of an output that rounding may explain in fp32, relative to outputs of order 1."""


def rehearse(model: Transformer, stages: Iterable[Stage]) -> None:
    """Run each layer's attention forward and backward in these stages, and with its selection captured.

    Leaves the model's weights and mode as they were, and no gradients. Raises SpecError naming the attention's file and
    the part of the contract that it breaks. Out of memory is no such error: the memory plan says what fits.
    """
    was_training, device = model.training, model.embedding.weight.device
    try:
        for one in (block.attention for block in model.layers()):
            before = None if one.follows is None else model.layers()[one.follows].attention
            for stage in stages:
                _forward_and_backward(one.train(), stage, device, before)
                for whole_mass in (True, False):
                    _capture(one.eval(), stage, device, whole_mass, before)
                if model.spec.data.packing == "documents":
                    for mode in (True, False):
                        _documents_apart(one.train(mode), stage, device, before)
    except torch.OutOfMemoryError:
        return
    finally:
        model.train(was_training)


def check_output(attention: Attention, x_BTD: Tensor, output: Any) -> None:
    """Raises SpecError when what `forward` returned for x is not what the contract asks for."""
    if wrong := _wrong_output(x_BTD, output):
        raise _fault(attention, f"forward returned {wrong}")


def blamed(model: Transformer, error: Exception) -> Exception:
    """`error`; as a SpecError when it is not one already and came from the attention's own file."""
    if isinstance(error, DsabenchError | torch.OutOfMemoryError):  # whoever runs out of memory need not be to blame
        return error
    for cls, kind in {type(one.attention): one.attention.spec.attention.kind for one in model.layers()}.items():
        file = file_of(cls)
        if file is not None and line_in(error, file) is not None:
            told = fault(cls, kind, f"it raised {said(error)} {DEBUG}", error)
            told.__cause__ = error
            return told
    return error


def _forward_and_backward(attention: Attention, stage: Stage, device: torch.device, before: Attention | None) -> None:
    attention.zero_grad(set_to_none=True)
    leaf_BTD = _input(attention, 2, device).requires_grad_()
    x_BTD = leaf_BTD * 1  # no leaf of autograd, as in training
    output = _call(attention, x_BTD, stage, before=before)
    total = output.out_BTD.square().mean()
    if output.aux_loss is not None:
        total = total + output.aux_loss
    if not total.requires_grad:
        return
    try:
        total.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _fault(attention, f"the backward pass of forward ({stage} stage) raised {said(error)}", error) from error
    for name, tensor in (("its input", leaf_BTD), *attention.named_parameters()):
        if tensor.grad is not None and not tensor.grad.isfinite().all():
            raise _fault(
                attention, f"the gradient of {name} is NaN or infinite, though the output is finite ({stage} stage)"
            )
    attention.zero_grad(set_to_none=True)


def _documents_apart(attention: Attention, stage: Stage, device: torch.device, before: Attention | None) -> None:
    """Check that the second of two packed documents does not see the first, which ends at another place in each row."""
    x_BTD, length = _input(attention, 2, device), attention.spec.length
    ids_BT = (torch.arange(length) >= torch.tensor([[length // 2], [length // 3]])).int().to(device)
    second_BT1 = (ids_BT > 0)[..., None]
    changed_BTD = torch.where(second_BT1, x_BTD, x_BTD.flip(-1))
    outputs = []
    for x in (x_BTD, changed_BTD):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(0)  # dropout, in train mode
            outputs.append(
                _call(attention, x, stage, ids_BT=ids_BT, before=before).out_BTD.masked_fill(~second_BT1, 0.0)
            )
    one, other = outputs
    if not torch.allclose(one, other, rtol=0.0, atol=TOLERANCE * max(1.0, float(one.abs().max()))):
        mode = "train" if attention.training else "eval"
        raise _fault(
            attention,
            f"forward attends across documents ({mode} mode, {stage} stage), and data.packing = documents puts several "
            "into a window; context.document_ids_BT tells them apart, in each row others, and context.allowed heeds it",
        )


def _capture(
    attention: Attention, stage: Stage, device: torch.device, whole_mass: bool, before: Attention | None
) -> None:
    capture: dict[int, Selection] = {}
    with torch.no_grad():
        _call(attention, _input(attention, 1, device), stage, capture, whole_mass=whole_mass, before=before)
    length, layer = attention.spec.length, attention.layer
    if strange := capture.keys() - {layer}:
        raise _fault(
            attention, f"forward put a selection into context.capture[{strange.pop()!r}]; its layer is {layer}"
        )
    if layer in capture and (wrong := _wrong_selection(capture[layer], length, whole_mass)):
        raise _fault(attention, f"forward put into context.capture {wrong}")


def _input(attention: Attention, rows: int, device: torch.device) -> Tensor:
    spec = attention.spec
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, spec.length, spec.model.d_model, generator=generator).to(device)


def _call(
    attention: Attention,
    x_BTD: Tensor,
    stage: Stage,
    capture: dict[int, Selection] | None = None,
    ids_BT: Tensor | None = None,
    whole_mass: bool = True,
    before: Attention | None = None,
) -> AttentionOutput:
    """One pass through the layer alone, after the one that it follows, which is given the same input."""
    positions_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    step = torch.zeros(1, dtype=torch.int64, device=x_BTD.device) if attention.training else None
    context = AttentionContext(positions_T, stage, ids_BT, capture, step, whole_mass)
    method = "prepare"
    if before is not None:
        before.train(attention.training).prepare(context)
        with torch.no_grad():
            before(x_BTD, context)
        if capture is not None:
            capture.clear()
    try:
        attention.prepare(context)
        method = "forward"
        output: AttentionOutput = attention(x_BTD, context)
    except (DsabenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        mode = "train" if attention.training else "eval"
        what = f"{method} raised {said(error)} (input {tuple(x_BTD.shape)}, {mode} mode, {stage} stage)"
        raise _fault(attention, what, error) from error
    check_output(attention, x_BTD, output)
    return output


def _wrong_output(x_BTD: Tensor, output: Any) -> str | None:
    if not isinstance(output, AttentionOutput):
        return f"{type(output).__name__}; an AttentionOutput is expected: AttentionOutput(out_BTD, aux_loss or None)"
    out_BTD, loss = output.out_BTD, output.aux_loss
    if not isinstance(out_BTD, Tensor):
        return f"out_BTD of type {type(out_BTD).__name__}; a tensor is expected"
    if out_BTD.shape != x_BTD.shape:
        return f"out of shape {tuple(out_BTD.shape)} for an input of {tuple(x_BTD.shape)}; the same shape is expected"
    if x_BTD.dtype == torch.float32 and out_BTD.dtype != x_BTD.dtype:
        return f"out of {out_BTD.dtype} for an input of {x_BTD.dtype}; the same dtype is expected"
    if not out_BTD.isfinite().all() and x_BTD.isfinite().all():
        position = int((~out_BTD.isfinite()).flatten(2).any(2).any(0).nonzero()[0])
        return f"NaN or infinity, first at position {position}, for an input that is finite"
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        return f"aux_loss of type {type(loss).__name__}; a scalar tensor is expected, or None"
    if loss.shape != () or not loss.is_floating_point():
        return f"aux_loss of shape {tuple(loss.shape)} and {loss.dtype}; a scalar floating-point tensor is expected"
    return None if loss.isfinite() else f"aux_loss = {loss.detach().item()}; a finite number is expected"


def _wrong_selection(selection: Any, length: int, whole_mass: bool) -> str | None:
    if not isinstance(selection, Selection):
        return f"{type(selection).__name__}; a Selection is expected"
    selected_BTK = selection.selected_BTK
    if not isinstance(selected_BTK, Tensor) or selected_BTK.is_floating_point() or selected_BTK.dim() != 3:
        return "selected_BTK that is no integer tensor of three dimensions"
    if selected_BTK.shape[:2] != (1, length):
        return f"selected_BTK of shape {tuple(selected_BTK.shape)}; (1, {length}, K) is expected here"
    if selected_BTK.numel() and not (int(selected_BTK.min()) >= -1 and int(selected_BTK.max()) < length):
        return f"selected_BTK with values beyond -1 (an empty slot) to {length - 1} (the last key)"
    inside_BQ, n_queries = selection.mass_inside_BQ, len(recall_queries(length))
    if inside_BQ is not None and (not isinstance(inside_BQ, Tensor) or inside_BQ.shape != (1, n_queries)):
        return f"mass_inside_BQ that is no tensor of shape (1, {n_queries})"
    if selection.mass_BTS is None and (whole_mass or inside_BQ is None):
        return "a Selection without mass_BTS" + ("" if whole_mass else " or mass_inside_BQ, of which one is needed")
    for name, value_BTS in (("mass_BTS", selection.mass_BTS), ("scores_BTS", selection.scores_BTS)):
        if value_BTS is None:
            continue
        if not isinstance(value_BTS, Tensor) or value_BTS.shape != (1, length, length):
            shape = tuple(value_BTS.shape) if isinstance(value_BTS, Tensor) else type(value_BTS).__name__
            return f"{name} of shape {shape}; (1, {length}, {length}) is expected here"
    return None


def _fault(attention: Attention, what: str, error: Exception | None = None) -> SpecError:
    return fault(type(attention), attention.spec.attention.kind, what if error is None else f"{what} {DEBUG}", error)
