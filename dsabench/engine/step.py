"""One training step: forward, backward, clipping, AdamW; the same code for every variant, eager or in a CUDA graph.

No step waits for the host. A segment's batches and learning rates are copied to the device before its first step, and
its metrics stay there until the loop fetches them.

Legend: B batch, T time, S steps of a segment, M metrics.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsabench import ops
from dsabench.attention.base import Stage
from dsabench.engine.device import Execution
from dsabench.engine.master_weights import Weights
from dsabench.engine.model_inputs import model_inputs
from dsabench.engine.optimizer import Optimizer, learning_rate_factor
from dsabench.engine.staged_batches import pinned
from dsabench.model.transformer import Block, Features, ForwardPass, Transformer
from dsabench.ops.profile_labels import part
from dsabench.spec.run import RunSpec

METRICS = (
    "loss",
    "kl",
    "balance_loss",
    "grad_norm",
    "indexer_grad_norm",
    "router_entropy",
    "expert_load_max",
    "expert_load_min",
)
"""Columns of the step history, in order; `kl` and `indexer_grad_norm` are 0 where there is no indexer loss."""

EAGER_STEPS = 3
"""Steps at the start of a stage that run eagerly. They create the optimizer state and library handles that a capture
needs. They are steps of the training like all others, so capturing changes nothing that is learnt."""

SEGMENT_STEPS, SEGMENT_TOKENS = 64, 2**22
"""Most steps, and most tokens, whose batches are on the device at once."""


class TrainStep:
    """Runs steps on static buffers; after `capture(stage)` the stage's steps are replays of one CUDA graph."""

    def __init__(
        self,
        model: Transformer,
        optimizer: Optimizer,
        spec: RunSpec,
        execution: Execution,
        micro_batch: int | None = None,
        recompute: bool = False,
    ) -> None:
        """micro_batch: windows of one forward and backward pass, a divisor of this rank's share; None: the whole share.
        recompute: keep only each block's input, and compute the block again in the backward pass."""
        self.model, self.optimizer, self.spec, self.execution = model, optimizer, spec, execution
        self.ranks = execution.ranks
        windows = self.ranks.windows(spec.batch_size)
        self.micro_batch, self.recompute = micro_batch or windows, recompute
        assert spec.batch_size == self.ranks.size * windows, "equal shares keep the mean of means the mean"
        assert windows % self.micro_batch == 0, "and so do micro-batches of one size"
        if ops.on_gpu(execution.device):
            for block in model.layers():
                block.experts.lay_out_for_products()  # before there are copies and optimizer states like them
        self.weights = Weights(model, execution)
        self.graphs: dict[Stage, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if execution.graph else None
        """Memory that the graphs of one model share: they run one after another, and keep nothing in it."""
        self.top_k: int | None = None
        """Keys that a query keeps in these steps, where a schedule says so; the graph of the sparse stage has it."""
        self.has_own_loss = False
        """Whether the last computed step had a loss of the attention's own (an indexer's KL)."""
        steps = max(1, min(SEGMENT_STEPS, SEGMENT_TOKENS // spec.tokens_per_step))
        device = execution.device
        self.batches_SBT = torch.zeros(steps, windows, spec.length + 1, dtype=torch.int64, device=device)
        self.scored_SBT: Tensor | None = None
        """Which targets count in the loss, for a task or packed documents; None where all do."""
        self.documents_SBT: Tensor | None = None
        """Document of its window that each input belongs to; None where a window is one document."""
        self.most_documents: int | None = None
        """As Batch has it, of the windows in documents_SBT."""
        shape = (steps, windows, spec.length)
        if spec.data.task is not None or spec.data.packing == "documents":
            self.scored_SBT = torch.zeros(shape, dtype=torch.bool, device=device)
        if spec.data.packing == "documents":
            self.documents_SBT = torch.zeros(shape, dtype=torch.int32, device=device)
        self.factors_S = torch.zeros(steps, device=device)
        self.history_SM = torch.zeros(steps, len(METRICS), device=device)
        self.index_1 = torch.zeros(1, dtype=torch.int64, device=device)
        """Index of the next step in the buffers above; on the device, so that a replayed graph advances it."""
        self.step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        """The number of that step in the training. Every forward pass is given this tensor itself: a captured graph
        keeps its address."""
        self.compiled: dict[Block, Any] = {}
        if execution.compiled:
            self.compiled = {block: torch.compile(block, dynamic=False) for block in model.layers()}

    def begin(self, spec: RunSpec) -> None:
        """Go on with the steps of another run, which differs in its seed alone."""
        self.spec = spec

    def run(
        self,
        first: int,
        stage: Stage,
        batches_SBT: Tensor,
        scored_SBT: Tensor | None = None,
        documents_SBT: Tensor | None = None,
        most_documents: int | None = None,
    ) -> Tensor:
        """Train on batches[i], this rank's share of a batch, as step first + i; the arguments are the fields of Staged.
        Returns the share's metrics (S, M), on the device, where they may still be being computed."""
        self.most_documents = most_documents
        if (k := self.spec.attention.top_k_at(first)) != self.top_k:
            self.graphs.pop("sparse", None)
            self.top_k = k
        size, parts = len(self.batches_SBT), []
        for i in range(0, len(batches_SBT), size):
            scored, documents = (None if x is None else x[i : i + size] for x in (scored_SBT, documents_SBT))
            parts.append(self._run(first + i, stage, batches_SBT[i : i + size], scored, documents))
        return torch.cat(parts)

    def _run(
        self, first: int, stage: Stage, batches_SBT: Tensor, scored_SBT: Tensor | None, documents_SBT: Tensor | None
    ) -> Tensor:
        steps = len(batches_SBT)
        factors_S = torch.tensor([learning_rate_factor(self.spec, first + i) for i in range(steps)])
        given = [(self.batches_SBT, batches_SBT), (self.factors_S, factors_S)]
        if self.scored_SBT is not None:
            assert scored_SBT is not None, "the spec is a task's or packs documents, and these windows do not"
            given.append((self.scored_SBT, scored_SBT))
        if self.documents_SBT is not None:
            assert documents_SBT is not None, "the spec packs documents, and these windows do not"
            given.append((self.documents_SBT, documents_SBT))
        for buffer, values in given:
            buffer[:steps].copy_(pinned(values) if buffer.is_cuda else values, non_blocking=True)
        self.index_1.zero_()
        self.step_1.fill_(first)
        for i in range(steps):
            if self.spec.model.dropout:
                # Keyed by seed, step and rank, so that every variant and a resumed run draw the same masks.
                torch.manual_seed(dropout_seed(self.spec.seed, first + i, self.ranks.rank))
            if stage in self.graphs:
                self.graphs[stage].replay()
            else:
                self._compute(stage)
        return self.history_SM[:steps].clone()

    def capture(self, stage: Stage) -> None:
        """Capture the stage's step in a CUDA graph; nothing is executed. Call after EAGER_STEPS steps of the stage."""
        self.execution.synchronize()
        self.optimizer.zero_grad()  # gradients are then allocated in the graph's own pool
        graph = torch.cuda.CUDAGraph()
        mode = self.ranks.capture_mode
        try:
            with torch.cuda.graph(graph, self.pool, own_stream(self.execution), capture_error_mode=mode):
                self._compute(stage)
        except RuntimeError:
            _leave_capture(self.execution.device)
            raise
        self.graphs[stage] = graph

    def _compute(self, stage: Stage) -> None:
        tokens_BT = self.batches_SBT.index_select(0, self.index_1)[0]
        scored_BT, documents_BT = (
            None if x_SBT is None else x_SBT.index_select(0, self.index_1)[0]
            for x_SBT in (self.scored_SBT, self.documents_SBT)
        )
        with part("optimizer"):
            self.optimizer.set_rate(self.factors_S.index_select(0, self.index_1), stage)
            self.optimizer.zero_grad()
            self.weights.cast()
        parts = tokens_BT.split(self.micro_batch)
        scored, documents = (
            [None] * len(parts) if x_BT is None else x_BT.split(self.micro_batch) for x_BT in (scored_BT, documents_BT)
        )
        metrics = [self.backward(stage, 1 / len(parts), *part) for part in zip(parts, scored, documents, strict=True)]
        with part("optimizer"):
            self.ranks.average_([p.grad for p in self.model.parameters() if p.grad is not None])
            norm, own_norm = self.optimizer.step()
        means = metrics[0] if len(parts) == 1 else torch.stack(metrics).mean(0)
        loss, kl, balance, entropy, most, least = means.unbind()
        values = (loss, kl, balance, norm, own_norm, entropy, most, least)
        metrics_1M = torch.stack([value.detach().float() for value in values])[None]
        self.history_SM.index_copy_(0, self.index_1, metrics_1M)
        self.index_1.add_(1)
        self.step_1.add_(1)

    def backward(self, stage: Stage, share: float, *micro_batch: Tensor | None) -> Tensor:
        """Add one micro-batch's gradients times `share`; returns its losses and router statistics as one tensor."""
        losses = self.weights.within(lambda: self._losses(stage, share, *micro_batch))
        with part("optimizer"):
            self.weights.collect()
        return losses

    def _losses(
        self,
        stage: Stage,
        share: float,
        tokens_BT: Tensor | None,
        scored_BT: Tensor | None,
        documents_BT: Tensor | None,
    ) -> Tensor:
        assert tokens_BT is not None
        forward_pass = ForwardPass(
            stage=stage,
            top_k=self.top_k,
            step=self.step_1,
            document_ids_BT=documents_BT,
            most_documents=self.most_documents,
            scored_BT=scored_BT,
            mean_load=self.ranks.mean if self.ranks.size > 1 else None,
        )
        with self.execution.autocast():
            inputs_BT = model_inputs(self.spec, tokens_BT, scored_BT)
            loss, output = self.model.training_losses(inputs_BT, tokens_BT[:, 1:], forward_pass, self._call_block)
        loss = self.ranks.part_of_mean(loss, scored_BT)
        total = self._total(stage, loss, output)
        (total if share == 1 else total * share).backward()
        kl = torch.zeros((), device=loss.device) if output.attention_loss is None else output.attention_loss
        load_E = output.expert_load_E
        values = (loss, kl, output.balance_loss, output.router_entropy, load_E.max(), load_E.min())
        return torch.stack([value.detach().float() for value in values])

    def _total(self, stage: Stage, loss: Tensor, output: Features) -> Tensor:
        self.has_own_loss = output.attention_loss is not None
        total = torch.zeros((), device=loss.device)
        if not (stage == "dense" and self.spec.attention.warmup_freezes_backbone()):
            total = total + loss + self.spec.model.balance_loss_weight * output.balance_loss
        if output.attention_loss is not None:
            total = total + self.spec.attention.own_loss_weight() * output.attention_loss
        return total

    def _call_block(self, block: Block, *args: Any) -> Any:
        """A block as this step wants it: compiled, or recomputed in the backward pass."""
        call = self.compiled.get(block, block)
        if not self.recompute:
            return call(*args)
        return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=self.spec.model.dropout > 0)


def _leave_capture(device: torch.device) -> None:
    """Give the device's random generator a state that is in no capture: a capture that fails leaves it in one, and
    every later draw on the device would raise."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    generator.graphsafe_set_state(generator.clone_state())


def own_stream(execution: Execution) -> torch.cuda.Stream | None:
    """The current stream, for a capture; None, which lets PyTorch choose one, when that is the default stream."""
    stream = torch.cuda.current_stream(execution.device)
    return None if stream == torch.cuda.default_stream(execution.device) else stream


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """63 bits keyed by training seed, step and rank. Several processes draw other masks for a batch than one does."""
    of = f"/{rank}" if rank else ""
    digest = hashlib.blake2b(f"dropout/{seed}/{step}{of}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
