"""The places where a sweep is trained: this process, worker processes on devices of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from dsabench.errors import SpecError

if TYPE_CHECKING:
    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.sweeps.launcher import Launcher


class LauncherName(StrEnum):
    """Places other than this machine where runs can be trained."""

    RAY = "ray"


def launcher_of(
    plan: SweepPlan, store: Path, name: LauncherName | None, address: str | None, notify: Callable[[str], None]
) -> Launcher | None:
    """Worker processes, a Ray cluster, or None for this process."""
    if plan.devices:
        from dsabench.sweeps.workers.pool import Workers

        return Workers(store, plan.runs[0].spec.engine, plan.devices, plan.at_a_time, notify)
    if name:
        from dsabench.sweeps.ray.cluster import Cluster

        return Cluster(store, [run.spec for run in plan.runs], plan.at_a_time, notify, address)
    return None


def workers_of(
    launcher: LauncherName | None, address: str | None, device: str | None, devices: list[str] | None
) -> list[str]:
    """The devices that `--devices` names, a worker process each; none without it. SpecError for flags that exclude
    each other."""
    _check_launcher(launcher, address, device, devices)
    if devices is None:
        return []
    from dsabench.sweeps.workers.pool import devices_of

    if device is not None:
        raise SpecError(f"--device {device} and --devices {' '.join(devices)}: give one of them")
    return devices_of(devices)


def _check_launcher(
    launcher: LauncherName | None, address: str | None, device: str | None, devices: list[str] | None
) -> None:
    """SpecError for flags that do not go with --launcher, or without it; and for Ray where it is not installed."""
    if launcher is None:
        if address is not None:
            raise SpecError(f"--address {address} is that of a Ray cluster: give --launcher ray too")
        return
    for flag, value in (("--device", device), ("--devices", devices and " ".join(devices))):
        if value is not None:
            raise SpecError(
                f"{flag} {value} and --launcher ray: Ray gives each run a GPU of its cluster, or a CPU where there is "
                "none or engine.device is cpu (--set engine.device=cpu); leave one of them out"
            )
    from dsabench.sweeps.ray import ray_session

    ray_session.library()
