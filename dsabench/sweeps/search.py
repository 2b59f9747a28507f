"""The search of a tuned sweep: rounds of trials, the best settings of each variant, and then its runs.

A search keeps no state of its own: started again it asks for the same trials, finds those that are done in the store,
and goes on with the first that is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dsabench.data import Survey
from dsabench.errors import SpecError, StoreError
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.store import StudyRecord, TrialRecord, TuningRecord, read_run
from dsabench.sweeps.plan import PlannedRun, of_sweep, plan, status
from dsabench.sweeps.studies import Study, Trial, check_search, loss_told, studies_of, trial_spec, with_settings
from dsabench.sweeps.sweep_identity import named


class Search:
    """The search of a sweep, in rounds: each has a trial of every variant (all of them where the sampler needs no
    losses), and the last one the sweep's runs."""

    def __init__(self, sweep: Sweep, store: str | Path) -> None:
        """Raises SpecError for a search that cannot be made, or would not be fair."""
        assert sweep.tune.trials is not None
        self.sweep, self.tune, self.store = sweep, sweep.tune, Path(store)
        self.surveys: dict[DataSpec, Survey] = {}
        check_search(sweep)
        self.studies = studies_of(sweep)
        runs = of_sweep(self._plan(sweep.runs()))
        text = json.dumps([sorted(run.run_id for run in runs), sweep.tune.model_dump(mode="json")], sort_keys=True)
        self.identity = named(f"{sweep.name}-tuned", text)
        self.round: list[PlannedRun] = []
        """The runs of the round under way, with the parents that they start from."""
        self.passed = 0
        """Trials that were found done, or failed, when the search was taken up."""
        self.names: dict[str, str] = {}
        """run id -> what it is, which is what its stand-in in the outlook is called."""
        self.stand_ins: set[str] = set()
        """The stand-ins of the outlook."""

    @property
    def is_final(self) -> bool:
        """Whether the round under way is that of the sweep's runs."""
        return all(study.finals for study in self.studies)

    def take_up(self, retry_failed: bool) -> None:
        """Go on to the first round of which something is left to train; at most to the last."""
        self.next()
        while not self.is_final and not any(r.is_left and (retry_failed or r.status != "failed") for r in self.round):
            self.passed = sum(len(study.trials) for study in self.studies)
            self.next()

    def next(self) -> list[PlannedRun]:
        """The runs of the next round, when those of the one before have ended; none after the last.

        Raises StoreError for a trial that is damaged, SpecError when no trial of a variant learnt.
        """
        if self.is_final:
            return []
        self._tell()
        if len(self.studies[0].trials) < self.trials:
            self.round = self._ask()
        else:
            self.round = self._choose()
        return self.round

    @property
    def trials(self) -> int:
        """Trials of each variant."""
        assert self.tune.trials is not None
        return self.tune.trials

    def is_trial(self, run_id: str) -> bool:
        """Whether a run was trained to choose, not to be judged."""
        return any(trial.run_id == run_id for study in self.studies for trial in study.trials)

    def run_ids(self) -> list[str]:
        """The sweep's runs; while it searches, its trials so far."""
        if self.is_final:
            return list(dict.fromkeys(name for study in self.studies for name in study.final_ids))
        return list(dict.fromkeys(trial.run_id for study in self.studies for trial in study.trials))

    def record(self) -> TuningRecord:
        """The search as the sweep's record holds it."""
        return TuningRecord(
            trials=self.trials,
            steps=self.tune.steps,
            seed=self.tune.seed,
            sampler=self.tune.sampler,
            studies=[
                StudyRecord(
                    name=study.name,
                    length=study.trials[0].spec.length,
                    attention=study.trials[0].spec.attention.kind,
                    over=list(study.over),
                    lacks=study.lacks,
                    trials=[trial.told for trial in study.trials if trial.told is not None],
                    best=study.best() if study.finals else None,
                    run_ids=study.final_ids,
                )
                for study in self.studies
            ],
        )

    def outlook(self) -> list[PlannedRun]:
        """The runs of this round and stand-ins for those after it, whose settings are not known yet."""
        runs = list(self.round)
        if self.is_final:
            return runs
        for study in self.studies:
            like = of_sweep(self._plan([study.trials[0].spec]))[0]
            blank = replace(like, status="new", at=0, parent=None, problem="")
            later = range(len(study.trials), self.trials)
            runs += [replace(blank, run_id=f"{study.name}, trial {i + 1}") for i in later]
            for spec in with_settings(study.sweep, study.trials[0].settings).runs():
                runs.append(replace(blank, run_id=_final_name(study, spec), spec=spec))
        self.stand_ins = {run.run_id for run in runs[len(self.round) :]}
        return runs

    def outlook_name(self, run_id: str) -> str:
        """The run's name in `outlook`."""
        name = self.names.get(run_id, run_id)
        return name if name in self.stand_ins else run_id

    def _ask(self) -> list[PlannedRun]:
        specs = []
        for study in self.studies:
            for _ in range(1 if study.sampler.needs_losses else self.trials):
                settings = study.sampler.ask()
                spec = trial_spec(study.sweep, self.tune, settings)
                planned = of_sweep(self._plan([spec]))[0]
                if planned.problem:  # what it says would choose
                    raise StoreError(planned.problem)
                study.trials.append(Trial(settings, spec, planned.run_id))
                self.names.setdefault(planned.run_id, f"{study.name}, trial {len(study.trials)}")
                specs.append(spec)
        return self._plan(specs)

    def _choose(self) -> list[PlannedRun]:
        """The seeds at each variant's best settings."""
        _check_budgets(self.studies, self.trials)
        for study in self.studies:
            study.finals = with_settings(study.sweep, study.trials[study.best()].settings).runs()
            study.final_ids = [run.run_id for run in of_sweep(self._plan(study.finals))]
            for run_id, spec in zip(study.final_ids, study.finals, strict=True):
                self.names[run_id] = _final_name(study, spec)
        return self._plan([spec for study in self.studies for spec in study.finals])

    def _tell(self) -> None:
        """Tell the samplers what came of the trials of the round, in their order."""
        for study in self.studies:
            for trial in study.trials:
                if trial.told is None:
                    trial.told = _outcome(self.store, trial)
                    study.sampler.tell(loss_told(trial.told))

    def _plan(self, specs: Sequence[RunSpec]) -> list[PlannedRun]:
        return plan(specs, self.store, self.surveys)


