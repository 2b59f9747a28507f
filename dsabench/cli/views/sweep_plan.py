"""The plan of a sweep: what will be trained, on what, for how long and in how much memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from dsabench.cli.console import stdout_console
from dsabench.cli.safe_text import printable
from dsabench.cli.views.json_document import print_json
from dsabench.metrics import METRICS
from dsabench.plain import count
from dsabench.progress.durations import duration
from dsabench.spec.tune import described

if TYPE_CHECKING:
    from dsabench.data import Amounts
    from dsabench.engine.device import Execution
    from dsabench.engine.memory_plan import MemoryPlan
    from dsabench.progress.time_left import Timetable
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep
    from dsabench.sweeps.plan import PlannedRun
    from dsabench.sweeps.search import Search


class SweepPlan(NamedTuple):
    """A sweep's runs, what they will take, and where they will be trained."""

    sweep: Sweep
    runs: Sequence[PlannedRun]
    execution: Execution
    fits: Sequence[tuple[RunSpec, MemoryPlan]]
    """The memory of each shape of run."""
    times: Timetable
    """The estimated times of the runs that are not done."""
    at_a_time: int
    """Runs that share a device."""
    devices: Sequence[str] = ()
    """Devices with a worker process each; empty when this process trains."""
    search: Search | None = None
    """What chooses the settings of the runs; runs whose settings are not known yet are called by what they will be."""

    @property
    def first(self) -> Sequence[PlannedRun]:
        """The runs to begin with: all, or the round of a search that is under way."""
        return self.runs if self.search is None else self.search.round

    def shown(self, run_id: str) -> str:
        """The name in `runs` of a run that is trained."""
        return run_id if self.search is None else self.search.outlook_name(run_id)

    def is_judged(self, run_id: str) -> bool:
        """Whether it is one of the sweep's runs, and no trial of a search: one that failed is an answer of the search,
        which counts it."""
        return self.search is None or not self.search.is_trial(run_id)

    @property
    def seconds(self) -> float:
        """The estimated time of all runs that are not done."""
        return self.times.seconds


def plan_document(plan: SweepPlan) -> dict[str, Any]:
    """The document of `sweep --dry-run --json`."""
    return {
        "sweep": plan.sweep.plain(),
        "estimated_seconds": round(plan.seconds),
        "devices": list(plan.devices),
        "runs_at_a_time": plan.at_a_time,
        "estimated_memory": [
            {
                "attention": spec.attention.model_dump(mode="json"),
                "length": spec.length,
                "micro_batch": memory.micro_batch,
                "recompute": memory.recompute,
                "bytes": {item: round(size) for item, size in memory.bytes.items()},
                "total_bytes": round(memory.total),
            }
            for spec, memory in plan.fits
        ],
        "texts": [{"source": source, **amounts.document()} for source, amounts in _texts(plan.runs)],
        "runs": [
            {
                "run_id": run.run_id,
                "status": run.status,
                "parent": run.parent,
                "for_children": run.for_children,
                "epochs": run.epochs,
                "epochs_are_rough": run.is_rough,
                "problem": run.problem or None,
                "selects_everything": run.spec.attention.selects_everything(run.spec.length),
                "spec": run.spec.model_dump(mode="json"),
            }
            for run in plan.runs
        ],
    }


