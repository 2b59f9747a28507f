"""The GPU suite: its marks, and a lock that gives the device to one test where times are measured.

pytest -m gpu -n 8        all of it; most of its time is compiling kernels, which eight processes do at once
pytest -m gpu_smoke -n 8  a minute: each kernel once, the training step in a graph, the audit, resuming
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SMOKE = {
    "test_sparse_kernels.py": (
        "test_selected_sets_are_the_references[dtype1-sizes2]",
        "test_outputs_and_all_gradients[dtype1-0.01-sizes2-False]",
        "test_the_kl_loss_over_all_keys[dtype1-0.01-sizes2-False]",
        "test_long_rows_hold_the_k_highest_scores[256-9001]",
        "test_a_step_replays_from_a_graph[500]",
        "test_groups_of_neighbours_against_fp64[sizes0-True-False]",
    ),
    "test_backends.py": (
        "test_captured_steps_learn_what_eager_ones_do[bf16-0.03]",
        "test_the_gate_audits_the_kernels",
    ),
    "test_cuda.py": (
        "test_captured_steps_learn_what_eager_ones_do[bf16-0.03-dense]",
        "test_captured_steps_learn_what_eager_ones_do[bf16-0.03-dsa]",
        "test_no_step_waits_for_the_host[graph-dsa]",
        "test_a_deterministic_run_resumes_to_the_same_bits[dsa]",
        "test_fused_kernels_learn_what_plain_pytorch_does[bf16-0.02-dsa]",
        "test_auto_is_bf16_and_a_graph_on_this_gpu",
    ),
}
"""The tests marked gpu_smoke, by file."""

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.parent == HERE]
    found = {(item.path.name, item.name) for item in ours}
    whole = {item.path.name for item in ours} if not any("::" in argument for argument in config.args) else set()
    lost = [f"{file}: {name}" for file in whole & SMOKE.keys() for name in SMOKE[file] if (file, name) not in found]
    if lost:
        raise pytest.UsageError(f"tests/gpu/conftest.py lists smoke tests that do not exist: {', '.join(lost)}")
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu_alone"):
            item.add_marker(pytest.mark.xdist_group("gpu_alone"))  # one process, which waits for the device once
        if item.name in SMOKE.get(item.path.name, ()):
            item.add_marker(pytest.mark.gpu_smoke)


@pytest.fixture(autouse=True, scope="module")
def device_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module marked gpu_alone has the device to itself, its fixtures included."""
    with held(exclusive=True) if _is_alone(request.node) else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def device_shared(request: pytest.FixtureRequest) -> Iterator[None]:
    """All other tests share the device."""
    with contextlib.nullcontext() if _is_alone(request.node) else held(exclusive=False):
        yield


def _is_alone(node: pytest.Item | pytest.Collector) -> bool:
    return node.get_closest_marker("gpu_alone") is not None


@contextlib.contextmanager
def held(exclusive: bool) -> Iterator[None]:
    """A lock on a file that all processes of a suite know; it ends with its process."""
    try:
        import fcntl
    except ImportError:  # Windows: run the suite in one process there
        yield
        return
    with Path(tempfile.gettempdir(), "dsabench_gpu_suite.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
