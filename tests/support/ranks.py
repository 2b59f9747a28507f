"""Trains small runs by two processes in this one's forks, which saves them the imports; prints what came out.

    python tests/support/ranks.py FOLDER        # FOLDER/corpus holds texts

Also with planted defects, which tests/engine/test_ranks.py must notice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # an optimizer does, for seconds: once, not in every fork

from dsabench.data import prepare
from dsabench.engine import loop
from dsabench.engine.data_parallel.ranks import RankFailedError, Ranks
from dsabench.engine.device import Execution
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.sink import Nowhere
from dsabench.engine.slot import Slots
from dsabench.spec.run import RunSpec, validate

DSA = {"kind": "dsa", "top_k": 4, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.3}}
FROZEN = {**DSA, "indexer": {**DSA["indexer"], "freeze_backbone": True}}  # type: ignore[dict-item]
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "dense": (12, {"attention": {"kind": "dense"}}),
    "dsa": (14, {"attention": DSA}),
    "frozen, recomputed": (10, {"attention": FROZEN, "engine": {"device": "cpu", "recompute": True}}),
    "packed": (10, {"attention": {"kind": "random", "top_k": 4}, "packing": "documents", "length": 48}),
}
"""How many steps, and what is changed."""

honest_share = Ranks.share
DEFECTS: dict[str, dict[str, Any]] = {
    "no all_reduce": {"average_": lambda ranks, gradients: None, "check_equal": lambda ranks, tensors: None},
    "the same rows": {"share": lambda ranks, batch: honest_share(Ranks(0, 2), batch)},
    "a balance loss of each rank's own": {"mean": lambda ranks, tensor: tensor},
    "a mean of means": {"part_of_mean": lambda ranks, loss, scored: loss},
}
"""Methods of Ranks that are replaced, in the case `packed`."""


def spec_of(case: str, folder: Path) -> RunSpec:
    steps, changes = CASES[case]
    packing = changes.get("packing", "none")
    values: dict[str, Any] = {
        "length": 16,
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "n_experts": 3, "experts_per_token": 2,
                  "balance_loss_weight": 0.1},
        "data": {"source": f"path:{folder / 'corpus'}", "tokenizer": "bytes", "val_share": 0.3, "packing": packing},
        "train": {"steps": steps, "batch_size": 4, "warmup_steps": 5, "eval_every": steps // 2, "log_every": 1,
                  "learning_rate": 3e-3, "eval_tokens": 256},
        "engine": {"device": "cpu"},
    }  # fmt: skip
    return validate(values | {name: value for name, value in changes.items() if name != "packing"})


class Kept(Nowhere):
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def metrics(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def trained(case: str, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The records, and every parameter's bits at the end."""
    spec, sink, slots = spec_of(case, folder), Kept(), Slots()
    execution = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True, ranks=ranks)
    loop.to_the_end(loop.train_steps(PreparedRun(spec, prepare(spec.data), execution, sink), slots))
    (slot,) = slots.free
    assert not isinstance(slot, int)
    bits = [parameter.detach().view(torch.int32).flatten().tolist() for parameter in slot.model.parameters()]
    return {"records": sink.records, "bits": bits}


def all_cases(ranks: Ranks, folder: Path) -> dict[str, dict[str, Any]]:
    """What one rank has in the end of each case, and of each defect where there are several ranks."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"drift": None}
    if ranks.size > 1:
        ranks.connect(torch.device("cpu"))
        for defect, replaced in DEFECTS.items():
            with ExitStack() as stack:
                for name, method in replaced.items():
                    stack.enter_context(patch.object(Ranks, name, method))
                found[defect] = trained("packed", ranks, folder)
        try:
            ranks.check_equal([torch.ones(3), torch.full((2, 2), 0.1 + ranks.rank * 1e-7)])
        except RankFailedError as error:
            found["drift"] = str(error)
    return found | {case: trained(case, ranks, folder) for case in CASES}


def main(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    for case in CASES:  # what is loaded and prepared now need not be in every fork
        prepare(spec_of(case, folder).data)

    def rank_of(ranks: Ranks, result: Any) -> None:
        os.environ["RANK"] = str(ranks.rank)
        result.put(all_cases(ranks, folder))

    found = []
    for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2)):
        result = fork.SimpleQueue()
        process = fork.Process(target=rank_of, args=(ranks, result))
        process.start()
        found.append((process, result))
    print(json.dumps([result.get() for _, result in found]))
    for process, _ in found:
        process.join()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