def print_plan(plan: SweepPlan, console: Console, *, config: str = "", full: bool = False) -> None:
    """Print what will be trained, for how long, and how much of it is done already; with `full` run by run.

    config: the config's name, by which `quick` is not recommended to itself.
    """
    execution = plan.execution
    runs = [run for run in plan.runs if not run.for_children]
    first = runs[0].spec
    where = ", ".join(plan.devices) or execution.device
    lengths = " or ".join(f"{steps:,}" for steps in dict.fromkeys(run.spec.train.steps for run in runs))
    console.print(
        f"{count(len(runs), 'run')} of {lengths} step{'s' * (lengths != '1')} on {where} ({execution.precision}):"
    )
    for line in parents(plan.runs):
        console.print(line)
    for line in origins(runs):
        console.print(line, soft_wrap=not console.is_terminal)
    from dsabench.spec.attention_axis import in_words

    for path, values in plan.sweep.axes.items():
        between = f"\n  {'':20} " if path == "attention" else ", "  # whole attentions: a line each
        console.print(f"  {path:20} {between.join(map(in_words, values))}", soft_wrap=path == "attention")
    for line in search_lines(plan):
        console.print(line, soft_wrap=not console.is_terminal)
    if plan.sweep.ladder:
        console.print(f"  {'ladder':20} {', '.join(f'{i} {name}' for i, name in enumerate(plan.sweep.ladder, 1))}")
    texts = _texts(plan.runs)
    for source, amounts in texts:
        console.print(f"  {'text' if len(texts) == 1 else source}: {amounts}")
    for line in epochs_lines(plan.runs):
        console.print(f"  {line}")
    _print_windows(plan.runs, console)
    for line in selecting_everything(plan.runs):
        console.print(line)
    if note := warmup_note(first):
        console.print(f"  {note}")
    for note in no_verdict_notes(plan):
        console.print(f"  {note}")
    if full:
        from dsabench.sweeps.plan import is_soon_checked

        for run in plan.runs:
            mark = "  selects everything" if run.spec.attention.selects_everything(run.spec.length) else ""
            mark += "  parent of others" if run.for_children else ""
            console.print(f"  {run.status:12} {run.run_id}{mark}")
        if not all(is_soon_checked(run) for run in plan.runs):
            console.print("  (documents are checked to be long enough for a window when training starts)")
    if plan.fits and (full or execution.device.type == "cuda"):
        _print_memory(plan, console)
    for line in damaged_lines(plan.runs):
        console.print(line, style="bold yellow", soft_wrap=not console.is_terminal)
    done = sum(run.status == "done" for run in plan.runs)
    todo = f"{done:,} of {count(len(plan.runs), 'run')} done already; " if done else ""
    left = (
        f"estimated time: about {duration(plan.seconds)} (rough)"
        if any(run.is_left for run in plan.runs)
        else "nothing is left to train"
    )
    console.print(f"{todo}{left}")
    if execution.device.type == "cpu" and plan.seconds > 600 and config != "quick":
        console.print("This is long for a CPU; `dsabench sweep --config quick` is a smaller experiment for it.")


def damaged_lines(runs: Sequence[PlannedRun]) -> list[str]:
    """A line for each damaged run with the way out; the others are trained."""
    return [printable(f"WARNING: {run.problem}.") for run in runs if run.problem]


def warmup_note(spec: RunSpec) -> str | None:
    """A note for a warm-up of the learning rate that is not over before the last step."""
    if spec.train.warmup_steps < spec.train.steps:
        return None
    return (
        f"note: train.warmup_steps = {spec.train.warmup_steps} is not below train.steps = {spec.train.steps}; "
        "the learning rate never reaches its peak"
    )


def no_verdict_notes(plan: SweepPlan) -> Iterator[str]:
    """A note for each reason why no run of a sweep will get a verdict; none for a single run, which asks for none."""
    from dsabench.analysis.statistics import MIN_PAIRS

    if not (plan.sweep.axes or plan.sweep.ladder):
        return
    runs = [run for run in plan.runs if not run.for_children]
    kinds = {run.spec.attention.kind for run in runs}
    if "dense" not in kinds:
        both = " ".join(["dense", *sorted(kinds)])
        yield f"note: no dense runs, so no verdict against dense attention; --attentions {both}"
    elif len(kinds) == 1:
        yield "note: dense runs alone, and nothing to compare them with; --attentions dense dsa"
    seeds = {run.spec.seed for run in runs} - ({plan.sweep.tune.seed} if plan.search is not None else set())
    if len(seeds) < MIN_PAIRS:
        yield f"note: {count(len(seeds), 'seed')}, and a verdict needs {MIN_PAIRS} or more; --seeds 1 2 3"


def search_lines(plan: SweepPlan) -> Iterator[str]:
    """The search of a tuned sweep: its budget, what trials vary, and what was done of it."""
    if plan.search is None:
        return
    tune, studies = plan.sweep.tune, plan.search.studies
    steps = f" of {tune.steps:,} steps" if tune.steps else ""
    each = f"for each of {count(len(studies), 'variant')} (a variant at each length)"
    yield f"  {'search':20} {count(plan.search.trials, 'trial')}{steps} {each}; {tune.sampler}, seed {tune.seed}"
    for path in dict.fromkeys(path for study in studies for path in study.over):
        lacking = [study.name for study in studies if path not in study.over]
        without = f"; not of {', '.join(lacking)}" if lacking else ""
        yield printable(f"  {'':20} {path} {described(tune.over[path])}{without}")
    if plan.search.passed:
        yield f"  {'':20} {plan.search.passed} trials have ended already"


