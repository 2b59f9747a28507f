"""The difference of two stored runs: spec, data, environment, outcome and, of one spec, records. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsabench.errors import ScopeError, StoreError
from dsabench.metrics import columns
from dsabench.reproduction.compare_records import Records, compare_records
from dsabench.reproduction.environments import Change, changes, environment_changes, environment_of, n_equal, text
from dsabench.spec.identity import flatten
from dsabench.store import RunRecord, find_run, read_metrics

_HEADLINE = 3
"""Changes of a kind that the summary names; it counts the others."""

_BY_DIGEST = {"plugins": "plugin", "data.source": "corpus", "data.tokenizer": "tokenizer"}
"""Fields that may hold a path, and the digest that says whether the same lies there."""


@dataclass(frozen=True)
class RunDifference:
    """Two runs, and everything in which they differ."""

    a: RunRecord
    b: RunRecord
    stores: tuple[Path, Path]
    spec: list[Change]
    moved: list[Change]
    """Fields of the spec that name the same content, by its digest, at another path."""

    environment: list[Change]
    outcome: list[Change]
    shared: dict[str, int]
    """How many spec fields, environment entries and outcomes are equal."""

    digests: dict[str, bool]
    """Of each digest that both runs have (corpus, tokenizer, plugin, source): whether it is the same."""

    records: Records | None
    """Of two runs of one spec: what they recorded, step by step."""

    problem: str
    """Why the records could not be compared; empty when they were, or when the specs differ."""

    @property
    def same_spec(self) -> bool:
        """Whether both are one run: the same fields, data and plugin, apart from how it is executed and paths."""
        return not self._other_spec() and all(same for name, same in self.digests.items() if name != "source")

    @property
    def summary(self) -> str:
        """The difference in one line."""
        spec = self._other_spec()
        data = [name for name, same in self.digests.items() if not same and name != "source"]
        engine = [change for change in self.spec if change.field.startswith("engine.")]
        parts = [f"other spec: {_named(spec)}" if spec else "same spec"]
        parts += [f"other {' and '.join(data)}"] if data else []
        parts += [f"the same {' and '.join(_BY_DIGEST[c.field] for c in self.moved)} at another path"] * bool(
            self.moved
        )
        parts += [f"other engine settings: {_named(engine)}"] if engine else []
        known = [change for change in self.environment if None not in (change.a, change.b)]
        parts += [f"other environment: {_named(known)}"] if known else []
        if not known:
            parts += ["same environment" + (", as far as both recorded it" if self.environment else "")]
        return f"{', '.join(parts)}; {self._outcome()}"

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "summary": self.summary,
            "same_spec": self.same_spec,
            "runs": [
                {"run_id": run.run_id, "store": str(store), "status": run.status}
                for run, store in zip((self.a, self.b), self.stores, strict=True)
            ],
            "spec": [change._asdict() for change in self.spec],
            "same_content": [change._asdict() for change in self.moved],
            "environment": [change._asdict() for change in self.environment],
            "outcome": [{**change._asdict(), "difference": difference(change)} for change in self.outcome],
            "equal": self.shared,
            "digests": {name: "equal" if same else "differs" for name, same in self.digests.items()},
            "records": None if self.records is None else records_document(self.records),
            "problem": self.problem or None,
        }

    def _other_spec(self) -> list[Change]:
        """Changes of the spec that make it another run."""
        return [change for change in self.spec if not change.field.startswith("engine.")]

    def _outcome(self) -> str:
        if self.a.status != self.b.status:
            return f"{self.a.status} -> {self.b.status}"
        ours, theirs = self.a.summary.get("val_loss"), self.b.summary.get("val_loss")
        if ours is None or theirs is None:
            return f"both {self.a.status}"
        size = difference(Change("val_loss", ours, theirs))
        return f"val_loss differs by {abs(size):.2g}" if size else "val_loss is the same"


def diff_runs(
    store: str | Path, a: str, b: str | None = None, *, other_store: str | Path | None = None
) -> RunDifference:
    """How run `b` differs from run `a`; both named by the start of an id.

    `b` lies in `other_store` when one is given, and is then by default the run with the id of `a`: a spec has the same
    id on every machine.

    Raises:
        StoreError: there is no such run, or it cannot be read.
        ScopeError: both are the same run of one store.
    """
    first = find_run(store, a)
    if b is None and other_store is None:
        raise ScopeError(f"run {first.run_id}: name a second run, or the store of another run of this id")
    stores = Path(store), Path(store if other_store is None else other_store)
    second = find_run(stores[1], first.run_id if b is None else b)
    if first.run_id == second.run_id and stores[0].resolve() == stores[1].resolve():
        raise ScopeError(f"both are run {first.run_id} of {stores[0]}; name two runs, or another store")
    return compare_runs(first, second, stores)


def compare_runs(a: RunRecord, b: RunRecord, stores: tuple[Path, Path]) -> RunDifference:
    """`diff_runs` of two records, whose metrics lie in these stores."""
    specs, environments = (flatten(a.spec), flatten(b.spec)), (environment_of(a), environment_of(b))
    outcomes = _outcomes(a), _outcomes(b)
    digests = [{**run.fingerprint, **({"source": s} if (s := run.environment.get("source")) else {})} for run in (a, b)]
    same = {name: digests[0][name] == digests[1][name] for name in digests[0] if name in digests[1]}
    other = changes(*specs, first=("attention.kind", "length", "seed"))
    moved = [change for change in other if same.get(_BY_DIGEST.get(change.field, ""), False)]
    found = RunDifference(
        a,
        b,
        stores,
        spec=[change for change in other if change not in moved],
        moved=moved,
        environment=environment_changes(a, b),
        outcome=changes(*outcomes, first=("status", *columns())),
        shared={
            "spec": n_equal(*specs),
            "environment": n_equal(*environments),
            "outcome": n_equal(*outcomes),
        },
        digests=same,
        records=None,
        problem="",
    )
    if not found.same_spec:
        return found
    records, problem = None, ""
    try:
        ours, theirs = read_metrics(stores[0], a.run_id), read_metrics(stores[1], b.run_id)
        records = compare_records(ours, theirs, whole=a.status == b.status)
    except StoreError as error:
        problem = str(error)
    return RunDifference(**{**vars(found), "records": records, "problem": problem})


def difference(change: Change) -> float | None:
    """b - a of two numbers; None of anything else."""
    numbers = [value for value in (change.a, change.b) if isinstance(value, int | float) and type(value) is not bool]
    try:
        return numbers[1] - numbers[0] if len(numbers) == 2 else None
    except OverflowError:  # a whole number beyond every float, and a float
        return None


def records_document(records: Records) -> dict[str, Any]:
    """For `--json`."""
    first, largest = records.first, records.largest
    return {
        "records": records.total,
        "same": records.same,
        "last_step": records.last_step,
        "first_difference": None if first is None else {**first._asdict(), "size": first.size},
        "largest_loss_difference": None if largest is None else {**largest._asdict(), "size": largest.size},
        "missing": [{"kind": kind, "step": step} for kind, step in records.missing],
        "extra": [{"kind": kind, "step": step} for kind, step in records.extra],
    }


def _outcomes(record: RunRecord) -> dict[str, Any]:
    return {"status": record.status, "error": record.error, **record.summary}


def _named(found: list[Change]) -> str:
    """The first changes of what both runs have (else of what one has), and how many more there are."""
    shown = [c for c in found if None not in (c.a, c.b)][:_HEADLINE] or found[:_HEADLINE]
    named = ", ".join(f"{c.field} {text(c.a)} -> {text(c.b)}" for c in shown)
    return named + (f" and {len(found) - len(shown)} more" if len(found) > len(shown) else "")
