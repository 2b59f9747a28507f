"""The use of Ray: joining a cluster quietly, and the task of a run, which refuses other versions of dsabench."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from dsabench._version import __version__
from dsabench.errors import DeviceError, SpecError
from dsabench.spec.run import EngineSpec

CONNECT_SECONDS = 5.0
"""Time for a cluster to answer; Ray itself would try for longer, with a poorer message."""


def library() -> ModuleType:
    """The package ray. Raises DeviceError that says how to install it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it does by default it announces on stderr
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise DeviceError(
            f"--launcher ray needs the package ray ({error}); install it with: pip install 'dsabench[ray]'"
        ) from None


def join(address: str | None) -> ModuleType:
    """Join the cluster at `address` (`auto`, or HOST:PORT), or start one of this machine; returns ray, initialised.

    Raises DeviceError when there is no cluster, and SpecError when `address` is none.
    """
    ray = library()
    if address is not None:
        _check(address)
    if ray.is_initialized():
        raise DeviceError("this process has a Ray cluster already: ray.shutdown() leaves it")
    with _own_signals():
        try:
            # A driver must not print what nodes have to say; "local" is this machine even where RAY_ADDRESS is set.
            ray.init(
                address or "local",
                log_to_driver=False,
                logging_level="CRITICAL",
                **({} if address else {"include_dashboard": False}),
            )
        except SystemExit:  # its handler of SIGTERM
            raise KeyboardInterrupt from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"--address {address}: no cluster can be joined" if address else "Ray does not start here"
            hint = " (`ray start --head` starts one)" if address == "auto" else ""
            raise DeviceError(f"{where}: {' '.join(str(error).split())}{hint}") from None
    with suppress(ImportError, AttributeError):  # it prints the deaths of nodes to stdout; they are told of here
        from ray._private import worker

        worker._worker_logs_enabled = False
    return ray


def _check(address: str) -> None:
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SpecError(
            f"--address {address}: auto or HOST:PORT are accepted (the address that `ray start --head` prints); "
            "run the sweep on a machine of the cluster"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise DeviceError(
            f"--address {address}: nothing answers there ({error.strerror or error}); start a cluster with: "
            f"ray start --head --port={port}"
        ) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores the handlers of SIGINT and SIGTERM afterwards, because Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Placement:
    """The share of a node that one run takes."""

    cpus: float
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many runs there is a place for."""
        cpus = int(resources.get("CPU", 0) / self.cpus + 1e-6)
        return min(cpus, int(resources.get("GPU", 0) / self.gpus + 1e-6)) if self.gpus else cpus


def on_gpu(engine: EngineSpec, resources: dict[str, float]) -> bool:
    """Whether runs take GPUs of the cluster. Raises SpecError and DeviceError."""
    if engine.device not in ("auto", "cuda", "cpu"):
        raise SpecError(f"engine.device = {engine.device}: with --launcher ray Ray chooses; use auto, cuda or cpu")
    has_gpus = resources.get("GPU", 0) >= 1
    if engine.device == "cuda" and not has_gpus:
        raise DeviceError("engine.device = cuda: no node of the Ray cluster has a GPU; use auto or cpu")
    return has_gpus and engine.device != "cpu"


def cpu_threads() -> int:
    """CPUs, and threads, of a run on CPUs: OMP_NUM_THREADS, else one, because there are many runs."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isascii() and given.isdigit() else 1


@functools.cache
def versions() -> dict[str, str]:
    """Versions that must be the same on all machines. Builds of PyTorch for CPU and for CUDA count as the same."""
    return {"dsabench": __version__, "torch": metadata.version("torch").partition("+")[0]}


def task(ray: ModuleType, placement: Placement) -> Any:
    """The remote function: `.remote(versions, train, order, pieces)` streams what `train(order, files)` yields, or one
    text that says why the node cannot be used.

    train, order: pickled by Ray's pickle, for they may be unpickled only where dsabench is the same. pieces: of each
    file, references to its parts; `files` are iterators of these. Ray does not retry it, because the driver knows of a
    later checkpoint. With a GPU each call has a process of its own: the next one's GPU may be another, and a process
    keeps its first.
    """

    # Ray sends a function that is defined in another one by value, so that a node without dsabench can execute it.
    def dsabench_run(wanted: dict[str, str], train: bytes, order: bytes, pieces: dict[str, list[Any]]) -> Any:
        import platform
        from importlib import metadata

        host = platform.node()
        try:
            from dsabench._version import __version__

            found = {"dsabench": __version__, "torch": metadata.version("torch").partition("+")[0]}
        except ImportError as error:
            yield f"node {host} cannot import dsabench ({error}); install dsabench {wanted['dsabench']} there"
            return
        if found != wanted:
            theirs, ours = (
                " and ".join(f"{name} {v[name]}" for name in wanted if found[name] != wanted[name])
                for v in (found, wanted)
            )
            yield f"node {host} has {theirs}, and this machine {ours}; install the same on both"
            return
        import ray
        from ray import cloudpickle

        files = {name: (ray.get(part) for part in parts) for name, parts in pieces.items()}
        yield from cloudpickle.loads(train)(cloudpickle.loads(order), files)

    return ray.remote(
        num_cpus=placement.cpus,
        num_gpus=placement.gpus,
        max_calls=1 if placement.gpus else 0,
        max_retries=0,
        num_returns="streaming",
    )(dsabench_run)
