"""Every implementation of the bench, and the choice of some by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsabench.bench.cases import Case, FlexCausal, Window, dense_cases
from dsabench.bench.document import Settings
from dsabench.bench.peer_cases import peer_cases
from dsabench.bench.sparse_cases import dsa_cases
from dsabench.errors import SpecError


def all_cases(settings: Settings, device: torch.device) -> list[Case]:
    """Every implementation there is, whether it can run here or not."""
    flex = [FlexCausal(settings, device), Window(settings, device)]
    return [*dense_cases(settings, device), *flex, *dsa_cases(settings, device), *peer_cases(settings, device)]


def chosen(cases: Sequence[Case], only: Sequence[str], methods: Sequence[str] = ()) -> list[Case]:
    """Those named by `only`, or whose name begins with one of it and a hyphen (nothing: all); and those of `methods`
    (`all`: all that are optional). Optional ones are named in full. Raises SpecError for a name of none."""
    names = list(dict.fromkeys(case.name for case in cases))
    optional = list(dict.fromkeys(case.name for case in cases if case.optional))
    for wanted in only:
        if not any(_named(name, wanted) for name in names):
            raise SpecError(f"--only {wanted}: there is no such implementation; there are {', '.join(names)}")
    for wanted in methods:
        if wanted not in (*names, "all"):
            raise SpecError(
                f"--methods {wanted}: there is no such implementation; there are {', '.join(optional)}, all"
            )

    def is_chosen(case: Case) -> bool:
        if case.name in methods or (case.optional and "all" in methods) or case.name in only:
            return True
        return not case.optional and (not only or any(_named(case.name, wanted) for wanted in only))

    return [case for case in cases if is_chosen(case)]


def _named(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(wanted + "-")
