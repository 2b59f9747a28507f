"""The training of a rank, between `hello` and its last word, in step with the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dsabench import shutdown
from dsabench.data import prepare
from dsabench.engine import failures, loop, memory_plan
from dsabench.engine.data_parallel.rank_protocol import Line, Relay, Task
from dsabench.engine.data_parallel.ranks import LostRankError, RankFailedError, Ranks
from dsabench.engine.device import resolve
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.sink import Nowhere, RunSink, Update
from dsabench.errors import DataError, DsabenchError
from dsabench.spec.stored_spec import stored_spec


def train_as_rank(task: Task, ranks: Ranks, line: Line) -> None:
    """Train the task's run as one of its ranks, and tell the leader how it ended. Does not return."""
    summary: dict[str, Any] | None = None
    try:
        with shutdown.on_signals(), shutdown.deferred():  # rank 0 asks for all, at fixed places, whether to stop
            summary = _trained(task, ranks, line)
    except KeyboardInterrupt:
        if summary is None:  # done is done
            line.finish("stopped")
    except LostRankError as error:
        line.finish("lost", f"rank {ranks.rank} lost the others: {error} ({failures.LOG})", failures.log(error))
    except RankFailedError as error:
        line.finish("failed", str(error), error.log)
    except DsabenchError as error:
        line.finish("refused", error)
    line.finish("done", summary)


def _trained(task: Task, ranks: Ranks, line: Line) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    spec = stored_spec(task.spec, task.run_id)
    name = f"cuda:{ranks.rank}" if task.device == "cuda" else task.device
    execution = replace(resolve(spec.engine.model_copy(update={"device": name})), ranks=ranks)
    data = prepare(spec.data)
    if data.fingerprint != task.data:
        raise DataError(f"data.source = {spec.data.source}: its files changed while the run began; start it again")
    sink: RunSink = Nowhere() if ranks.rank else Relay(line)
    line.say("begins")

    def observe(update: Update) -> None:
        if ranks.rank == 0:
            line.say("update", update)

    try:
        ranks.connect(execution.device)
        return loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, sink, observe, task.start)))
    except (DsabenchError, LostRankError, RankFailedError):
        raise
    except Exception as error:
        windows = memory_plan.plan(spec, data.vocab_size, execution).micro_batch
        who = "" if isinstance(error, loop.TrainingDiverged) else f"rank {ranks.rank} of {ranks.size}: "
        raise RankFailedError(who + failures.reason(spec, error, windows), failures.log(error)) from error
