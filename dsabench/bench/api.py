"""The bench as one call, for the command and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsabench.bench.document import Document, Settings, settings
from dsabench.bench.implementations import all_cases, chosen
from dsabench.bench.measure import bench
from dsabench.bench.trained import TrainedRun
from dsabench.engine.device import Execution, resolve
from dsabench.engine.random_state import kept_random_state
from dsabench.errors import SpecError
from dsabench.spec.messages import explain
from dsabench.spec.run import EngineSpec

STAGES = {"sparse": ["sparse"], "dense": ["dense"], "both": ["sparse", "dense"]}

DTYPES = (None, "bf16", "fp32")

ON_GPU: dict[str, Any] = {"lengths": [4096, 8192, 16384, 32768, 65536, 131072], "top_k": 2048, "repeats": 20}
ON_CPU: dict[str, Any] = {"lengths": [256, 512, 1024], "top_k": 128, "repeats": 5}

_OF_RUN = ("heads", "kv_heads", "head_dim", "indexer_heads", "indexer_dim")


@kept_random_state()
def bench_layer(
    *,
    lengths: Sequence[int] | None = None,
    batch: int = 1,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    top_k: int | None = None,
    indexer_heads: int | None = None,
    indexer_dim: int | None = None,
    dtype: str | None = None,
    repeats: int | None = None,
    only: Sequence[str] = (),
    methods: Sequence[str] = (),
    stage: str = "sparse",
    deterministic: bool = False,
    run: str | None = None,
    layer: int | None = None,
    store: str | Path = "runs",
    device: str | None = None,
    notify: Callable[[str], None] = lambda message: None,
    save: Callable[[Document], None] = lambda document: None,
) -> Document:
    """Check and time one attention layer, forward and backward, by every implementation at every length.

    An argument that is None takes the command's default: the device's (ON_GPU, ON_CPU), or Settings'. run: a stored
    run of dsa (a unique prefix of its id), which gives the sizes (k and length too, unless they are given): DSA is
    timed with the selections of its layers (of one, if `layer` names it) beside random ones.
    `save` is called with the document so far after each length.
    Raises SpecError, StoreError, DataError or DeviceError, which say what would be accepted.
    """
    if stage not in STAGES:
        raise SpecError(f"--stage {stage}: accepted are {', '.join(STAGES)}")
    if dtype not in DTYPES:
        raise SpecError(f"--dtype {dtype}: accepted are bf16, fp32")
    if layer is not None and run is None:
        raise SpecError("--layer names a layer of --run; give both or neither")
    values = (heads, kv_heads, head_dim, indexer_heads, indexer_dim)
    own = {name: value for name, value in zip(_OF_RUN, values, strict=True) if value is not None}
    if run is not None and own:
        flags = ", ".join("--" + name.replace("_", "-") for name in own)
        raise SpecError(f"{flags}: --run has its own; leave them out")
    execution = execution_of(device, dtype, deterministic)
    defaults = ON_GPU if execution.device.type == "cuda" else ON_CPU
    trained = None if run is None else TrainedRun(store, run, layer)
    of_run = {**trained.sizes(), "lengths": [trained.spec.length]} if trained else {}
    wanted = {**defaults, **of_run, **own}
    given = {"lengths": None if lengths is None else sorted(set(lengths)), "top_k": top_k, "repeats": repeats}
    wanted |= {name: value for name, value in given.items() if value is not None}
    resolved: Settings = settings(
        **wanted, batch=batch, dtype=execution.precision, stages=STAGES[stage], only=list(only),
        methods=list(methods), deterministic=deterministic,
    )  # fmt: skip
    chosen(
        all_cases(resolved, execution.device), resolved.only, resolved.methods
    )  # before a run's data take their time
    source = trained.inputs(resolved, execution) if trained else None
    return bench(resolved, execution, source, source.about() if source else None, notify=notify, save=save)


def execution_of(device: str | None, dtype: str | None, deterministic: bool) -> Execution:
    """The device and precision of a bench. Raises SpecError for a name that is no device, DeviceError for a device that
    this machine lacks."""
    wanted = {"device": device or "auto", "precision": dtype or "auto", "deterministic": deterministic}
    wanted["compile"] = "off"  # a layer's passes are launched one by one
    try:
        return resolve(EngineSpec.model_validate(wanted))
    except ValidationError as error:
        raise SpecError("\n".join(explain(error, EngineSpec, "engine", lambda path: "--device: "))) from None
