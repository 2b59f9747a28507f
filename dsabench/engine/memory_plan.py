"""The memory that a run needs, estimated before it starts, and its cut into micro-batches to fit.

An estimate by counting what a step keeps. On a GPU the counts follow the fused kernels and the bf16 copies; measured
peaks of the built-in variants lie within a fifth of it.

Legend: L length, D model width, F expert width, V vocabulary, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsabench.engine.backend import resolved
from dsabench.engine.device import Execution
from dsabench.engine.step import EAGER_STEPS
from dsabench.errors import DeviceError, SpecError
from dsabench.model.transformer import Transformer, outline
from dsabench.spec.model_settings import LatentSpec
from dsabench.spec.run import RunSpec

USABLE = 0.9
"""Share of a GPU's memory that a plan may fill: the context, library workspaces and fragmentation take the rest."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is cut to fit into memory, and its estimated memory."""

    micro_batch: int
    """Windows of one forward and backward pass, in each process."""

    recompute: bool
    """Whether blocks are computed again in the backward pass instead of being kept."""

    bytes: dict[str, float]
    """Estimated bytes by item."""

    @property
    def total(self) -> float:
        """Estimated peak in bytes."""
        return sum(self.bytes.values())


def plan(spec: RunSpec, vocab_size: int, execution: Execution, share: float = 1.0) -> MemoryPlan:
    """The largest micro-batch that fits, with recomputation only where none fits without it. engine.micro_batch and
    engine.recompute decide where they are set. Elsewhere than on CUDA nothing is cut unless they say so.

    share: of the device's memory, when several runs use it.

    Raises SpecError when engine.micro_batch does not divide the batch or the attention's backend does not run here,
    DeviceError when nothing fits.
    """
    spec = resolved(spec, execution)
    spec = spec.model_copy(update={"attention": spec.attention.at_most_keys(spec.length)})
    ranks = execution.ranks
    batch, wanted = ranks.windows(spec.batch_size), spec.engine.micro_batch
    divisors = [n for n in range(batch, 0, -1) if batch % n == 0]
    if wanted is not None and wanted not in divisors:
        near = ", ".join(map(str, sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:4])))
        of = "the batch" if ranks.size == 1 else f"each of {ranks.size} processes' share"
        raise SpecError(f"engine.micro_batch = {wanted} does not divide {of} of {batch} windows; {near} would")
    sizes = divisors if wanted is None else [wanted]
    ways = [False, True] if spec.engine.recompute == "auto" else [spec.engine.recompute]
    model = outline(spec, vocab_size)
    limit = capacity(execution)
    best: MemoryPlan | None = None
    for recompute in ways:
        for micro in sizes:
            step = estimate(model, execution, micro, recompute)
            best = MemoryPlan(micro, recompute, {**step, **_held(spec, execution, step)})
            if limit is None or best.total <= USABLE * share * limit:
                return best
    assert best is not None and limit is not None
    raise DeviceError(_too_large(spec, best, limit))


def estimate(model: Transformer, execution: Execution, micro_batch: int, recompute: bool) -> dict[str, float]:
    """Bytes of a training step by item, at its peak."""
    spec, length = model.spec, model.spec.length
    count = sum(parameter.numel() for parameter in model.parameters())
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    matrices -= model.embedding.weight.numel()
    narrow = execution.precision == "bf16" and execution.device.type == "cuda"
    width = 2 if narrow else 4
    tokens = micro_batch * length
    experts = model.layers()[0].experts.computed(execution.device)
    block = _kept_by_a_block(spec, width, experts)
    kept = [tokens * (block + length * one.attention.kept_per_pair(width)) for one in model.layers()]
    entering = tokens * spec.model.d_model * (4 + width)
    # A step casts an embedding that is the output layer; a matrix of its own is among the bf16 copies.
    cast = 0 if narrow and not spec.model.tied_head else width
    logits = min(tokens * model.vocab_size, 2**29) * width + model.vocab_size * spec.model.d_model * (cast + 4)
    return {
        "weights": 4.0 * count,
        "AdamW's moments": 8.0 * count,
        "gradients": 4.0 * count,
        "bf16 copies and their gradients": 4.0 * matrices if narrow else 0.0,
        # One block more, for what the backward pass of a block makes beside what was kept of it. A recomputed block is
        # freed before the next one is computed, and was measured to need no more than itself.
        "activations": (len(kept) * entering if recompute else sum(kept)) + max(kept),
        "logits": logits + tokens * spec.model.d_model * width,
    }


def _held(spec: RunSpec, execution: Execution, step: dict[str, float]) -> dict[str, float]:
    """What the graph of a dense warm-up holds while the first steps of the next stage run eagerly beside it: as much
    as a step of its own. Seen on an H200: without it, half a billion parameters at 4096 tokens ran out of memory."""
    if not execution.graph or spec.attention.warmup_steps(spec.train.steps) <= EAGER_STEPS:
        return {}
    return {"graph of the warm-up": step["activations"] + step["logits"]}


def _kept_by_a_block(spec: RunSpec, width: int, experts: int) -> float:
    """Bytes a token that one block keeps for its backward pass, but for pairs of tokens: `width` bytes a number in the
    products' dtype, `experts` of them computed for each token."""
    model = spec.model
    kv = model.kv_heads * model.head_dim
    norms = 2 * model.d_model * (4 + width)
    convolution = 0 if model.short_convolution is None else model.d_model * width
    normed = model.heads_width + kv if model.qk_norm else 0
    numbers = 2 * model.heads_width + 2 * kv + normed if model.latent is None else _latent_numbers(spec, model.latent)
    attention = width * numbers
    mixture = width * 3 * experts * model.d_ff + 4 * model.d_model
    return norms + convolution + attention + mixture


def _latent_numbers(spec: RunSpec, latent: LatentSpec) -> int:
    """Numbers a token of a layer's latents, and of its queries, keys, values and outputs, in the form of the dense or
    the sparse stage that has more."""
    model = spec.model
    latents = 2 * (latent.q_lora_rank or 0) + 2 * latent.kv_lora_rank + latent.qk_rope_head_dim
    # Values lie in one tensor with the keys' parts that are not rotated.
    dense = 2 * model.heads_width + model.n_heads * latent.qk_nope_head_dim + 2 * model.values_width
    if spec.attention.n_selected(spec.length) is None:
        return latents + dense
    absorbed = model.n_heads * (latent.gathered_width + latent.kv_lora_rank) + latent.gathered_width
    return latents + max(dense, model.heads_width + absorbed + model.values_width)


def capacity(execution: Execution) -> int | None:
    """Bytes of the device's memory; None where nothing is planned."""
    if execution.device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(execution.device).total_memory


def _too_large(spec: RunSpec, least: MemoryPlan, limit: int) -> str:
    parts = ", ".join(f"{item} {size / 1e9:.1f}" for item, size in least.bytes.items() if size >= 5e7)
    ways = [] if spec.engine.micro_batch in (None, 1) else ["engine.micro_batch = null"]
    ways += ["engine.recompute = auto"] if spec.engine.recompute is False else []
    ways += [f"a model.d_model below {spec.model.d_model}", f"fewer layers than {spec.model.n_layers}"]
    if least.bytes["activations"] > least.total / 4:
        ways.append(f"a length below {spec.length}")
    return (
        f"{spec.attention.kind} at L={spec.length} does not fit: about {least.total / 1e9:.1f} GB with "
        f"{least.micro_batch} window(s) at a time ({parts}), and {USABLE * limit / 1e9:.1f} GB of this GPU's "
        f"{limit / 1e9:.1f} GB can be used; {' or '.join(ways)} would need less"
    )
