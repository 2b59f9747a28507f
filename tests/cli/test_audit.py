"""`dsabench audit`, and the gate before every training, as a user meets them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import resealed
import torch
from shell import Shell

import dsabench
from dsabench.audit import experiment_checks, soundness
from dsabench.engine.device import resolve
from dsabench.errors import LeakError
from dsabench.model.transformer import build
from dsabench.spec.run import validate

SMALL = [
    "--config", "quick", "--set", "model.d_model=32", "--set", "model.n_heads=2", "--set", "model.d_ff=16",
    "--set", "model.n_layers=1", "--set", "train.tokens_per_step=64", "--set", "train.steps=4",
    "--set", "train.eval_tokens=256", "--set", "data.vocab_size=300", "--set", "data.val_share=0.25", "--device", "cpu",
]  # fmt: skip

LEAKY = """
import torch
from typing import Literal
from dsabench.attention.dense import Dense
from dsabench.attention.registry import register
from dsabench.attention.base import AttentionOutput
from dsabench.spec.attention import AttentionSpec

class LeakySpec(AttentionSpec):
    kind: Literal["leaky"] = "leaky"

@register
class Leaky(Dense):
    spec_class = LeakySpec

    def forward(self, x_BTD, context):
        out = super().forward(x_BTD, context)
        ahead = torch.cat([x_BTD[:, 1:], torch.zeros_like(x_BTD[:, :1])], 1)
        at_T = torch.arange(x_BTD.shape[1]) % 7 == 5
        return AttentionOutput(out.out_BTD + 0.01 * ahead * at_T[:, None])
