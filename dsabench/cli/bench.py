"""`dsabench bench`: one attention layer by every implementation, over lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsabench.cli.lists import ListCommand, integers, texts
from dsabench.cli.options import Device, Json, Out, Quiet, Store

if TYPE_CHECKING:
    from dsabench.engine.device import Execution

_STAGES = {"sparse": ["sparse"], "dense": ["dense"], "both": ["sparse", "dense"]}

_ON_GPU: dict[str, Any] = {"lengths": [4096, 8192, 16384, 32768, 65536, 131072], "top_k": 2048, "repeats": 20}
_ON_CPU: dict[str, Any] = {"lengths": [256, 512, 1024], "top_k": 128, "repeats": 5}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("bench", cls=ListCommand)(bench)


def bench(
    lengths: Annotated[
        list[int] | None, integers("--lengths", "Tokens of a row; else 4096 to 131072, on a CPU 256 to 1024.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows.", metavar="N", min=1)] = 1,
    heads: Annotated[int | None, typer.Option(help="Query heads; else 16.", metavar="N", min=1)] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads; else 1.", metavar="N", min=1)] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of a head; else 64.", metavar="N", min=1)] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keys kept for each query; else 2048, on a CPU 128.", metavar="N", min=1)
    ] = None,
    indexer_heads: Annotated[int | None, typer.Option(help="Indexer heads; else 4.", metavar="N", min=1)] = None,
    indexer_dim: Annotated[
        int | None, typer.Option(help="Width of an indexer head; else 64.", metavar="N", min=1)
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Take q, k, v and index projections of this stored run of dsa.", metavar="RUN")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer of --run; else the last.", metavar="N", min=0)] = None,
    store: Store = Path("runs"),
    dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp32; else bf16 on a GPU that has it.", metavar="NAME")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Most repetitions of each; else 20, on a CPU 5.", metavar="N", min=1)
    ] = None,
    only: Annotated[
        list[str] | None, texts("--only", "Implementations, or families: dense, dense-flash, dsa-triton, ...")
    ] = None,
    stage: Annotated[str, typer.Option(help="Of DSA: sparse, dense (its warm-up) or both.", metavar="NAME")] = "sparse",
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Gradients whose bits repeat.")] = False,
    device: Device = None,
    out: Out = Path("results"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time one attention layer by every implementation, over lengths.

    Forward and backward, everything DSA costs included: scores, top-k, attention, KL loss. Dense attention by every
    backend, a sliding window, DSA by reference, masked and Triton kernels; each is checked before it is timed. Writes
    bench.json and bench.png under --out.
    """
    if stage not in _STAGES:
        raise typer.BadParameter(f"--stage {stage}: accepted are {', '.join(_STAGES)}")
    if dtype not in (None, "bf16", "fp32"):
        raise typer.BadParameter(f"--dtype {dtype}: accepted are bf16, fp32")
    if layer is not None and run is None:
        raise typer.BadParameter("--layer names a layer of --run; give both or neither")
    given = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "indexer_heads": indexer_heads,
        "indexer_dim": indexer_dim,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if run is not None and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise typer.BadParameter(f"{flags}: --run has its own; leave them out")

    from dsabench.cli.output import check_out, print_json, stdout_console
    from dsabench.cli.progress import stderr_console

    check_out(out)
    import torch

    from dsabench.analysis.experiment import write_file
    from dsabench.bench.document import Document
    from dsabench.bench.document import settings as settings_of
    from dsabench.bench.measure import all_cases, chosen
    from dsabench.bench.measure import bench as measure
    from dsabench.bench.trained import TrainedRun
    from dsabench.cli.bench_tables import bench_lines
    from dsabench.plots.bench import bench_figure
    from dsabench.plots.style import save_png

    execution = _execution(device, dtype, deterministic)
    defaults = _ON_GPU if execution.device.type == "cuda" else _ON_CPU
    trained = None if run is None else TrainedRun(store, run, layer)
    chosen_top_k = {} if top_k is None else {"top_k": top_k}
    settings = settings_of(
        **{
            **defaults,
            **(trained.sizes() if trained else {}),
            **given,
            **chosen_top_k,
            "lengths": sorted(set(lengths or defaults["lengths"])),
            "batch": batch,
            "dtype": execution.precision,
            "repeats": repeats or defaults["repeats"],
            "stages": _STAGES[stage],
            "only": only or [],
            "deterministic": deterministic,
        }
    )
    chosen(all_cases(settings, execution.device), settings.only)
    source = trained.inputs(settings, execution) if trained else None
    log = stderr_console()

    def save(document: Document) -> None:
        write_file(out / "bench.json", (document.model_dump_json(indent=2) + "\n").encode())

    try:
        document = measure(
            settings,
            execution,
            source,
            source.about() if source else None,
            notify=(lambda message: None) if quiet else log.print,
            save=save,
        )
    except torch.OutOfMemoryError as error:
        log.print(f"error: out of memory for the inputs themselves: {str(error).splitlines()[0]}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    save_png(bench_figure(document), out / "bench.png")
    if json:
        print_json(document.model_dump(mode="json"))
    else:
        bench_lines(document, stdout_console())
        stdout_console().print(f"Written: {out / 'bench.json'}, {out / 'bench.png'}")


def _execution(device: str | None, dtype: str | None, deterministic: bool) -> Execution:
    """Where and how to run. Raises SpecError for a name that is no device, DeviceError for one that is not here."""
    from pydantic import ValidationError

    from dsabench.engine.device import resolve
    from dsabench.errors import SpecError
    from dsabench.spec.explain import explain
    from dsabench.spec.fields import EngineSpec

    wanted = {"device": device or "auto", "precision": dtype or "auto", "deterministic": deterministic}
    try:
        return resolve(EngineSpec.model_validate(wanted))
    except ValidationError as error:
        raise SpecError("\n".join(explain(error, EngineSpec, "engine", lambda path: "--device: "))) from None
