"""List options: `--lengths 64 128 256`, `--lengths 64,128,256`, `--lengths=64,128`, repeated, or any mixture.

Declare one in a command's signature in one line, and give the command the class ListCommand:

    @app.command(cls=ListCommand)
    def sweep(lengths: Annotated[list[int] | None, integers("--lengths", "Sequence lengths.")] = None): ...

What marks an option as a list is its metavar, which ends in " ..." (`N ...` integers, `X ...` numbers, others
text): of all that a declaration says, it is what every version of Typer hands through unchanged. An option
that is merely repeatable (`--set`, declared with typer.Option and a list type) is left alone: one value each,
with all its commas.

After `--lengths` the first value is always taken, then only further numbers, so that a positional may follow
(`--layers 0 1 RUN`). After a text list everything up to the next token that starts with "-" is taken; `--`
ends any list.
"""

from __future__ import annotations

import math
import re
from typing import Any

import typer

from dsabench.cli.command_help import HelpfulCommand

_INTEGERS = "N ..."
_NUMBERS = "X ..."
_TYPED = "dsabench.cli.list_options.typed"
"""The key of a context's `meta` that holds the words of the command line as they were typed."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SCHEMES = ("path:", "hf:")
"""Values that may hold commas themselves (`hf:NAME,CONFIG`): split only before another one with a scheme."""


def integers(name: str, help: str, **settings: Any) -> Any:
    """The declaration of a list of integers, for `list[int] | None`; `settings`: of typer.Option."""
    return _option(name, _INTEGERS, help, settings)


def numbers(name: str, help: str, **settings: Any) -> Any:
    """The declaration of a list of finite numbers, for `list[float] | None`; `settings`: of typer.Option."""
    return _option(name, _NUMBERS, help, settings)


def texts(name: str, help: str, metavar: str = "NAME", **settings: Any) -> Any:
    """The declaration of a list of words, for `list[str] | None`; `metavar` names one of them in the help.

    `hf:NAME,CONFIG` and `path:A,B.txt` keep their commas: separate those from what follows by a space. A word that is
    wholly in quotes is taken to the letter.
    """
    return _option(name, f"{metavar} ...", help, settings)


class ListCommand(HelpfulCommand):
    """A command whose list options take space-separated, comma-separated and repeated values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite every list option to one `--name=value` a value, then parse as usual.

        A bad or missing value is a usage error (exit 2) that names the option and the value, except while the
        shell asks for completions: then what is unfinished is left out.
        """
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, _one_value_each(self.get_params(ctx), ctx, list(args)))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Proposals for a further value of a list (`--attentions dense d`), and for the value of a field where the
        shell takes `=` for a word of its own, as bash does (`--set`, `train.schedule`, `=`, `c`)."""
        words = ctx.meta.get(_TYPED, [])
        options = {name: one for one in self.get_params(ctx) if one.param_type_name == "option" for name in one.opts}
        if len(words) >= 3 and words[-1] == "=" and words[-3] in options:
            field = f"{words[-2]}="
            items = options[words[-3]].shell_complete(ctx, field + incomplete)
            for item in items:
                item.value = item.value.removeprefix(field)
            return list(items)
        begun = next((i for i in reversed(range(len(words))) if words[i].startswith("-")), None)
        option = None if begun is None else options.get(words[begun])
        if option is None or not _is_list(option) or incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [item for item in option.shell_complete(ctx, incomplete) if item.value not in words[begun:]]


def _option(name: str, metavar: str, help: str, settings: dict[str, Any]) -> Any:
    # Short names could be glued together with others (-ql 64), which the rewriting does not take apart.
    assert name.startswith("--"), f"a list option needs a long name, not {name}"
    return typer.Option(name, metavar=metavar, help=help, **settings)


def _one_value_each(params: list[Any], ctx: Any, args: list[str]) -> list[str]:
    options = {name: p for p in params if p.param_type_name == "option" for name in p.opts}
    out: list[str] = []
    while args:
        token = args.pop(0)
        if token == "--":
            return [*out, token, *args]
        name, equals, attached = token.partition("=")
        option = options.get(name)
        if option is None or option.is_flag or option.count:
            out.append(token)
        elif not _is_list(option):
            out.append(token)
            if not equals:  # its value is no option, whatever it looks like
                out += args[: option.nargs]
                del args[: option.nargs]
        else:
            taken = [attached] if equals else _take(option, args)
            out += [f"{name}={value}" for value in _values(option, name, taken, ctx)]
    return out


def _is_list(option: Any) -> bool:
    return bool(option.multiple) and str(option.metavar or "").endswith(" ...")


def _take(option: Any, args: list[str]) -> list[str]:
    """Remove from the front of `args` the tokens that belong to a list option and return them."""
    numeric = option.metavar in (_INTEGERS, _NUMBERS)
    taken: list[str] = []
    while args:
        token = args[0]
        if numeric:
            mine = token != "" and all(_NUMBER.fullmatch(piece) for piece in _split(token, numeric))
        else:
            mine = not token.startswith("-")
        if not mine and (taken or token.startswith("-")):
            break
        taken.append(args.pop(0))
    return taken


def _split(token: str, numeric: bool) -> list[str]:
    """Split at commas (numbers also at spaces); one at either end (`64, 128`) means nothing."""
    from dsabench.spec.override import unquoted  # pydantic: not for `--help`

    if not numeric and (inside := unquoted(token)) is not None:
        return [inside]
    token = token.strip().removeprefix(",").removesuffix(",")
    pieces = re.split(r"\s*,\s*|\s+" if numeric else r"\s*,\s*", token.strip())
    values: list[str] = []
    for piece in pieces:
        if values and values[-1].startswith(_SCHEMES) and not piece.startswith(_SCHEMES):
            values[-1] += f",{piece}"
        else:
            values.append(piece)
    return [] if values == [""] else values


def _values(option: Any, name: str, taken: list[str], ctx: Any) -> list[str]:
    numeric = option.metavar in (_INTEGERS, _NUMBERS)
    pieces = [piece for token in taken for piece in _split(token, numeric)]
    if not pieces and not ctx.resilient_parsing:
        ctx.fail(f"Option '{name}' requires a value, or several: {name} {option.metavar}")
    values: list[str] = []
    for piece in pieces:
        try:
            values.append(_canonical(option.metavar, piece))
        except ValueError as error:
            if not ctx.resilient_parsing:
                raise typer.BadParameter(str(error), ctx=ctx, param=option) from None
    return values


def _canonical(metavar: str, piece: str) -> str:
    if not piece:
        raise ValueError("there is nothing between two commas")
    if metavar == _INTEGERS:
        if not re.fullmatch(r"[+-]?\d{1,4000}", piece, re.ASCII):  # Python refuses to read longer ones
            raise ValueError(f"{piece!r} is not an integer; accepted: one or more, as in 64 128 or 64,128")
        return str(int(piece))
    if metavar == _NUMBERS:
        if not _NUMBER.fullmatch(piece) or not math.isfinite(float(piece)):
            raise ValueError(f"{piece!r} is not a finite number; accepted: one or more, as in 0.25 1e-3 or 0.25,1e-3")
        return repr(float(piece))
    return piece
