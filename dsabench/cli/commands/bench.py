"""`dsabench bench`: one attention layer by every implementation, over lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import CHECKS, LAYER, MEASUREMENT, epilog
from dsabench.cli.list_options import ListCommand, integers, texts
from dsabench.cli.options import (
    DeviceOption,
    JsonFlag,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    StoreOption,
    check_out,
)

if TYPE_CHECKING:
    from dsabench.bench.document import Document

LengthsOption = Annotated[
    list[int] | None,
    integers(
        "--lengths", "Tokens of a row; else the run's, 4096 to 131072, on a CPU 256 to 1024.", rich_help_panel=LAYER
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch", help="Rows of a batch.", metavar="N", min=1, rich_help_panel=LAYER)
]
HeadsOption = Annotated[
    int | None, typer.Option("--heads", help="Query heads; else 16.", metavar="N", min=1, rich_help_panel=LAYER)
]
KVHeadsOption = Annotated[
    int | None, typer.Option("--kv-heads", help="Key/value heads; else 1.", metavar="N", min=1, rich_help_panel=LAYER)
]
HeadDimOption = Annotated[
    int | None, typer.Option("--head-dim", help="Width of a head; else 64.", metavar="N", min=1, rich_help_panel=LAYER)
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k", help="Keys kept for each query; else 2048, on a CPU 128.", metavar="N", min=1, rich_help_panel=LAYER
    ),
]
IndexerHeadsOption = Annotated[
    int | None,
    typer.Option("--indexer-heads", help="Indexer heads; else 4.", metavar="N", min=1, rich_help_panel=LAYER),
]
IndexerDimOption = Annotated[
    int | None,
    typer.Option("--indexer-dim", help="Width of an indexer head; else 64.", metavar="N", min=1, rich_help_panel=LAYER),
]
InputsOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Time DSA with what the layers of this stored run of dsa select, too.",
        metavar="RUN",
        rich_help_panel=LAYER,
        autocompletion=completion.runs,
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option("--layer", help="Layer of --run; else all.", metavar="N", min=0, rich_help_panel=LAYER),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="bf16 or fp32; else bf16 on a GPU that has it.",
        metavar="NAME",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.one_of("bf16", "fp32"),
    ),
]
RepeatsOption = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        help="Most repetitions of each; else 20, on a CPU 5.",
        metavar="N",
        min=1,
        rich_help_panel=MEASUREMENT,
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    texts("--only", "Implementations, or families: dense, dense-flash, dsa-triton, ...", rich_help_panel=MEASUREMENT),
]
MethodsOption = Annotated[
    list[str] | None,
    texts(
        "--methods",
        "Time these too: dense-flex, dsa-triton-single, dsa-gym, nsa-fla, or all.",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.one_of("dense-flex", "dsa-triton-single", "dsa-gym", "nsa-fla", "all"),
    ),
]
StageOption = Annotated[
    str,
    typer.Option(
        "--stage",
        help="Of DSA: sparse, dense (its warm-up) or both.",
        metavar="NAME",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.one_of("sparse", "dense", "both"),
    ),
]
DeterministicFlag = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Gradients that repeat bit for bit, which is slower.", rich_help_panel=MEASUREMENT
    ),
]

_EXAMPLES = (
    ("On a GPU: dense attention and DSA from 4096 to 131,072 tokens", "dsabench bench"),
    (
        "A small layer at two lengths, in seconds on a CPU",
        "dsabench bench --lengths 128 256 --heads 4 --head-dim 32 --top-k 64",
    ),
    ("Only some implementations", "dsabench bench --lengths 256 --only dense dsa-reference"),
    ("Groups of neighbours beside single queries, and NSA", "dsabench bench --methods dsa-triton-single nsa-fla"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("bench", cls=ListCommand, epilog=epilog("speed", *_EXAMPLES), rich_help_panel=CHECKS)(bench)


def bench(
    lengths: LengthsOption = None,
    batch: BatchOption = 1,
    heads: HeadsOption = None,
    kv_heads: KVHeadsOption = None,
    head_dim: HeadDimOption = None,
    top_k: TopKOption = None,
    indexer_heads: IndexerHeadsOption = None,
    indexer_dim: IndexerDimOption = None,
    run: InputsOption = None,
    layer: LayerOption = None,
    store: StoreOption = Path("runs"),
    dtype: DtypeOption = None,
    repeats: RepeatsOption = None,
    only: OnlyOption = None,
    methods: MethodsOption = None,
    stage: StageOption = "sparse",
    deterministic: DeterministicFlag = False,
    device: DeviceOption = None,
    out: OutOption = Path("results"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time an attention layer: dense, window, DSA.

    One layer over lengths, forward and backward, everything DSA costs included: scores, top-k, attention, KL loss.
    Dense attention by every backend, a sliding window, DSA by reference, masked and Triton kernels; each is checked
    before it is timed. Writes bench.json and bench.png under --out.
    """
    check_out(out)
    document = _timed(
        out,
        quiet,
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
        methods=methods or (),
        stage=stage,
        deterministic=deterministic,
        run=run,
        layer=layer,
        store=store,
        device=device,
    )
    _show(document, out, json)
    if any(cell.status in ("WRONG", "failed") for cell in document.cells):
        raise typer.Exit(1)


def _timed(out: Path, quiet: bool, **settings: Any) -> Document:
    """The bench of these settings; bench.json is written after each implementation. Ends the command when the inputs
    do not fit into memory (1), or when it is interrupted (130)."""
    import torch

    from dsabench.bench.api import bench_layer
    from dsabench.cli.console import notifier, stderr_console
    from dsabench.store.files import write_file

    def save(document: Document) -> None:
        write_file(out / "bench.json", (document.model_dump_json(indent=2) + "\n").encode())

    try:
        return bench_layer(**settings, notify=notifier(quiet), save=save)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        stderr_console().print(f"error: out of memory for the inputs themselves: {reason}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _show(document: Document, out: Path, as_json: bool) -> None:
    """Draw bench.png, and print the tables (or the document) on stdout."""
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views.bench_tables import bench_lines
    from dsabench.cli.views.json_document import print_json
    from dsabench.figures.bench_times import bench_figure
    from dsabench.figures.style import save_png

    save_png(bench_figure(document), out / "bench.png")
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        bench_lines(document, stdout_console())
        stdout_console().print(f"Written: {out / 'bench.json'}, {out / 'bench.png'}")
