"""A planned run's passes through its model on tensors without data: they launch what the run will launch.

The code is the run's own: the audit, a training step of every stage, a batch of the evaluation, and one whose
selections are captured. Tensors are PyTorch's fake ones, which have shapes, strides and dtypes, and cost no memory and
hardly any time; `ops.planned` has that code choose its kernels as on the GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode

from dsabench import attention, ops
from dsabench.attention.base import Stage
from dsabench.audit import gate
from dsabench.audit.causality import Examination, Leak, Trial
from dsabench.compilation.compile_order import Order
from dsabench.engine.backend import resolved
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import BATCH_TOKENS, evaluating, scores_of
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.run import RunSpec

EMPTY = torch.device("cpu")
"""Where tensors without data are said to be: autograd of a device that is not there ends the process."""

# All our kernels and operators: attentions import theirs when they are first called.
for _module in pkgutil.walk_packages(attention.__path__, f"{attention.__name__}."):
    if ".triton." in _module.name:
        importlib.import_module(_module.name)


def load() -> None:
    """Load what PyTorch needs for tensors without data, seconds of it, before there are several processes."""
    with without_data():
        torch.zeros(1) + 1


def launch_all(spec: RunSpec, vocab_size: int, micro_batch: int, recompute: bool, order: Order) -> None:
    """Launch, inside `recorded`, all kernels of a run of the spec, with micro_batch windows at a time. Raises what the
    model's code raises."""
    spec = _shallow(spec)
    execution = Execution(EMPTY, order.precision, graph=False, deterministic=order.deterministic, fused=True)
    with as_planned(order):
        audited = gate.audit_model(build(spec, vocab_size), execution, _OneCall)
        if audited.crash is not None:
            raise audited.crash
        model = build(resolved(spec, execution), vocab_size)
        step = TrainStep(model, Optimizer(model, model.spec, EMPTY), model.spec, execution, micro_batch, recompute)
        for stage in _stages(model.spec):
            for k in _keys(model.spec):
                step.top_k = k
                step.optimizer.zero_grad()
                step.backward(stage, micro_batch / model.spec.batch_size, *_batch(model.spec, micro_batch))
                _evaluate(model, execution, stage, k)


def _evaluate(model: Transformer, execution: Execution, stage: Stage, k: int | None) -> None:
    most = 2
    with torch.inference_mode(), execution.autocast(), evaluating(model):
        for several in (1, *model.spec.train.eval_multiples):
            spec = model.spec.model_copy(update={"length": several * model.spec.length})
            for n in _batches(spec):
                scores_of(model, stage, k, most, *_batch(spec, n))
        batch = [x for x in _batch(model.spec, max(_batches(model.spec))) if x is not None]
        documents_BT = batch[-1] if model.spec.data.packing == "documents" else None
        model(
            batch[0][:, :-1],
            ForwardPass(
                stage, top_k=k, document_ids_BT=documents_BT, most_documents=most, capture={}, whole_mass=False
            ),
        )


def _batches(spec: RunSpec) -> set[int]:
    """Windows of the batches of an evaluation, of a text that has so many: of whole ones, and of the last."""
    windows, rows = -(-spec.train.eval_tokens // spec.length), max(1, BATCH_TOKENS // spec.length)
    return {min(rows, windows), windows % rows} - {0}


def _batch(spec: RunSpec, rows: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(tokens, which targets are scored, document ids), as a run of this spec has them."""
    shape, packed = (rows, spec.length), spec.data.packing == "documents"
    tokens_BT = torch.zeros(rows, spec.length + 1, dtype=torch.int64)
    scored_BT = torch.zeros(shape, dtype=torch.bool) if spec.data.task is not None or packed else None
    return tokens_BT, scored_BT, torch.zeros(shape, dtype=torch.int32) if packed else None


def _stages(spec: RunSpec) -> Sequence[Stage]:
    return ("sparse", "dense") if spec.attention.warmup_steps(spec.train.steps) else ("sparse",)


def _keys(spec: RunSpec) -> list[int | None]:
    """Every k that the run has, None for the spec's own."""
    steps = [0, *(step for step in spec.attention.key_changes() if step < spec.train.steps)]
    return list(dict.fromkeys(spec.attention.top_k_at(step) for step in steps))


def _shallow(spec: RunSpec) -> RunSpec:
    """The spec with two layers where all layers are alike: others launch the same."""
    if spec.attention.fewest_layers() > 1 or len(spec.attention.distinct()) > 1 or spec.model.n_layers <= 2:
        return spec
    return spec.model_copy(update={"model": spec.model.model_copy(update={"n_layers": 2})})


@contextmanager
def as_planned(order: Order) -> Iterator[None]:
    """Inside, new tensors have no data, and code chooses its kernels as on the order's GPU."""
    with ops.planned(order.gpu), _determinism(order.deterministic), without_data():
        yield


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, new tensors have no data. Our custom operators, whose stand-ins for such tensors give shapes alone, run
    their own code."""
    ours = [operator for name, operator in OPDEFS.items() if name.startswith("dsabench::")]
    before, apply = [operator._abstract_fn for operator in ours], nn.Module._apply
    for operator in ours:
        operator.register_fake(operator._init_fn)
    nn.Module._apply = _converted  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(), _AllIsWell(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]
        for operator, stand_in in zip(ours, before, strict=True):
            operator._abstract_fn = stand_in


def _converted(module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which exchanges tensors in place, and cannot where they have no data."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for key, parameter in module._parameters.items():
        if parameter is not None and (new := convert(parameter.detach())).dtype != parameter.dtype:
            module._parameters[key] = nn.Parameter(new, parameter.requires_grad)
    for key, buffer in module._buffers.items():
        module._buffers[key] = None if buffer is None else convert(buffer)
    return module


class _AllIsWell(FakeTensorMode):
    """Answers what code asks of tensors that have no data: a check holds, a number is 0 or 1, and nothing is found."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0
        if func in (torch.ops.aten.allclose.default, torch.ops.aten.equal.default):
            return True
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((0, args[0].ndim), dtype=torch.int64)
        return super().__torch_dispatch__(func, types, args, kwargs)


class _OneCall(Examination):
    """Looks at nothing: one call launches all that many do."""

    def leaks(self, trials: Sequence[Trial]) -> list[Leak]:
        self._base()
        return []

    def calls(self, seed: int) -> Leak | None:
        return None


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
