"""The samplers of a search: which settings each trial has, by Optuna or by a grid."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from dsabench.errors import SpecError
from dsabench.spec.tune import RangeSpec, TuneSpec

Over = Mapping[str, RangeSpec | list[Any]]

DIGITS = 3
"""Significant digits of a value out of a range: more would tell no two settings apart, and make names long."""


class Sampler(Protocol):
    """The settings of one variant's trials: the same ones for the same losses told."""

    needs_losses: bool
    """Whether a trial's settings depend on the losses of those before it."""

    def ask(self) -> dict[str, Any]:
        """The settings of the next trial, by field path."""

    def tell(self, val_loss: float) -> None:
        """The validation loss of the first trial that was asked for and not told; infinity of one that failed."""


def sampler_of(tune: TuneSpec, over: Over, name: str) -> Sampler:
    """The sampler of a variant (`name`) whose trials vary the fields `over`. Raises SpecError: Optuna is missing, or a
    grid that does not come to `tune.trials` settings."""
    if tune.sampler == "grid":
        return _Grid(tune, over, name)
    return _ByOptuna(tune, over)


def library() -> ModuleType:
    """The package optuna. Raises SpecError that says how to install it."""
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise SpecError(
            f"tune.sampler = tpe and random need the package optuna ({error}); install it with: "
            "pip install 'dsabench[tune]', or try a grid, which needs none: --tune-sampler grid"
        ) from None


class _ByOptuna:
    """A sampler of Optuna over a study in memory. What is done is told again from the store, so the study needs no
    database of its own."""

    def __init__(self, tune: TuneSpec, over: Over) -> None:
        assert tune.trials is not None
        optuna = library()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.needs_losses = tune.sampler == "tpe"
        # Optuna's ten random trials before the first guided one would be most of a small budget.
        first = min(10, max(2, tune.trials // 3))
        sampler = (
            optuna.samplers.TPESampler(seed=tune.seed, n_startup_trials=first, multivariate=True)
            if tune.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=tune.seed)
        )
        self.study = optuna.create_study(direction="minimize", sampler=sampler)
        # By its place where choices are no plain scalars: Optuna's categories must be.
        self.over = dict(over)
        self.space = {
            path: optuna.distributions.FloatDistribution(values.low, values.high, log=values.scale == "log")
            if isinstance(values, RangeSpec)
            else optuna.distributions.CategoricalDistribution(range(len(values)))
            for path, values in self.over.items()
        }
        self.asked: list[Any] = []

    def ask(self) -> dict[str, Any]:
        """As `Sampler` says."""
        trial = self.study.ask(self.space)
        self.asked.append(trial)
        return {
            path: rounded(trial.params[path], values) if isinstance(values, RangeSpec) else values[trial.params[path]]
            for path, values in self.over.items()
        }

    def tell(self, val_loss: float) -> None:
        """As `Sampler` says."""
        self.study.tell(self.asked.pop(0), val_loss)


class _Grid:
    """Evenly spaced settings: all choices, and of each range as many values as the budget has room for."""

    needs_losses = False

    def __init__(self, tune: TuneSpec, over: Over, name: str) -> None:
        assert tune.trials is not None
        choices = math.prod(len(values) for values in over.values() if isinstance(values, list))
        n_ranges = sum(isinstance(values, RangeSpec) for values in over.values())
        each = round((tune.trials / choices) ** (1 / n_ranges)) if n_ranges else 1
        if choices * each**n_ranges != tune.trials or (n_ranges and each < 2):
            fits = [choices * n**n_ranges for n in (max(2, each), max(2, each) + 1)] if n_ranges else [choices]
            raise SpecError(
                f"tune.sampler = grid: the fields of {name} ({', '.join(over)}) do not make {tune.trials} settings; "
                f"they make {' or '.join(map(str, dict.fromkeys(fits)))}, and every variant must have the same number "
                "of trials (a range takes any number of values; tpe and random take any number of trials)"
            )
        axes = [
            [rounded(values.at(i / (each - 1)), values) for i in range(each)]
            if isinstance(values, RangeSpec)
            else values
            for values in over.values()
        ]
        self.points = iter([dict(zip(over, point, strict=True)) for point in itertools.product(*axes)])

    def ask(self) -> dict[str, Any]:
        """As `Sampler` says."""
        return next(self.points)

    def tell(self, val_loss: float) -> None:
        """As `Sampler` says; a grid does not listen."""


def rounded(value: float, within: RangeSpec) -> float:
    """`value` to DIGITS significant digits, and inside the range."""
    return min(within.high, max(within.low, float(f"{value:.{DIGITS}g}")))
