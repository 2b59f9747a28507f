"""List options: every way of writing a list says the same, and nothing else on the line is touched."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dsabench.cli.list_options import ListCommand, integers, numbers, texts

app = typer.Typer()


@app.command(cls=ListCommand)
def sweep(
    runs: Annotated[list[str] | None, typer.Argument()] = None,
    lengths: Annotated[list[int] | None, integers("--lengths", "Sequence lengths.")] = None,
    rates: Annotated[list[float] | None, numbers("--rates", "Learning rates.")] = None,
    attentions: Annotated[
        list[str] | None, texts("--attentions", "Variants.", "KIND", autocompletion=lambda: ["dense", "dsa"])
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", "-s", help="Set one field.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
    store: Annotated[str, typer.Option("--store")] = "runs",
) -> None:
    given = {
        "runs": runs or [],
        "lengths": lengths or [],
        "rates": rates or [],
        "attentions": attentions or [],
        "set": overrides or [],
    }
    typer.echo(json.dumps({**given, "quiet": quiet, "store": store}))


@app.command()
def other() -> None:
    """A second command, so that `sweep` is a subcommand as it is in dsabench."""


def parse(*args: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["sweep", *args])
    assert result.exit_code == 0, (args, result.output)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def refuse(*args: str) -> str:
    """The message of a usage error as one line without the frame that Rich may draw around it."""
    result = CliRunner().invoke(app, ["sweep", *args], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 2, (args, result.output)
    assert "Traceback" not in result.output
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[^\x20-\x7e]", " ", result.output).split())


@st.composite
def written(draw: st.DrawFn, elements: st.SearchStrategy[str]) -> tuple[list[str], list[str]]:
    """Values, and one of the many ways to write them: split into groups, each joined by commas or spaces."""
    values = draw(st.lists(elements, min_size=1, max_size=8))
    args: list[str] = []
    rest = values
    while rest:
        size = draw(st.integers(1, len(rest)))
        group, rest = rest[:size], rest[size:]
        joined = draw(st.sampled_from([",", ", "])).join(group)
        form = draw(st.sampled_from(["spaces", "commas", "equals", "go on", "trailing"]))
        if form == "go on" and args and not args[-1].startswith("--"):
            args += group
        elif form == "commas":
            args += ["--OPTION", joined]
        elif form == "equals":
            args.append(f"--OPTION={joined}")
        elif form == "trailing":
            args += ["--OPTION", *(f"{value}," for value in group[:-1]), group[-1]]
        else:
            args += ["--OPTION", *group]
    return values, args


@settings(deadline=None, max_examples=60)
@given(written(st.integers(-(10**20), 10**20).map(str)), st.lists(st.sampled_from(["RUN", "a,b", "dsa-L64"])))
def test_integers_in_any_form_parse_back_to_themselves(case: tuple[list[str], list[str]], runs: list[str]) -> None:
    values, args = case
    parsed = parse("-q", *(arg.replace("--OPTION", "--lengths") for arg in args), *runs, "--store", "here")
    assert parsed["lengths"] == [int(value) for value in values]
    assert (parsed["runs"], parsed["quiet"], parsed["store"]) == (runs, True, "here")


@settings(deadline=None, max_examples=40)
@given(written(st.floats(allow_nan=False, allow_infinity=False).map(repr)))
def test_numbers_in_any_form_parse_back_to_themselves(case: tuple[list[str], list[str]]) -> None:
    values, args = case
    parsed = parse("RUN", *(arg.replace("--OPTION", "--rates") for arg in args))
    assert (parsed["rates"], parsed["runs"]) == ([float(value) for value in values], ["RUN"])


@settings(deadline=None, max_examples=40)
@given(written(st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)), st.booleans())
def test_texts_in_any_form_parse_back_to_themselves(case: tuple[list[str], list[str]], positional: bool) -> None:
    values, args = case
    after = ["--", "RUN", "--lengths"] if positional else ["--quiet"]
    parsed = parse(*(arg.replace("--OPTION", "--attentions") for arg in args), *after)
    assert (parsed["attentions"], parsed["runs"]) == (values, after[1:] if positional else [])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), max_size=4))
def test_a_repeatable_option_takes_one_value_each_and_keeps_it_whole(values: list[str]) -> None:
    args = [part for value in values for part in ("--set", value)]
    parsed = parse(*args, "--lengths", "1", "RUN", *(f"-s{value}" for value in values))
    assert (parsed["set"], parsed["lengths"], parsed["runs"]) == (values * 2, [1], ["RUN"])


def test_only_numbers_are_taken_so_that_a_positional_may_follow() -> None:
    parsed = parse("--lengths", "0", "1", "dsa-L64-s42", "3")
    assert (parsed["lengths"], parsed["runs"]) == ([0, 1], ["dsa-L64-s42", "3"])
    assert parse("--rates", "-1e-3", ".5", "2.", "nan")["runs"] == ["nan"]


def test_after_a_double_dash_nothing_is_rewritten() -> None:
    assert parse("--lengths", "1", "--", "2", "--lengths", "3,4")["runs"] == ["2", "--lengths", "3,4"]


@pytest.mark.parametrize("value", ["--lengths", "--lengths=3,4", "plugins=[a.py,b.py]", "axes.seed=[1,2]"])
def test_a_value_of_another_option_is_never_a_list_option(value: str) -> None:
    parsed = parse("--set", value, "5", "--store", value)
    assert (parsed["set"], parsed["store"], parsed["runs"], parsed["lengths"]) == ([value], value, ["5"], [])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_word_wholly_in_quotes_is_taken_to_the_letter(values: list[str]) -> None:
    quoted = ["'" + value.replace("'", "''") + "'" for value in values]
    assert parse("--attentions", *quoted, "--quiet")["attentions"] == values
    assert parse(*(f"--attentions={value}" for value in quoted))["attentions"] == values


def test_a_value_with_a_scheme_keeps_its_commas() -> None:
    parsed = parse("--attentions", "sotu,hf:wikitext,raw:train", "path:a,b.txt,path:c.txt", "stdlib")
    assert parsed["attentions"] == ["sotu", "hf:wikitext,raw:train", "path:a,b.txt", "path:c.txt", "stdlib"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lengths", "abc"], ["--lengths", "'abc'", "integer"]),
        (["--lengths", "64,1.5"], ["--lengths", "'1.5'", "integer"]),
        (["--lengths", "64", "1e3"], ["--lengths", "'1e3'", "integer"]),
        (["--lengths=6 4 x"], ["--lengths", "'x'"]),
        (["--lengths", "64,,128"], ["--lengths", "between two commas"]),
        (["--lengths", "9" * 5000], ["--lengths", "integer"]),
        (["--rates", "nan"], ["--rates", "'nan'", "finite"]),
        (["--rates", "1e999"], ["--rates", "'1e999'", "finite"]),
        (["--attentions", "dense,,dsa"], ["--attentions", "between two commas"]),
    ],
)
def test_a_bad_element_is_named_with_its_option(args: list[str], words: list[str]) -> None:
    message = refuse(*args)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("option", ["--lengths", "--rates", "--attentions"])
@pytest.mark.parametrize("after", [[], ["--quiet"], ["--"], [""], [","]])
def test_an_option_without_a_value_says_so(option: str, after: list[str]) -> None:
    assert f"Option '{option}' requires a value" in refuse(option, *after)


def test_the_help_shows_that_several_values_are_taken() -> None:
    text = CliRunner().invoke(app, ["sweep", "--help"], env={"COLUMNS": "120"}).stdout
    for option, metavar in (("--lengths", "N ..."), ("--rates", "X ..."), ("--attentions", "KIND ...")):
        assert re.search(rf"{option}\s+{re.escape(metavar)}", text), text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sweep --lengths 64 128 --qu", "--quiet"),
        ("sweep --lengths 64,x --qu", "--quiet"),
        ("sweep --lengths --qu", None),
        ("sweep --lengths 64 --attentions ds", "dsa"),
    ],
)
def test_shell_completion_goes_on_working_on_a_half_written_line(line: str, expected: str | None) -> None:
    words = f"dsabench {line}"
    env = {
        "_DSABENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], env=env, prog_name="dsabench")
    assert result.exit_code == 0, result.output
    assert "Error" not in result.output
    if expected:
        assert expected in result.stdout.split()