"""
"""The simplest plugin there is, with a peek at t+1 every 7th position."""


pytestmark = pytest.mark.usefixtures("no_audit_remembered")


@pytest.fixture
def leaky(shell: Shell, corpus: Path) -> list[str]:
    (shell.folder / "leaky.py").write_text(LEAKY, encoding="utf-8")
    source = ["--set", f"data.source=path:{corpus}"]
    return [*SMALL, *source, "--set", "plugins=[leaky.py]", "--set", "attention={kind: leaky}"]


def results(document: dict[str, Any]) -> list[dict[str, str]]:
    return [{check["check"]: check["result"] for check in one["checks"]} for one in document["audits"]]


@pytest.mark.parametrize("width", [80, 140])
def test_a_sound_config_passes_as_wide_as_the_terminal(shell: Shell, corpus: Path, width: int) -> None:
    words = ["audit", *SMALL, "--set", f"data.source=path:{corpus}", "--length", "32"]
    code, out, err = shell.on_terminal(width, *words)
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= width, max(lines, key=len)
    assert [line.split()[2] for line in lines if line.startswith("attention ")] == ["L=32", "L=32"]
    for check in ("causal, train mode", "causal, eval mode", "rows independent", "calls independent"):
        assert sum(line.startswith(f"{check:20}  ok ") for line in lines) == 2, check
    assert sum("KL -> indexer         ok" in line for line in lines) == 1
    assert lines[-1].startswith("Nothing wrong was found.")
    assert "auditing dsa L=32" in err and "auditing" not in out
    assert not (shell.folder / "runs").exists()


def test_json_says_all(shell: Shell, corpus: Path) -> None:
    code, out, err = shell("audit", *SMALL, "--set", f"data.source=path:{corpus}", "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(out)
    dense, dsa = results(document)
    assert not document["failed"] and [one["attention"] for one in document["audits"]] == ["dense", "dsa"]
    assert {name for name, result in dense.items() if result == "n.a."} == {
        "same start as dense", "LM loss -> indexer", "KL -> backbone", "KL -> indexer",
    }  # fmt: skip
    assert set(dsa.values()) == {"ok", "info"} and dsa["held-out text"] == "info"
    causality = document["audits"][1]["causality"]
    assert causality["result"] == "passed" and causality["boundaries"] >= 11 and causality["found"] is None


def test_a_leak_is_refused_everywhere_unless_allowed(shell: Shell, leaky: list[str]) -> None:
    """One long test: audit, train and sweep refuse; allow_leak trains, and every table marks the run."""
    code, out, _ = shell("audit", *leaky, "--length", "48")
    assert code == 1
    assert "causal, train mode    LEAK    looks ahead: position 5 changes by" in out
    assert out.splitlines()[-1] == "Not to be believed: leaky L=48."
    for words in (["train", *leaky, "--length", "48"], ["sweep", *leaky, "--lengths", "48", "--attentions", "leaky"]):
        code, out, err = shell(*words)
        assert code == 2 and out == ""
        assert "error: attention leaky looks ahead: position 5 changes by " in err
        assert "when only positions after 5 change (L=48; train mode, sparse stage; first in layer 0's att" in err
        assert "set allow_leak = true to train it marked LEAK" in err
        assert not list((shell.folder / "runs").glob("*-*")), "nothing is written"

    code, out, err = shell("train", *leaky, "--length", "48", "--set", "allow_leak=true", "--json")
    assert code == 0, err
    assert "LEAK: attention leaky looks ahead: position 5" in err
    record = json.loads(out)
    assert record["summary"]["leak"] is True and record["spec"]["allow_leak"] is True
    assert record["environment"]["audit"]["result"] == "leak"
    assert dsabench.load_runs("runs")["leak"].tolist() == [True]
    assert "LEAK" in shell("runs")[1]
    assert ": done LEAK: this attention sees later tokens" in shell("runs", "show", record["run_id"])[1]
    code, out, err = shell("audit", record["run_id"])
    assert code == 1 and "step 4's weights" in out and "LEAK" in out


def test_a_sound_run_says_that_it_was_audited(shell: Shell, corpus: Path) -> None:
    source = ["--set", f"data.source=path:{corpus}"]
    code, out, err = shell("train", *SMALL, *source, "--length", "32", "--attention", "dsa", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["summary"]["leak"] is False
    audit = record["environment"]["audit"]
    assert audit["result"] == "passed" and audit["small_copies"].startswith("L=32 k=") and audit["seconds"] > 0
    runs = dsabench.load_runs("runs")
    assert runs["leak"].tolist() == [False] and runs["environment.audit.boundaries"].tolist() == [audit["boundaries"]]

    code, out, err = shell("audit", record["run_id"][:12], "--json")
    assert code == 0, err
    (one,) = json.loads(out)["audits"]
    assert (one["run_id"], one["weights"]) == (record["run_id"], "step 4's")
    code, out, err = shell("audit", record["run_id"], "--length", "64")
    assert code == 2 and "a stored RUN has its own settings" in err


def test_a_run_whose_text_is_gone_is_audited_without_it(shell: Shell, corpus: Path) -> None:
    spec = validate(
        {
            "length": 16, "attention": {"kind": "dense"}, "model": {"d_model": 16, "n_heads": 2, "n_layers": 1},
            "data": {"source": f"path:{corpus}", "vocab_size": 300, "val_share": 0.25}, "engine": {"device": "cpu"},
            "train": {"steps": 2, "tokens_per_step": 32, "eval_tokens": 64},
        }
    )  # fmt: skip
    record = dsabench.train(spec, "runs")
    path = shell.folder / "runs" / record.run_id / "run.json"
    resealed.replace(path, str(corpus), "/nowhere")
    code, out, err = shell("audit", record.run_id, "--json")
    assert code == 0, err
    (found,) = results(json.loads(out))
    assert found["first loss near ln V"] == found["held-out text"] == "n.a." and found["causal, eval mode"] == "ok"


def test_the_python_api_refuses_too(shell: Shell, leaky: list[str]) -> None:
    assert shell("audit", *leaky)[0] == 1  # loads the plugin
    values = {"length": 48, "attention": {"kind": "leaky"}, "plugins": ["leaky.py"], "engine": {"device": "cpu"}}
    data = {"source": leaky[leaky.index("--device") + 3].partition("=")[2], "vocab_size": 300, "val_share": 0.25}
    with pytest.raises(LeakError, match="position 5"):
        dsabench.train(validate({**values, "data": data}), shell.folder / "runs")


# The other checks, each with what it must catch.

PLAIN = {"length": 32, "model": {"d_model": 32, "n_heads": 2, "n_layers": 1, "d_ff": 16}, "engine": {"device": "cpu"}}
DSA = validate({**PLAIN, "attention": {"kind": "dsa", "indexer": {"n_heads": 2, "head_dim": 8}}})


def test_other_initial_weights_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert experiment_checks._shared_start(DSA, 101).result == "ok"
    honest = build

    def shifted(spec: Any, vocab_size: int) -> Any:
        """The classic: one random stream for all parameters, which an indexer's shift."""
        torch.manual_seed(spec.seed)
        model = honest(spec, vocab_size)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model

    monkeypatch.setattr(soundness, "build", shifted)
    found = experiment_checks._shared_start(DSA, 101)
    assert found.result == "FAIL" and "differs" in found.detail


def test_wrongly_routed_gradients_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    execution = resolve(DSA.engine)
    assert {check.result for check in experiment_checks._gradients(DSA, execution)} == {"ok"}
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    found = {check.check: check for check in experiment_checks._gradients(DSA, execution)}
    assert found["KL -> backbone"].result == "FAIL" and "reaches" in found["KL -> backbone"].detail


def test_an_untrained_indexer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsabench.attention.dsa import reference

    honest = reference.indexer_kl
    monkeypatch.setattr(reference, "indexer_kl", lambda scores, p, keep: honest(scores.detach(), p, keep) * 1)
    found = {check.check: check.result for check in experiment_checks._gradients(DSA, resolve(DSA.engine))}
    assert found["KL -> indexer"] == "FAIL"


def test_the_first_loss() -> None:
    """The published model starts at N(0, 1) embeddings, tied: hundreds of nats."""
    model = build(DSA, 101)
    tokens_NT = torch.randint(101, (3, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits_BTV = model.eval()(tokens_NT[:, :-1]).logits_BTV
    expected = float(torch.nn.functional.cross_entropy(logits_BTV.mT, tokens_NT[:, 1:]))
    assert soundness.mean_loss(model, tokens_NT) == pytest.approx(expected, rel=1e-5)
    assert soundness.starts_sanely(expected, 101) and not soundness.starts_sanely(math.log(101) + 0.6, 101)
    with torch.no_grad():
        model.embedding.weight.normal_()
    assert not soundness.starts_sanely(soundness.mean_loss(model, tokens_NT), 101)
