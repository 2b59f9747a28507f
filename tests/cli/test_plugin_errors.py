"""Each mistake in an attention of one's own is one message that names its file, and nothing is written."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from shell import Shell, small_run

from dsabench.attention import plugins
from dsabench.errors import SpecError

pytestmark = pytest.mark.usefixtures("no_audit_remembered")


# Mistakes. The line that the message must name ends in HERE; one without such a line names its file alone.

HEAD = """from typing import Literal
import torch
from dsabench.attention.base import Attention, AttentionOutput, Selection
from dsabench.attention.dense import Dense
from dsabench.attention.registry import register
from dsabench.spec.attention import AttentionSpec

class MineSpec(AttentionSpec):
    kind: Literal["mine"] = "mine"

"""


def registered(body: str, base: str = "Dense") -> str:
    return f"{HEAD}@register  # HERE\nclass Mine({base}):\n    {body}\n"


def method(text: str) -> str:
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    return f"{HEAD}@register\nclass Mine(Dense):\n    spec_class = MineSpec\n{lines}"


def forward(text: str, at: str = "  # HERE") -> str:
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    out = "    out = super().forward(x_BTD, context).out_BTD\n"
    return method(f"def forward(self, x_BTD, context):{at}\n{out}{lines}")


IMPORT = {
    "syntax": ("x = 1\ndef f(:  # HERE\n", "fails to import: SyntaxError: invalid syntax"),
    "exception": ("def f():\n    1 / 0  # HERE\nf()\n", "fails to import: ZeroDivisionError: division by zero"),
    "module": ("import no_such_module  # HERE\n", "ModuleNotFoundError: No module named 'no_such_module'; install it"),
    "moved": (
        "from dsabench.spec.fields import AttentionSpec  # HERE\n",
        "fails to import: ModuleNotFoundError: No module named 'dsabench.spec.fields'; modules inside dsabench move "
        "from version to version: import all that a plugin needs by `from dsabench.attention import Attention,",
    ),
    "moved name": (
        "from dsabench.spec.run import AttentionSpecOfOld  # HERE\n",
        "by `from dsabench.attention import Attention,",
    ),
    "exit": ("import sys\nsys.exit('bye')  # HERE\n", "fails to import: SystemExit: bye"),
    "nothing": (HEAD, "it registers no attention; put @register above its class"),
    "methods": (
        registered("spec_class = MineSpec", "Attention"),
        "Mine cannot be registered: it lacks the method forward(self, x_BTD: Tensor, context: AttentionContext) -> "
        "AttentionOutput; it lacks the method flops(self, stage: Stage) -> dict[str, float]\n",
    ),
    "module class": (registered("pass", "torch.nn.Module"), "is not a subclass of Attention"),
    "signature": (
        registered("spec_class = MineSpec\n    def forward(self, x_BTD): pass"),
        "its method forward(self, x_BTD) must take (self, x_BTD, context)",
    ),
    "no spec class": (registered("spec_class = None"), "it lacks spec_class, the class of its settings: a subclass of"),
    "no kind": (registered("spec_class = AttentionSpec"), 'AttentionSpec.kind must be annotated as Literal["'),
    "two kinds": (
        HEAD + "class S(AttentionSpec):\n    kind: Literal['a', 'b']\n@register  # HERE\nclass M(Dense):\n"
        "    spec_class = S\n",
        'S.kind must be annotated as Literal["the_variants_name"], one name',
    ),
    "path as a kind": (
        HEAD + "class S(AttentionSpec):\n    kind: Literal['../a']\n@register  # HERE\nclass M(Dense):\n"
        "    spec_class = S\n",
        "one name of letters, digits and _",
    ),
    "inherited": (registered("pass"), "'dense' is built in and cannot be replaced; give the variant another name, in"),
}  # fmt: skip

BUILD = {
    "constructor": (
        method("def __init__(self, spec, layer):\n    super().__init__(spec, layer)\n    self.n = spec.n  # HERE"),
        "its constructor raised AttributeError: 'RunSpec' object has no attribute 'n'",
    ),
    "no super": (
        method("def __init__(self, spec, layer):\n    torch.nn.Module.__init__(self)"),
        "it has no attribute spec, layer, projections; its constructor must call super().__init__(spec, layer)",
    ),
    "values on meta": (
        method(
            "def __init__(self, spec, layer):\n    super().__init__(spec, layer)\n"
            "    self.n = torch.arange(3).sum().item()  # HERE"
        ),
        "meta device, where parameters are counted and tensors have no values",
    ),
    "flops": (method("def flops(self, stage): return {'a': 0}"), "flops('dense') returned {'a': 0}; expected is"),
    "flops raises": (
        method("def flops(self, stage):\n    return self.cost  # HERE"),
        "flops('dense') raised AttributeError: 'Mine' object has no attribute 'cost'",
    ),
    "own": (method("def own_parameters(self): return {'a.b'}"), "own_parameters() names a.b; expected is a set of"),
    "memory": (method("def kept_per_pair(self, width): return None"), "kept_per_pair(4) returned None; expected is a"),
}  # fmt: skip

CALL = {
    "a tensor": (forward("return out"), "forward returned Tensor; an AttentionOutput is expected: AttentionOutput(out"),
    "a tuple": (forward("return out, None"), "forward returned tuple; an AttentionOutput is expected"),
    "none": (forward("return AttentionOutput(None)"), "forward returned out_BTD of type NoneType; a tensor is"),
    "shorter": (forward("return AttentionOutput(out[:, 1:])"), "of shape (2, 31, 32) for an input of (2, 32, 32); the"),
    "broadcast": (
        forward("return AttentionOutput(out.mean(0, keepdim=True))"),
        "forward returned out of shape (1, 32, 16) for an input of (2, 32, 16); the same shape is expected",
    ),
    "dtype": (
        forward("return AttentionOutput(out.half())"),
        "forward returned out of torch.float16 for an input of torch.float32; the same dtype is expected",
    ),
    "nan": (
        forward("return AttentionOutput(out + torch.where(torch.arange(out.shape[1]) < 9, 0, torch.nan)[:, None])"),
        "forward returned NaN or infinity, first at position 9, for an input that is finite",
    ),
    "only later at full size": (
        forward("return AttentionOutput(out[..., :31] if out.shape[2] == 32 else out)"),
        "forward returned out of shape (8, 32, 31) for an input of (8, 32, 32)",
    ),
    "aux": (forward("return AttentionOutput(out, out.mean(-1))"), "forward returned aux_loss of shape (2, 32) and"),
    "aux number": (forward("return AttentionOutput(out, 0.5)"), "aux_loss of type float; a scalar tensor is expected"),
    "aux nan": (forward("return AttentionOutput(out, out.sum() * torch.nan)"), "aux_loss = nan; a finite number is"),
    "raises": (
        forward("return AttentionOutput(out @ torch.ones(3, 3))  # HERE", at=""),
        "forward raised RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "prepare": (method("def prepare(self, context):\n    1 / 0  # HERE"), "prepare raised ZeroDivisionError: division"),
    "backward": (
        forward("a = out.exp()\nb = a * a\na += 1\nreturn AttentionOutput(b)", at=""),
        "the backward pass of forward (sparse stage) raised RuntimeError: one of the variables needed for gradient",
    ),
    "nan gradient": (
        forward("return AttentionOutput(out * (0 * out).sqrt())"),
        "the gradient of its input is NaN or infinite, though the output is finite",
    ),
    "capture": (
        forward(
            "if context.capture is not None:\n"
            "    context.capture[self.layer] = Selection(torch.zeros(1, 32, 4).long(), torch.zeros(1, 32))\n"
            "return AttentionOutput(out)"
        ),
        "forward put into context.capture mass_BTS of shape (1, 32); (1, 32, 32) is expected here",
    ),
    "no mass": (
        forward(
            "if context.capture is not None:\n"
            "    mass = torch.ones(1, 32, 32) if context.whole_mass else None\n"
            "    context.capture[self.layer] = Selection(torch.zeros(1, 32, 4).long(), mass)\n"
            "return AttentionOutput(out)"
        ),
        "forward put into context.capture a Selection without mass_BTS or mass_inside_BQ, of which one is needed",
    ),
    "layer": (
        forward("if context.capture is not None:\n    context.capture[7] = None\nreturn AttentionOutput(out)"),
        "forward put a selection into context.capture[7]; its layer is 0",
    ),
    "leak": (
        forward("return AttentionOutput(out + 0.01 * torch.cat([x_BTD[:, 1:], x_BTD[:, :1]], 1))", at=""),
        "attention mine looks ahead: position 0 changes by ",
    ),
}  # fmt: skip

MISTAKES = {**IMPORT, **BUILD, **CALL}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_that_names_the_file(shell: Shell, corpus: Path, name: str) -> None:
    source, expected = MISTAKES[name]
    (shell.folder / "mine.py").write_text(source)
    words = ["--set", "plugins=[mine.py]", *small_run(corpus), "--length", "32"]
    code, out, err = shell("train", *words, "--attention", "mine", "--quiet")
    assert code == 2 and out == "", err
    assert len(err.splitlines()) == 1 and err.startswith("error: "), err
    assert expected in err
    lines = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("HERE")]
    assert f"mine.py:{lines[0]}" in err if lines else re.search(r"mine\.py\b(?!:\d)", err), err
    assert not list(shell.folder.glob("runs/*-*")), "nothing is written"


@pytest.mark.parametrize("name", ["methods", "constructor", "flops", "broadcast", "raises", "backward"])
@pytest.mark.parametrize("command", ["sweep", "audit"])
def test_sweep_and_audit_say_the_same(shell: Shell, corpus: Path, command: str, name: str) -> None:
    source, expected = MISTAKES[name]
    (shell.folder / "mine.py").write_text(source)
    words = ["--config", "quick", "--set", "plugins=[mine.py]", *small_run(corpus)]
    axes = ["--attentions", "dense", "mine", "--lengths", "32"] if command == "sweep" else ["--attention", "mine"]
    code, out, err = shell(command, *words, *axes, "--quiet")
    assert code == 2 and out == "" and expected in err and "mine.py" in err, err
    assert len(err.splitlines()) == 1 and not list(shell.folder.glob("runs/*")), err


@pytest.mark.parametrize("has", list(itertools.product([True, False], repeat=3)))
def test_all_that_is_missing_is_listed(tmp_path: Path, has: tuple[bool, ...]) -> None:
    parts = {
        "forward": "    def forward(self, x_BTD, context): pass\n",
        "flops": "    def flops(self, stage): pass\n",
        "spec_class": "    spec_class = MineSpec\n",
    }
    plugin = tmp_path / "mine.py"
    given = {name for name, present in zip(parts, has, strict=True) if present}
    plugin.write_text(HEAD + "@register\nclass Mine(Attention):\n    pass\n" + "".join(parts[name] for name in given))
    if all(has):
        assert plugins.load_plugin(str(plugin)) == str(plugin)
        return
    with pytest.raises(SpecError) as caught:
        plugins.load_plugin(str(plugin))
    assert set(re.findall(r"it lacks (?:the method )?(\w+)", str(caught.value))) == parts.keys() - given


def test_documents_are_told_apart_where_windows_pack_them(shell: Shell, corpus: Path) -> None:
    blind = "import dataclasses\nblind = dataclasses.replace(context, document_ids_BT=None)\n"
    (shell.folder / "mine.py").write_text(forward(f"{blind}return super().forward(x_BTD, blind)"))
    words = [
        "train",
        "--set",
        "plugins=[mine.py]",
        *small_run(corpus),
        "--length",
        "32",
        "--attention",
        "mine",
        "--quiet",
    ]
    code, out, err = shell(*words, "--set", "data.packing=documents")
    assert code == 2 and out == ""
    assert "mine.py" in err and "forward attends across documents (train mode, sparse stage)" in err
    assert not list(shell.folder.glob("runs/*-*"))
    assert shell(*words)[0] == 0, "a window of one document needs no such care"
