"""Hooks of pytest by which a test that is skipped in CI (the variable CI is set) fails there, unless it needs a GPU.

A skip that nobody sees is a test that is not there: a package that CI does not install, a program that is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest

NEEDS_GPU = re.compile(r"\b(GPU|GPUs|CUDA)\b")
"""In the reason of a skip that is right in CI, which has no GPU."""


def _missing(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Make a failure of a report that says `skipped` and may not."""
    if os.environ.get("CI", "").lower() in ("", "0", "false") or not report.skipped or hasattr(report, "wasxfail"):
        return False
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if NEEDS_GPU.search(reason):
        return False
    report.outcome = "failed"
    report.longrepr = (
        f"{report.nodeid} is missing in CI. {reason}. Let .ci/run install what it needs; if it is not for every run, "
        "mark it slow or on_request, which pyproject.toml deselects."
    )
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test."""
    report = yield
    if not item.get_closest_marker("gpu"):
        _missing(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that is skipped as a whole."""
    report = yield
    if _missing(report):
        report.result = []
    return report
