"""The source `packages`: which files of which distributions it reads, and that it is the same corpus everywhere."""

import json
import random
import sys
import zipfile
from pathlib import Path

import pytest
from fake_site import Site, hashed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.data import prepare, survey
from dsabench.data.sources import packages
from dsabench.data.sources.source import Source, open_source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

PACKAGES = DataSpec(source="packages", tokenizer="bytes")
CODE = "def {0}(value):\n    return value + {0}_offset\n"
FILES = {f"alpha/{name}.py": CODE.format(name) for name in ("first", "second", "third")}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "site")
    made.root.mkdir()
    monkeypatch.syspath_prepend(str(made.root))
    return made


def opened() -> Source:
    return open_source(PACKAGES, lambda message: None)


def refused(match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        survey(PACKAGES)
    assert "\n" not in str(caught.value)


def test_requirements_are_followed_but_for_those_with_a_marker(site: Site) -> None:
    site.install("dsabench", requires=["alpha>=1,<2", "Beta_Two [x] >=2", 'gamma; python_version > "3"'])
    site.install("alpha", FILES, requires=["delta", 'gamma ; extra == "g"'], version="1.2")
    site.install("beta-two", {"beta/one.py": CODE.format("beta")}, requires=["alpha (>=1)"])
    site.install("delta", {"delta.py": CODE.format("delta")})
    site.install("gamma", {"gamma.py": CODE.format("gamma")})
    found = opened()
    assert found.labels == (*sorted(FILES), "beta/one.py", "delta.py")
    assert found.versions == {"alpha": "1.2", "beta-two": "1.0", "delta": "1.0"} == survey(PACKAGES).versions
    assert "5 .py files of 3 distributions" in prepare(PACKAGES).notes


def test_of_this_installation_the_closure_is_what_dsabench_imports() -> None:
    names = set(packages._closure())
    assert {"torch", "scipy", "pandas", "numpy", "matplotlib", "sympy", "python-dateutil"} <= names
    assert "dsabench" not in names


def test_only_recorded_py_files_inside_are_read(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "bin" / "tool.py"
    outside.parent.mkdir()
    outside.write_text(CODE.format("tool"))
    site.install("dsabench", requires=["alpha"])
    others = {"alpha/data.txt": "text", "alpha/__pycache__/first.cpython-311.pyc": b"\0", "alpha/fast.pyi": "x: int"}
    record = [f"../bin/tool.py,{hashed(outside.read_bytes())},", f"{outside},{hashed(outside.read_bytes())},"]
    site.install("alpha", FILES | others, extra_record=record)
    (site.root / "alpha" / "unrecorded.py").write_text(CODE.format("unrecorded"))
    assert opened().labels == tuple(sorted(FILES))


LETTERS = st.text(st.sampled_from("abc_xyz \n"), min_size=30)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.dictionaries(st.sampled_from([f"m{i}" for i in range(8)]), LETTERS, min_size=3),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    cut=st.integers(1, 7),
)
def test_two_machines_with_the_same_versions_have_the_same_corpus(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str], seeds: tuple[int, int], cut: int
) -> None:
    """Whatever the order of the RECORDs, the line ends, and what a build writes."""
    files = {
        f"{'alpha' if i < cut else 'beta'}/{name}.py": f"{name}\n{text}" for i, (name, text) in enumerate(texts.items())
    }
    found = []
    for seed, end in zip(seeds, ("\n", "\r\n"), strict=True):
        made = Site(tmp_path_factory.mktemp("machine"))
        shuffle = random.Random(seed)
        built = dict.fromkeys(("{}/version.py", "{}/__config__.py", "{}/__init__.py"), f"built_on = {seed} {end!r}")
        made.install("dsabench", requires=["beta", "alpha"])
        for name in ("alpha", "beta"):
            mine = {label: text.replace("\n", end).encode() for label, text in files.items() if label.startswith(name)}
            mine |= {label.format(name): text.encode() for label, text in built.items()}
            made.install(name, mine, shuffle=shuffle)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSABENCH_CACHE", str(made.root / "cache"))
            patch.syspath_prepend(str(made.root))
            data = prepare(PACKAGES)
            found.append((data.fingerprint, bytes(data.train.tokens), list(data.train.names)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("label", "content", "rule"),
    [
        ("torch/version.py", CODE, "build"),
        ("PIL/_version.py", CODE, "build"),
        ("pandas/_version_meson.py", CODE, "build"),
        ("pyarrow/_generated_version.py", CODE, "build"),
        ("contourpy/util/_build_config.py", CODE, "build"),
        ("numpy/__config__.py", CODE, "build"),
        ("numpy/__init__.py", CODE, "build"),
        ("numpy/distutils/ccompiler.py", CODE, "build"),
        ("idna/table.py", "codepoints = " + ", ".join(map(str, range(500))), "table"),
        ("torch/testing/generated/args.py", CODE, "generated"),
        ("lexer.py", "\n# This file is auto-generated by a script\n" + CODE, "generated"),
        ("lexer.py", 19 * "\n" + "# DO NOT EDIT\n" + CODE, "generated"),
        ("latin.py", b"# -*- coding: latin-1 -*-\nname = 'Andr\xe9'\n", "not UTF-8"),
        ("null.py", b"name = 'a\0b'\n", "not UTF-8"),
        ("numpy/linalg/__init__.py", CODE, ""),
        ("conversion.py", CODE, ""),
        ("setuptools/_distutils/cmd.py", CODE, ""),
        ("words.py", 'x = "generated tables are left out"\n' + CODE, ""),
        ("late.py", 20 * "\n" + "# DO NOT EDIT\n" + CODE, ""),
        ("short.py", "a1", ""),
        ("accents.py", "'\u00e9\u00e9\u00e9\u00e9\u00e9' # letters of ASCII alone count here\n", ""),
    ],
)
def test_each_rule_leaves_out_what_it_says(site: Site, label: str, content: str | bytes, rule: str) -> None:
    site.install("dsabench", requires=["alpha"])
    site.install("alpha", FILES | {label: content})
    for _ in range(2):  # the second time from the cache
        found = opened()
        assert (label in found.labels) is not bool(rule)
        told = [note for note in found.notes if note.startswith("left out: 1 of 4 files, ")]
        assert told == ([f"left out: 1 of 4 files, {packages.RULES[rule]}"] if rule else [])


def test_duplicates_and_empty_files_are_dropped_and_counted(site: Site) -> None:
    site.install("dsabench", requires=["alpha"])
    site.install(
        "alpha", FILES | {"alpha/again.py": FILES["alpha/first.py"].replace("\n", "\r\n"), "alpha/none.py": ""}
    )
    notes = prepare(PACKAGES).notes
    assert "1 exact duplicate of other documents skipped" in notes and "1 empty document skipped" in notes


def test_what_cannot_be_trusted_is_refused_in_one_line(site: Site) -> None:
    site.install("dsabench", requires=["alpha"])
    refused(r"needs the distribution alpha \(dsabench depends on it\), which is not installed; .* pip install alpha")
    info = site.install("alpha", FILES, version="1.2")
    survey(PACKAGES)
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///alpha", "dir_info": {"editable": True}}))
    refused("alpha==1.2 is an editable install; install it from a wheel: pip install alpha==1.2")
    (info / "direct_url.json").write_text("{")
    survey(PACKAGES)
    (site.root / "alpha" / "second.py").write_text(CODE.format("changed"))
    refused(
        r"second.py: its SHA-256 is .*: the file was changed; .* pip install --force-reinstall --no-deps alpha==1.2"
    )
    (site.root / "alpha" / "second.py").unlink()
    refused("second.py: cannot be read: No such file or directory")
    (info / "RECORD").write_text("alpha/first.py,,\n")
    refused("RECORD of alpha==1.2 gives no SHA-256 of alpha/first.py; mend it with")
    (info / "RECORD").unlink()
    refused("alpha==1.2 has no RECORD")


def test_a_wheel_that_is_no_folder_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("dsabench", requires=["alpha"])
    elsewhere = Site(tmp_path / "built")
    elsewhere.root.mkdir()
    elsewhere.install("alpha", FILES)
    packed = tmp_path / "alpha-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(elsewhere.root.rglob("*")):
            archive.write(path, path.relative_to(elsewhere.root))
    monkeypatch.syspath_prepend(str(packed))
    refused("cannot be read: Not a directory")


def test_without_the_metadata_of_dsabench_it_is_said_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    refused("needs the distribution dsabench")


def test_a_damaged_list_of_what_is_left_out_is_made_anew(site: Site, cache: Path) -> None:
    site.install("dsabench", requires=["alpha"])
    site.install("alpha", FILES | {"table.py": "1, 2, 3"})
    before = opened().labels
    [file] = (cache / "packages").iterdir()
    for damaged in (b"", b"{}", file.read_bytes().replace(b"table.py", b"other.py"), b"\xff"):
        file.write_bytes(damaged)
        assert opened().labels == before
