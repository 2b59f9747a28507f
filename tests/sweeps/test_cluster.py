"""Runs trained by the nodes of a Ray cluster: stored as those of this process are, whatever becomes of nodes.

Slow: Ray's processes take half a minute a test to start. tests/cli/test_launcher.py has what needs no cluster.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dsabench[ray]'")

import chaos
from ray.cluster_utils import Cluster as Nodes

from dsabench.engine.device import resolve
from dsabench.errors import DataError, DeviceError, DsabenchError
from dsabench.spec.config import load_sweep
from dsabench.spec.run import validate
from dsabench.spec.sweep import Sweep
from dsabench.store import RunRecord, read_run
from dsabench.sweeps import plan
from dsabench.sweeps.ray import node, ray_session
from dsabench.sweeps.ray.cluster import Cluster
from dsabench.sweeps.ray.payload import Order
from dsabench.sweeps.schedule import run_sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own

Train = Callable[..., Iterator[node.Report]]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head with a place for one run, and a GPU that there is not."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    yield found
    found.shutdown()


def sweep_of(corpus: Path, seeds: int = 2, **fields: Any) -> Sweep:
    base = {
        "length": 16,
        "attention": {"kind": "dense"},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 2, "experts_per_token": 1},
        "data": {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25},
        "train": {
            "steps": 12, "tokens_per_step": 64, "warmup_steps": 5, "eval_every": 6, "eval_tokens": 128, "log_every": 5,
        },
        "engine": {"device": "cpu", "checkpoint_every": 2},
        **fields,
    }  # fmt: skip
    return Sweep(base, {"seed": list(range(1, seeds + 1))}, "few")


def trained(
    sweep: Sweep,
    store: Path,
    nodes: Any,
    train: Train = node.train_on_node,
    told: list[str] | None = None,
    concurrency: int = 1,
) -> Iterator[RunRecord]:
    specs = sweep.runs()
    notify = (told if told is not None else []).append
    cluster = Cluster(store, specs, concurrency, notify, nodes.address, train)
    execution = resolve(specs[0].engine)
    yield from run_sweep(sweep, plan.plan(specs, store), store, execution, launcher=cluster, notify=notify)


def here(sweep: Sweep, store: Path) -> Path:
    planned = plan.plan(sweep.runs(), store)
    execution = resolve(planned[0].spec.engine)
    assert {record.status for record in run_sweep(sweep, planned, store, execution)} == {"done"}
    return store


@pytest.mark.parametrize("sends", [False, True])
def test_a_node_that_dies_costs_nothing_but_time(
    corpus: Path, tmp_path: Path, nodes: Any, sends: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """sends: a checkpoint came home before, and another node goes on from it."""
    sweep = sweep_of(corpus, seeds=5)
    calm, wild = here(sweep, tmp_path / "calm"), tmp_path / "wild"
    second = nodes.add_node(num_cpus=1)
    its_id, told = second.node_id, []

    class Told(list[str]):
        def append(self, line: str) -> None:
            told.append(line)
            if line == "doomed":
                nodes.remove_node(second, allow_graceful=False)

    def train(order: Order, *rest: Any) -> Iterator[node.Report]:
        import ray

        from dsabench.sweeps.ray import node

        node.HOME_SECONDS = 0 if sends else 1000
        left = -1
        for report in node.train_on_node(order, *rest):
            yield report
            if isinstance(report, node.Checkpoint):
                left = sum(report.sizes.values())
            elif isinstance(report, bytes):
                left -= len(report)
            is_time = left == 0 if sends else isinstance(report, node.Began)
            if is_time and ray.get_runtime_context().get_node_id() == its_id:
                yield node.Note("doomed")
                time.sleep(1000)

    ids = [record.run_id for record in trained(sweep, wild, nodes, train, Told())]
    assert len(ids) == len(set(ids)) == 5
    assert chaos.differences(calm, wild) == []
    (again,) = [line for line in told if "elsewhere" in line]
    assert ("goes on from step" in again) == sends and "step 12" not in again, again
    assert "raylet" not in capfd.readouterr().out


def test_a_parent_is_trained_once_before_its_children(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    """Its weights are sent to the nodes of those that start from it."""
    start = {"parent": {"attention.kind": "dense", "train.steps": 8}}
    attention = {"kind": "dsa", "top_k": 4, "indexer": {"n_heads": 2, "head_dim": 8}}
    base = {**sweep_of(corpus).base, "attention": attention, "start": start}
    sweep = Sweep(base, {"attention.kind": ["dense", "dsa"], "seed": [1, 2]}, "family")
    calm, wild = here(sweep, tmp_path / "calm"), tmp_path / "wild"
    records = list(trained(sweep, wild, nodes))
    assert [record.status for record in records] == ["done"] * 6
    assert len({record.run_id for record in records}) == 6
    assert chaos.differences(calm, wild) == []


def test_a_run_that_outlives_its_nodes_too_often_has_failed(
    corpus: Path, tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsabench.sweeps.ray.cluster.MOST_DEATHS", 1)
    second = nodes.add_node(num_cpus=1, resources={"second": 1})
    its_id = second.node_id

    class Told(list[str]):
        def append(self, line: str) -> None:
            if line == "doomed":
                nodes.remove_node(second, allow_graceful=False)

    def train(order: Order, *rest: Any) -> Iterator[node.Report]:
        import ray

        from dsabench.sweeps.ray import node

        if ray.get_runtime_context().get_node_id() == its_id:
            yield node.Note("doomed")
            time.sleep(1000)
        yield from node.train_on_node(order, *rest)

    records = list(trained(sweep_of(corpus, seeds=4), tmp_path / "runs", nodes, train, Told()))
    assert sorted(record.status for record in records) == ["done", "done", "done", "failed"]
    (failed,) = [record for record in records if record.status == "failed"]
    assert "1 nodes were lost under it" in str(failed.error) and "--retry-failed" in str(failed.error)


def test_a_process_that_dies_is_its_runs_failure(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    def train(order: Order, *rest: Any) -> Iterator[node.Report]:
        from dsabench.sweeps.ray import node

        if order.spec["seed"] == 2:
            yield node.Began("there")
            yield node.Note("now")
            os.kill(os.getpid(), signal.SIGSEGV)
        if order.spec["seed"] == 3:
            raise RuntimeError("no fault of the training")
        yield from node.train_on_node(order, *rest)

    sweep, store = sweep_of(corpus, seeds=3), tmp_path / "runs"
    records = {record.spec["seed"]: record for record in trained(sweep, store, nodes, train)}
    assert {seed: record.status for seed, record in records.items()} == {1: "done", 2: "failed", 3: "failed"}
    assert "its process died: on node there" in str(records[2].error)
    assert "RuntimeError: no fault of the training" in str(records[3].error)
    assert "no fault of the training" in (store / records[3].run_id / "log.txt").read_text()
    again = list(trained(sweep, store, nodes, train))  # failures are not trained again
    assert sorted(record.status for record in again) == ["done", "failed", "failed"]


PLUGIN = """
from typing import Literal
import torch
from dsabench.attention.dense import Dense, DenseSpec
from dsabench.attention.registry import register