def search_of(sweep: Sweep, store: str | Path, retry_failed: bool, on_oom: str) -> Search | None:
    """The search of a sweep, taken up where it stands; None of a sweep that has none. Raises as `Search`."""
    if sweep.tune.trials is None:
        return None
    if on_oom == "accumulate":
        raise SpecError(
            "--on-oom accumulate does not go with a search (tune, --tune): runs that are compared are cut alike, and "
            "here they are not known beforehand; leave it out"
        )
    search = Search(sweep, store)
    search.take_up(retry_failed)
    return search


def _final_name(study: Study, spec: RunSpec) -> str:
    return f"{study.name}, seed {spec.seed} at its best"


def _outcome(store: Path, trial: Trial) -> TrialRecord:
    """What came of a trial that ended. Raises StoreError where it is damaged."""
    bare = TrialRecord(run_id=trial.run_id, settings=trial.settings)
    if status(store, trial.run_id) != "done":
        return bare
    summary = read_run(store, trial.run_id).summary
    costs = {
        name: value if isinstance(value := summary.get(column), int | float) and math.isfinite(value) else 0
        for name, column in (("tokens", "tokens"), ("flops", "flops"), ("seconds", "train_seconds"))
    }
    loss = summary.get("val_loss")
    known = isinstance(loss, int | float) and math.isfinite(loss)
    return TrialRecord(run_id=trial.run_id, settings=trial.settings, val_loss=loss if known else None, **costs)


def _check_budgets(studies: Sequence[Study], trials: int) -> None:
    """What makes the comparison fair: every variant had as many trials, of as many tokens, as those it is compared
    with."""
    assert {len(study.trials) for study in studies} == {trials}, "variants had different numbers of trials"
    budgets: dict[str, set[tuple[int, int]]] = {}
    for study in studies:
        setting = {path: v for path, v in study.sweep.axes.items() if not path.startswith("attention.")}
        of_setting = budgets.setdefault(json.dumps(setting), set())
        of_setting.update((trial.spec.train.steps, trial.spec.tokens_per_step) for trial in study.trials)
    assert all(len(found) == 1 for found in budgets.values()), "variants had trials of different lengths"
