"""A test that is skipped in CI counts as missing there, unless it needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = {
    "a mark": "@pytest.mark.skipif(True, reason='no Chromium to show the page in')\ndef test_it():\n    pass\n",
    "a call": "def test_it():\n    pytest.skip('this file system refuses such names')\n",
    "a package": "def test_it():\n    pytest.importorskip('no_such_package', reason='it is not installed')\n",
    "a fixture": "@pytest.fixture\ndef it():\n    pytest.skip('not here')\n\ndef test_it(it):\n    pass\n",
    "a file": "pytest.importorskip('no_such_package')\n\ndef test_it():\n    pass\n",
}
RIGHT = {
    "a GPU": "@pytest.mark.skipif(True, reason='needs a CUDA GPU')\ndef test_it():\n    pass\n",
    "two GPUs": "def test_it():\n    pytest.skip('needs two GPUs')\n",
    "an expected failure": "@pytest.mark.xfail(reason='known')\ndef test_it():\n    assert False\n",
    "nothing": "def test_it():\n    pass\n",
}


def run(folder: Path, body: str, **variables: str) -> tuple[int, str]:
    (folder / "test_it.py").write_text(f"import pytest\n\n{body}", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "CI" and "PYTEST" not in name}
    environment |= {"PYTHONPATH": str(Path(__file__).parent / "support"), "NO_COLOR": "1", **variables}
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "-p", "skips_in_ci"]
    done = subprocess.run(
        [sys.executable, *words, "test_it.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("case", SKIPPED)
def test_a_skip_fails_in_ci_with_its_reason(case: str, tmp_path: Path) -> None:
    code, out = run(tmp_path, SKIPPED[case], CI="true")
    assert code in (1, 2), out
    assert "is missing in CI" in out
    assert any(reason in out for reason in ("no Chromium", "refuses such names", "not installed", "not here", "import"))


@pytest.mark.parametrize("case", SKIPPED)
@pytest.mark.parametrize("variables", [{}, {"CI": "false"}])
def test_elsewhere_it_is_a_skip(case: str, variables: dict[str, str], tmp_path: Path) -> None:
    code, out = run(tmp_path, SKIPPED[case], **variables)
    assert code in (0, 5), out
    assert "1 skipped" in out


@pytest.mark.parametrize("case", RIGHT)
def test_what_needs_a_gpu_may_be_skipped_in_ci(case: str, tmp_path: Path) -> None:
    code, out = run(tmp_path, RIGHT[case], CI="true")
    assert code == 0, out


def test_the_suite_uses_it(request: pytest.FixtureRequest) -> None:
    """By tests/conftest.py, which is in force where a hook of it is."""
    hooks = request.config.pluginmanager.hook.pytest_runtest_makereport.get_hookimpls()
    assert any(hook.function.__module__ == "skips_in_ci" for hook in hooks)