class Spec(DenseSpec):
    kind: Literal["shipped"] = "shipped"

@register
class Shipped(Dense):
    spec_class = Spec

    def forward(self, x_BTD, context):
        if FAILS and torch.is_grad_enabled() and int(context.step) == 5:  # which no audit calls
            raise RuntimeError("on purpose")
        return super().forward(x_BTD, context)
"""


def test_what_a_node_lacks_is_one_message(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    def elsewhere(source: str) -> Train:
        def train(order: Order, *rest: Any) -> Iterator[node.Report]:
            from dataclasses import replace

            from dsabench.sweeps.ray import node

            data = {**order.spec["data"], "source": f"path:{source}"}
            yield from node.train_on_node(replace(order, spec={**order.spec, "data": data}), *rest)

        return train

    host = platform.node()
    with pytest.raises(DataError) as missing:
        list(trained(sweep_of(corpus), tmp_path / "runs", nodes, elsewhere("/no/such/corpus")))
    assert f"on node {host}: " in str(missing.value) and "/no/such/corpus" in str(missing.value)
    other = tmp_path / "other"
    other.mkdir()
    for path in corpus.iterdir():
        (other / path.name).write_text(path.read_text() + " more")
    with pytest.raises(DataError, match="its corpus has another digest"):
        list(trained(sweep_of(corpus), tmp_path / "runs", nodes, elsewhere(str(other))))
    assert {read_run(tmp_path / "runs", path.name).status for path in (tmp_path / "runs").glob("*-L*")} == {
        "interrupted"
    }


def test_other_versions_are_refused(corpus: Path, tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ray_session.versions()
    monkeypatch.setattr(ray_session, "versions", lambda: {**ours, "dsabench": "9.9"})
    with pytest.raises(DeviceError) as refused:
        list(trained(sweep_of(corpus), tmp_path / "runs", nodes))
    assert f"has dsabench {ours['dsabench']}, and this machine dsabench 9.9" in str(refused.value)
    assert "torch" not in str(refused.value)


def test_runs_share_a_gpu_by_halves(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    def train(order: Order, *rest: Any) -> Iterator[node.Report]:
        import ray

        from dsabench.sweeps.ray import node

        yield node.Note(f"{os.environ['CUDA_VISIBLE_DEVICES']} {ray.get_runtime_context().get_assigned_resources()}")
        yield from node.train_on_node(order, *rest)

    told: list[str] = []
    sweep = sweep_of(corpus, engine={"device": "auto"})
    assert [r.status for r in trained(sweep, tmp_path / "runs", nodes, train, told, concurrency=2)] == ["done"] * 2
    shares = [line for line in told if line.startswith("0 ")]
    assert len(shares) == 2 and all("'GPU': 0.5" in line and "'CPU': 0.5" in line for line in shares)
    with pytest.raises(DsabenchError, match="with --launcher ray Ray chooses"):
        list(trained(sweep_of(corpus, engine={"device": "cuda:1"}), tmp_path / "runs", nodes))


def test_a_plugin_need_not_be_on_the_node(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    """Its file is gone when the nodes train; a failure names it as the user knows it."""

    plugin = tmp_path / "shipped.py"
    plugin.write_text(PLUGIN.replace("FAILS", "False"))
    validate({"plugins": [str(plugin)], "attention": {"kind": "shipped"}})
    sweep = sweep_of(corpus, seeds=1, plugins=[str(plugin)], attention={"kind": "shipped"})
    specs = sweep.runs()
    calm, wild = here(sweep, tmp_path / "calm"), tmp_path / "wild"
    cluster = Cluster(wild, specs, 1, print, nodes.address)
    planned = plan.plan(specs, wild)
    plugin.unlink()
    execution = resolve(specs[0].engine)
    assert [record.status for record in run_sweep(sweep, planned, wild, execution, launcher=cluster)] == ["done"]
    assert chaos.differences(calm, wild) == []

    plugin.write_text(PLUGIN.replace("FAILS", "True"))
    sweep = sweep_of(corpus, seeds=1, plugins=[str(plugin)], attention={"kind": "shipped"})
    (record,) = trained(sweep, tmp_path / "failing", nodes)
    assert record.status == "failed"
    assert f"{plugin}:16: attention shipped raised RuntimeError: on purpose" in str(record.error)
    assert str(plugin) in (tmp_path / "failing" / record.run_id / "log.txt").read_text()


def test_a_sweep_begins_where_one_of_this_process_stopped(corpus: Path, tmp_path: Path, nodes: Any) -> None:
    """A checkpoint of the store travels to the node; what is done stays."""
    sweep = sweep_of(corpus, seeds=2)
    calm, wild = here(sweep, tmp_path / "calm"), tmp_path / "wild"
    first = plan.plan(sweep.runs(), wild)[0]
    stopped = run_sweep(sweep, plan.plan(sweep.runs(), wild), wild, resolve(first.spec.engine))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsabench.engine.loop.TrainingRun._is_time_to_save", lambda self: stop(self.progress.step))
        with pytest.raises(KeyboardInterrupt):
            list(stopped)
    assert read_run(wild, first.run_id).status == "interrupted"

    def train(order: Order, *rest: Any) -> Iterator[node.Report]:
        from dsabench.sweeps.ray import node

        yield node.Note(f"{order.spec['seed']}: {order.metrics.count(b'eval')} records")
        yield from node.train_on_node(order, *rest)

    told: list[str] = []
    assert [record.status for record in trained(sweep, wild, nodes, train, told)] == ["done", "done"]
    assert any(line.startswith("1: ") and not line.endswith(" 0 records") for line in told), told
    assert chaos.differences(calm, wild) == []


def stop(step: int) -> bool:
    """Asked to stop after step 6."""
    if step >= 6:
        raise KeyboardInterrupt
    return True


# The command, with a cluster of this machine that it starts and stops


def command(folder: Path, *words: str, steps: int = 12) -> subprocess.Popen[str]:
    chaos.prepare(folder)
    fixed = ["--config", "chaos.yaml", "--lengths", "16", "--set", f"train.steps={steps}", "--launcher", "ray"]
    code = "from dsabench.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "sweep", *fixed, *words],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def ray_processes(session: int) -> list[str]:
    """What is left of the processes of a session."""
    found = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[:-1]


def test_the_command_prints_what_it_prints_without_ray(tmp_path: Path) -> None:
    sweep = command(tmp_path, "--json", "--seeds", "1")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert set(json.loads(out)["results"]["16"]) == {"classic", "sparse"}
    assert "ray" not in err.replace("--launcher ray", "").lower(), err
    until = time.monotonic() + 20
    while ray_processes(sweep.pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert not ray_processes(sweep.pid)


@pytest.mark.parametrize("asks", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_within_five_seconds(asks: signal.Signals, tmp_path: Path) -> None:
    sweep = command(tmp_path, "--seeds", "1", "2", steps=100_000)
    store, until = tmp_path / "runs", time.monotonic() + 200
    assert sweep.stderr is not None
    while not any("step" in line for line in sweep.stderr if "/100000" in line):
        assert time.monotonic() < until
    began = time.monotonic()
    os.killpg(sweep.pid, asks) if asks is signal.SIGINT else sweep.send_signal(asks)
    _, err = sweep.communicate(timeout=60)
    assert time.monotonic() - began < 5, err
    assert sweep.returncode == 130, err
    assert "interrupted after 0 of 4 runs" in err
    assert {read_run(store, path.name).status for path in store.glob("*-L*")} == {"interrupted"}
    until = time.monotonic() + 20
    while ray_processes(sweep.pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert not ray_processes(sweep.pid)


def test_a_killed_command_leaves_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    sweep = command(tmp_path, "--seeds", "1", "2", "3")
    assert sweep.stderr is not None and sweep.stdout is not None
    assert any("  done  " in line for line in sweep.stderr)
    sweep.kill()
    sweep.wait()
    sweep.stdout.close()
    sweep.stderr.close()
    store = tmp_path / "runs"
    # A run that the kill met before its record is none yet: a folder with a lock.
    left = {read_run(store, path.parent.name).status for path in store.glob("*-L*/run.json")}
    assert "done" in left and left <= {"done", "interrupted"}
    experiment = load_sweep(str(tmp_path / "chaos.yaml"))
    experiment.set_axis("length", [16], "")
    calm = here(experiment, tmp_path / "calm")
    assert chaos.differences(calm, here(experiment, store)) == []
