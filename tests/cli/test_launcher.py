"""`sweep --launcher`: what is refused before anything is started."""

from __future__ import annotations

import sys

import pytest
from shell import Shell


def test_without_ray_the_message_says_how_to_install_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = shell("sweep", "--config", "quick", "--launcher", "ray")
    assert (code, out) == (2, "")
    assert err.startswith("error: --launcher ray needs the package ray") and len(err.splitlines()) == 1
    assert "pip install 'dsabench[ray]'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "--address auto is that of a Ray cluster: give --launcher ray too"),
        (["--launcher", "ray", "--device", "cpu"], "--device cpu and --launcher ray: Ray gives each run"),
        (["--launcher", "ray", "--devices", "0", "1"], "--devices 0 1 and --launcher ray: Ray gives each run"),
    ],
)
def test_flags_that_do_not_go_together_are_named(words: list[str], said: str, shell: Shell) -> None:
    code, out, err = shell("sweep", "--config", "quick", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}") and len(err.splitlines()) == 1
    assert not list(shell.folder.iterdir())


@pytest.mark.parametrize("address", ["somewhere", "ray://head:10001", "head:", "head:0", ":6379", "head:port"])
def test_what_is_no_address_says_what_would_be(address: str, shell: Shell) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dsabench[ray]'")
    code, _, err = shell("sweep", "--config", "quick", "--launcher", "ray", "--address", address, "--quiet")
    assert code == 2
    assert err.startswith(f"error: --address {address}: auto or HOST:PORT are accepted"), err


def test_an_address_where_nothing_answers_says_how_to_start_a_cluster(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dsabench[ray]'")

    def init(*words: object, **more: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)  # somebody else's may run here
    for address in ("127.0.0.1:9", "auto"):
        code, _, err = shell("sweep", "--config", "quick", "--launcher", "ray", "--address", address, "--quiet")
        assert code == 2
        assert err.startswith(f"error: --address {address}: "), err
        assert "ray start --head" in err, err
