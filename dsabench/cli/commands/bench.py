"""`dsabench bench`: one attention layer by every implementation, over lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.list_options import ListCommand, integers, texts
from dsabench.cli.options import Device, Json, NoPlugins, Out, Quiet, Store


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
        str | None,
        typer.Option("--run", help="Take q, k, v and index projections of this stored run of dsa.", metavar="RUN"),
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
    no_plugins: NoPlugins = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time an attention layer: dense, window, DSA.

    One layer over lengths, forward and backward, everything DSA costs included: scores, top-k, attention, KL loss.
    Dense attention by every backend, a sliding window, DSA by reference, masked and Triton kernels; each is checked
    before it is timed. Writes bench.json and bench.png under --out.
    """
    from dsabench.cli.progress import stderr_console
    from dsabench.cli.views.outcome import check_out, print_json, stdout_console

    check_out(out)
    import torch

    from dsabench.bench.api import bench_layer
    from dsabench.bench.document import Document
    from dsabench.cli.views.bench_tables import bench_lines
    from dsabench.figures.bench_times import bench_figure
    from dsabench.figures.style import save_png
    from dsabench.store.files import write_file

    log = stderr_console()

    def save(document: Document) -> None:
        write_file(out / "bench.json", (document.model_dump_json(indent=2) + "\n").encode())

    try:
        document = bench_layer(
            lengths=lengths,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            top_k=top_k,
            indexer_heads=indexer_heads,
            indexer_dim=indexer_dim,
            dtype=dtype,
            repeats=repeats,
            only=only or (),
            stage=stage,
            deterministic=deterministic,
            run=run,
            layer=layer,
            store=store,
            device=device,
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
    if any(cell.status in ("WRONG", "failed") for cell in document.cells):
        raise typer.Exit(1)
