"""Lines of a metrics file read at once: what they say one by one, and damage is named by its line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.store.reader import parse_metrics

values = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=4), st.lists(st.floats(), max_size=3))
names = st.text('abc: [,\\"', min_size=1, max_size=4).map("x{}".format)
metrics = st.dictionaries(names, values | st.lists(values, max_size=2), max_size=3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**53), metrics), max_size=4),
    st.sampled_from(["", "{", '"x"', '{"kind": 1}', "1,2"]),
)
def test_lines_read_at_once_say_what_they_say_one_by_one(tmp_path_factory, records, damage):
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    lines = [json.dumps({"kind": "eval", "step": step, **more}) for step, more in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    whole, short = parse_metrics(path), parse_metrics(path, lists=False)
    assert short[1] == whole[1]
    assert repr(short[0][-1:]) == repr(whole[0][-1:])

    def rest(record):
        return {name: value for name, value in record.items() if not isinstance(value, list)}

    assert repr([*map(rest, short[0])]) == repr([*map(rest, whole[0])])
    path.write_text("".join(f"{line}\n" for line in [*lines, damage, *lines]))
    for lists in (True, False):
        with pytest.raises(StoreError, match=f"line {len(lines) + 1}: damaged"):
            parse_metrics(path, lists=lists)
