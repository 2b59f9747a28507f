"""The contract of an attention variant: what it is given and what it owes.

A variant is one file: a pydantic spec class (an `AttentionSpec`) and a module (an `Attention`), registered together.
It maps x to out, not queries and keys to out, because an indexer needs x.

Legend: B batch, T query, S key, D model width (head width in a BTHD tensor), H query heads, G key/value heads,
K selected slots, Q queries whose mass is looked at.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from dsabench.attention.dsa.reference import allowed_at, allowed_keys
from dsabench.attention.latent import LatentProjections
from dsabench.attention.projections import HeadProjections, Projections
from dsabench.attention.rotary import rotation

if TYPE_CHECKING:
    from dsabench.spec.attention import AttentionSpec, SelectingSpec
    from dsabench.spec.model_settings import RopeScaling
    from dsabench.spec.run import RunSpec

Made = TypeVar("Made")

Stage = Literal["dense", "sparse"]
"""`dense`: the warm-up, in which a selecting variant attends to everything while its indexer learns; then `sparse`."""


@dataclass
class Selection:
    """The keys that one layer selected for one batch, and the attention mass that full attention would have given."""

    selected_BTK: Tensor
    """Indices of the selected keys, -1 in empty slots."""

    mass_BTS: Tensor | None = None
    """Full softmax attention probabilities of this layer's queries and keys, mean over heads, fp32. They are L x L, so
    None where context.whole_mass is False and mass_inside_BQ is given instead."""

    scores_BTS: Tensor | None = None
    """Index scores, for variants that compute them."""

    mass_inside_BQ: Tensor | None = None
    """The mass inside the selection, of the queries `recall_queries(T)`; where context.whole_mass is False."""


@dataclass
class AttentionContext:
    """What all layers of one forward pass share. Each pass has one of its own."""

    positions_T: Tensor
    """Positions of the window's tokens, for rotary embedding."""

    stage: Stage = "sparse"
    """The stage of training, or the one that an evaluation looks at."""

    document_ids_BT: Tensor | None = None
    """Which document each token belongs to, where a window packs several; no query sees another document."""

    capture: dict[int, Selection] | None = None
    """When not None, a selecting variant puts its Selection here, by its layer. None in training, because it costs an
    L x L product."""

    step: Tensor | None = None
    """The training step, one int64 on the device, for randomness to be keyed by; None in evaluation."""

    whole_mass: bool = True
    """True: a captured Selection holds the whole attention mass and the scores. False: mass_inside_BQ is enough, whose
    memory does not grow with L x L; a variant may give the whole mass all the same."""

    most_documents: int | None = None
    """Most documents that a window of document_ids_BT has parts of, where that is known beforehand."""

    top_k: int | None = None
    """Keys that a query keeps in this pass, where a schedule says so; None: those of the spec (`keys_kept`)."""

    scheduled: bool = False
    """True: top_k is that of a schedule, and layers without one keep the keys of their spec."""

    losses: bool = True
    """Whether AttentionOutput.aux_loss is used. False where only outputs are, so that no time is spent on it; a variant
    may compute it all the same."""

    _allowed: Tensor | None = field(default=None, init=False, repr=False)
    _once: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    _left: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def keys_kept(self, spec: SelectingSpec, length: int) -> int:
        """k of this pass: the pass's own, or else that of the spec."""
        of_another_layer = self.scheduled and not spec.key_changes()
        return spec.n_selected(length) if self.top_k is None or of_another_layer else self.top_k

    @property
    def allowed(self) -> Tensor:
        """True where a query may see a key: causal, and within one document. (T, S), or (B, T, S) when packed."""
        if self._allowed is None:
            self._allowed = allowed_keys(len(self.positions_T), self.document_ids_BT, self.positions_T.device)
        return self._allowed

    def rotation(self, width: int, base: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding for heads of `width`, computed once a forward pass."""
        return self.once(("rotation", width, base, scaling), lambda: rotation(self.positions_T, width, base, scaling))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, computed at the first call with this key: for what all layers share. Ask in `prepare`."""
        if key not in self._once:
            self._once[key] = make()
        made: Made = self._once[key]
        return made

    def leave(self, key: Hashable, value: Made) -> Made:
        """Leave `value` for layers after this one, which take it by the key; a layer that is computed again (recomputed
        in the backward pass) leaves it again."""
        self._left[key] = value
        return value

    def take(self, key: Hashable) -> Any:
        """What a layer before this one left in the same pass."""
        return self._left[key]


@dataclass(frozen=True)
class AttentionOutput:
    """out (B, T, D) and, when the variant has a loss of its own, that loss (a scalar) for its own parameters."""

    out_BTD: Tensor
    aux_loss: Tensor | None = None


class Attention(nn.Module, abc.ABC):
    """Base of every attention variant; a subclass sets `spec_class` and implements `forward` and `flops`.

    Whatever depends on spec.seed must be in a parameter or a buffer: runs of all seeds of a sweep reuse one module.
    Parameters are drawn when the model is built, whatever the constructor gave them: matrices normal with standard
    deviation fan_in^-1/2, vectors 1, those whose name ends in `bias` 0. A tensor that must start otherwise is a buffer.
    """

    spec_class: ClassVar[type[AttentionSpec]]
    """The pydantic class of the variant's spec; its `kind` is the registered name."""

    equals_dense_at_full_k: ClassVar[bool] = False
    """True when the variant claims to equal dense attention once k >= L; the contract then checks it."""

    follows: int | None = None
    """The layer, if any, that must be called before this one in the same pass, because this one takes what it leaves
    in the context."""

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = spec, layer
        self.projections: Projections = LatentProjections(spec) if spec.model.latent else HeadProjections(spec)

    @abc.abstractmethod
    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """Mix tokens: out[t] may depend on x[0..t] of the same row and document alone."""

    @classmethod
    def resolve(cls, spec: RunSpec, no_kernels: str | None) -> AttentionSpec:
        """spec.attention with each `auto` decided for the machine, for the engine to plan with and to record.

        no_kernels: why Triton kernels do not run on the device, None when they do. Raises SpecError when the spec asks
        for something that cannot run.
        """
        return spec.attention

    def prepare(self, context: AttentionContext) -> None:
        """Ask the context for what `forward` will ask it for: it is then computed once for all layers, and not inside
        a block, which may be compiled or recomputed. Called on every layer before the first one's `forward`."""
        self.projections.rotation(context)

    @abc.abstractmethod
    def flops(self, stage: Stage) -> dict[str, float]:
        """Model FLOPs of one layer for one window, forward and backward, by item: those that the method needs.

        A multiply-add is 2 FLOPs. Masked pairs and recomputation of a backend do not count. A window counts as one
        document, so of packed documents pairs across them count too.
        """

    def kept_per_pair(self, width: int) -> float:
        """Bytes that training keeps for each of the L x L pairs, for the memory estimate; 0 where it keeps nothing
        of that size. width: bytes of a number in the matrix products."""
        return 0.0

    def own_parameters(self) -> set[str]:
        """Names of the parameters that `aux_loss` alone trains (an indexer's). They are optimized, clipped and counted
        apart."""
        return set()


def pairs(spec: RunSpec, selected: int | None = None) -> float:
    """Query-key pairs of one window: sum over t of min(t + 1, k); L (L + 1) / 2 when nothing is selected."""
    length = spec.length
    k = length if selected is None else min(selected, length)
    return k * (k + 1) / 2 + (length - k) * k


RECALL_QUERIES = 4096
"""Most queries of a window that mass recall is measured on."""

RECALL_PAIRS = 2**24
"""Most pairs, over all rows of a batch, whose mass is in memory at a time for mass recall: a few tensors of 64 MiB."""


def recall_queries(length: int, device: torch.device | None = None) -> Tensor:
    """(Q,) positions that mass recall is measured at: all of a window, or RECALL_QUERIES evenly spaced ones."""
    count = min(length, RECALL_QUERIES)
    return (2 * torch.arange(count, device=device) + 1) * length // (2 * count)


def capture(
    selected_BTK: Tensor,
    scores_BTS: Tensor | None,
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    context: AttentionContext,
    scale: float | None = None,
) -> Selection:
    """The Selection that the context asks for; q, k and scale as capture_mass takes them."""
    if context.whole_mass:
        mass_BTS = capture_mass(q_BTHD, k_BSGD, context, scale)
        return Selection(selected_BTK=selected_BTK, mass_BTS=mass_BTS, scores_BTS=scores_BTS)
    inside_BQ = mass_inside(selected_BTK, q_BTHD, k_BSGD, context, scale)
    return Selection(selected_BTK=selected_BTK, mass_inside_BQ=inside_BQ)


def capture_mass(q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext, scale: float | None = None) -> Tensor:
    """Full softmax attention probabilities, mean over heads: (B, T, S), fp32; a selection is judged by them. scale:
    what scores are multiplied by; None is D^-1/2."""
    return _mass(q_BTHD, k_BSGD, context.allowed, scale)


def mass_inside(
    selected_BTK: Tensor, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext, scale: float | None = None
) -> Tensor:
    """Share of the attention mass of each of recall_queries that lies in its selection: (B, Q), by slabs of
    RECALL_PAIRS."""
    n_batch, length = selected_BTK.shape[:2]
    query_Q = recall_queries(length, q_BTHD.device)
    parts = []
    for query_R in query_Q.split(max(1, RECALL_PAIRS // (n_batch * length))):
        allowed = allowed_at(query_R, length, context.document_ids_BT)
        mass_BRS = _mass(q_BTHD[:, query_R], k_BSGD, allowed, scale)
        selected_BRK = selected_BTK[:, query_R].long()
        inside_BRK = mass_BRS.gather(-1, selected_BRK.clamp(min=0))
        parts.append((inside_BRK * (selected_BRK >= 0)).sum(-1))
    return torch.cat(parts, dim=1)


def _mass(q_BTHD: Tensor, k_BSGD: Tensor, allowed: Tensor, scale: float | None) -> Tensor:
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad(), torch.autocast(q_BTHD.device.type, enabled=False):
        groups = q_BTHD.shape[2] // k_BSGD.shape[2]
        mass_BTS = torch.zeros((), device=q_BTHD.device)
        for head in range(q_BTHD.shape[2]):  # one head at a time, for H times less memory
            scores_BTS = q_BTHD[:, :, head].float() @ k_BSGD[:, :, head // groups].float().transpose(-1, -2)
            mass_BTS = mass_BTS + (scores_BTS * scale).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        return mass_BTS / q_BTHD.shape[2]