def parents(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """A line for the runs that are trained before others, which start from them."""
    above = [run for run in runs if run.for_children]
    if above:
        kinds = " and ".join(dict.fromkeys(run.spec.attention.kind for run in above))
        steps = " or ".join(f"{n:,}" for n in dict.fromkeys(run.spec.train.steps for run in above))
        children = sum(run.parent is not None for run in runs)
        from_there = f"{count(children, 'run')} {'starts' if children == 1 else 'start'}"
        yield f"  {'first':20} {count(len(above), 'parent')} ({kinds}, {steps} steps), from which {from_there}"


def origins(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """A line for each trained model that is there already and that runs start from, with the sizes of theirs."""
    specs = [run.spec for run in runs if run.spec.start is not None and run.spec.start.parent is None]
    for start, model in dict.fromkeys((spec.start, spec.model) for spec in specs if spec.start is not None):
        keys = f"{model.kv_heads} KV heads"
        if model.latent is not None:
            keys = f"a latent of {model.latent.kv_lora_rank} + {model.latent.qk_rope_head_dim}"
        heads = f"{model.n_heads} heads of {model.head_dim} on {keys}"
        sizes = f"d_model {model.d_model:,}, {count(model.n_layers, 'layer')}, {heads}, d_ff {model.d_ff:,}"
        yield printable(f"  {'from':20} {start.run or start.checkpoint}: {sizes}")


def print_dry_run(plan: SweepPlan, as_json: bool) -> None:
    """The result of `sweep --dry-run` on stdout."""
    if as_json:
        print_json(plan_document(plan))
    else:
        print_plan(plan, stdout_console(), full=True)


def _texts(runs: Sequence[PlannedRun]) -> list[tuple[str, Amounts]]:
    """Each text's source and sizes, in the order of the runs; none of a task."""
    return list(dict.fromkeys((run.spec.data.source, run.amounts) for run in runs if run.amounts is not None))


def _print_windows(runs: Sequence[PlannedRun], console: Console) -> None:
    """Windows and tokens of a step at each length, and the keys that selecting variants keep there."""
    for length, batch, tokens in dict.fromkeys(
        (run.spec.length, run.spec.batch_size, run.spec.tokens_per_step) for run in runs
    ):
        selected = {run.spec.attention.n_selected(length) for run in runs if run.spec.length == length} - {None}
        kept = [f"{k} (everything)" if k >= length else str(k) for k in sorted(filter(None, selected))]
        keeps = f", selecting variants keep {', '.join(kept)} keys" if kept else ""
        console.print(f"  length {length}: {batch} windows a step = {tokens:,} tokens{keeps}")
    for schedule in dict.fromkeys(map(_schedule, runs)):
        if schedule:
            console.print(f"  keys kept: {schedule}")


def _schedule(run: PlannedRun) -> str:
    """How the number of keys changes in training, in words; "" where it does not."""
    attention, length = run.spec.attention, run.spec.length
    parts = [f"{attention.top_k_at(step - 1)} before step {step:,}" for step in attention.key_changes()]
    return (
        f"{attention.kind} at length {length}: {', '.join(parts)}, then {attention.n_selected(length)}" if parts else ""
    )


def epochs_lines(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """How many times the runs see their training text, and what that means where it is often; none of tasks."""
    from dsabench.analysis.learning_checks import MOST_EPOCHS, REPEATED

    known = [run for run in runs if run.epochs is not None]
    if not known:
        return
    values = [run.epochs for run in known if run.epochs is not None]
    low, high = (METRICS["epochs"].text(value) for value in (min(values), max(values)))
    rough = "about " if any(run.is_rough for run in known) else ""
    yield f"epochs: {rough}{low if low == high else f'{low} to {high}'} ({METRICS['epochs'].meaning})"
    if max(values) > MOST_EPOCHS:
        yield f"note: that is more than {MOST_EPOCHS:g} times: {REPEATED}"


def selecting_everything(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """A line for each attention that keeps as many keys as its window has tokens, with the lengths where it does."""
    found: dict[tuple[str, int], dict[int, None]] = {}
    for spec in (run.spec for run in runs):
        if spec.attention.selects_everything(spec.length):
            found.setdefault((spec.attention.kind, spec.attention.n_selected(spec.length) or 0), {})[spec.length] = None
    for (kind, k), lengths in found.items():
        at = " and ".join(map(str, lengths))
        yield (
            f"  note: {kind} with k = {k} selects everything at length {at}: it leaves nothing out there, and gets no "
            "verdict"
        )


def _print_memory(plan: SweepPlan, console: Console) -> None:
    """The memory of the largest run, and the runs whose batch is cut to fit."""
    spec, memory = max(plan.fits, key=lambda fit: fit[1].total)
    together = f", {plan.at_a_time} runs at a time on a device" if plan.at_a_time > 1 else ""
    parts = ", ".join(f"{item} {size / 1e9:.2f}" for item, size in memory.bytes.items() if size >= 0.01 * memory.total)
    console.print(f"memory: about {memory.total / 1e9:.2f} GB for {spec.attention.kind} at L={spec.length}{together}")
    console.print(f"  in GB: {parts}")
    for spec, memory in plan.fits:
        if memory.micro_batch < spec.batch_size or memory.recompute:
            again = ", blocks computed again in the backward pass" if memory.recompute else ""
            console.print(
                f"  {spec.attention.kind} at L={spec.length}: {memory.micro_batch} of {spec.batch_size} windows at a "
                f"time{again}"
            )
