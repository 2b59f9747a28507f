"""The train records of a run, and its summary."""

from __future__ import annotations

from typing import Any

import torch

from dsabench.attention.base import Stage
from dsabench.data import TaskData
from dsabench.engine.backend import backend
from dsabench.engine.checkpoint import Progress
from dsabench.engine.device import matmul_rate
from dsabench.engine.optimizer import learning_rate_factor, recorded_stage, stage_at
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.slot import Slot
from dsabench.engine.step import METRICS
from dsabench.engine.step_times import StepTimes
from dsabench.model.transformer import flops_per_window, outline


class RunRecords:
    """What is recorded of a run, from its progress and its step times."""

    def __init__(self, run: PreparedRun, slot: Slot, progress: Progress, times: StepTimes) -> None:
        self.run, self.spec, self.slot, self.progress, self.times = run, run.spec, slot, progress, times
        self.flops = {stage: sum(flops_per_window(slot.model, stage).values()) for stage in ("dense", "sparse")}
        self.scheduled_flops: dict[int, float] = {}

    def flops_after(self, steps: int) -> float:
        """Model FLOPs of the run's first `steps` steps, by the stage that each is in, and the keys that it keeps."""
        dense = min(steps, self.spec.attention.warmup_steps(self.spec.train.steps))
        windows, first = dense * self.flops["dense"], dense
        for end in (*self.spec.attention.key_changes(), steps):
            if first < (end := min(end, steps)):
                windows += (end - first) * self._sparse_flops(self.spec.attention.top_k_at(first))
                first = end
        return self.spec.batch_size * windows

    def _sparse_flops(self, top_k: int | None) -> float:
        """Of a window in the sparse stage. top_k: keys that a query keeps; None: those of the spec."""
        if top_k is None:
            return self.flops["sparse"]
        if top_k not in self.scheduled_flops:
            attention = self.spec.attention.keeping(top_k)
            model = outline(self.spec.model_copy(update={"attention": attention}), self.slot.model.vocab_size)
            self.scheduled_flops[top_k] = sum(flops_per_window(model, "sparse").values())
        return self.scheduled_flops[top_k]

    def train(self, stage: Stage) -> dict[str, Any]:
        """The train record of the steps since the last one, which it takes from the progress: the mean loss of all of
        them, and the last step's other metrics."""
        spec, end = self.spec, self.progress.step
        history_SM = torch.tensor([row for rows, _ in self.progress.pending for row in rows])
        seconds = sum(seconds for _, seconds in self.progress.pending)
        self.progress.pending.clear()
        record: dict[str, Any] = {"kind": "train", "step": end, "stage": recorded_stage(spec, stage)}
        record.update(zip(METRICS, history_SM[-1].tolist(), strict=True))
        record["loss"] = float(history_SM[:, 0].mean())
        if not self.slot.step.has_own_loss:
            record["kl"] = record["indexer_grad_norm"] = None
        warmup = spec.attention.warmup_rates()[1] if stage == "dense" else None
        record["learning_rate"] = (warmup or spec.train.learning_rate) * learning_rate_factor(spec, end - 1)
        record["seconds"] = self.progress.seconds
        record["shared"] = self.times.shared
        record["flops"] = self.flops_after(end)
        record["tokens_per_second"] = spec.tokens_per_step * len(history_SM) / seconds
        return record

    def summary(self, last_evaluation: dict[str, Any]) -> dict[str, Any]:
        """The summary of a run that is trained to its end."""
        spec, steps, windows = self.spec, self.spec.train.steps, self.spec.batch_size
        last: Stage = stage_at(spec, steps - 1)
        step_ms, other_load = self.times.step_ms(last), self.times.other_load()
        optimizer, execution = self.slot.optimizer, self.run.execution
        own = sum(p.numel() for p in optimizer.own)
        rate = matmul_rate(execution.device, execution.precision)
        peak_rate = rate * execution.ranks.size
        return {
            "steps": steps,
            "params": sum(p.numel() for p in optimizer.backbone) + own,
            "indexer_params": own,
            "vocab_size": self.slot.model.vocab_size,
            "batch_size": windows,
            "tokens_per_step": spec.tokens_per_step,
            "tokens": spec.tokens_per_step * steps,
            "k_effective": spec.attention.keys_read(spec.length),
            **self._backbone_tokens(),
            **self._text_tokens(),
            "flops": self.flops_after(steps),
            **last_evaluation,
            "step_ms": step_ms,
            "warmup_step_ms": self.times.step_ms("dense"),
            "tokens_per_second": None if step_ms is None else spec.tokens_per_step / step_ms * 1e3,
            "train_seconds": self.progress.seconds,
            **({} if other_load is None else {"other_load": other_load}),
            "mfu": None if step_ms is None else windows * self.flops[last] / (step_ms / 1e3) / peak_rate,
            "matmul_flops_per_second": rate,
            "peak_memory_mb": self.progress.peak_memory_mb,
            "compile": self.slot.running.compile,
            "attention_backend": backend(spec, execution),
            "micro_batch": self.slot.step.micro_batch,
            "recompute": self.slot.step.recompute,
        }

    def _backbone_tokens(self) -> dict[str, int]:
        """Tokens of the steps that trained the backbone, where a warm-up left it frozen."""
        spec, steps = self.spec, self.spec.train.steps
        frozen = spec.attention.warmup_steps(steps) if spec.attention.warmup_freezes_backbone() else 0
        return {"backbone_tokens": spec.tokens_per_step * (steps - frozen)} if frozen else {}

    def _text_tokens(self) -> dict[str, int]:
        """Tokens of the text on both sides of the split; of an overlapping one, they are the same."""
        data = self.run.data
        if isinstance(data, TaskData):
            return {}
        return {"text_tokens": len(data.train.tokens), "held_out_tokens": len(data.val.tokens)}
