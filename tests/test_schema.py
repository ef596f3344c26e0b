"""The schema of what is read back: types, ranges, sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.schema import (
    Invalid,
    Listing,
    Maybe,
    Object,
    Real,
    Schema,
    Text,
    Tree,
    Whole,
    read_json,
)
from netdsl.train.metrics import Record
from tests.forged import ODD, Raw

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def is_valid(schema: Schema, value: Any) -> bool:
    try:
        schema.check(value, "it")
    except Invalid:
        return False
    return True


@given(JSON)
def test_each_schema_takes_its_own_values(value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int)
    assert is_valid(Whole(-5, 5), value) == (is_whole and -5 <= value <= 5)
    assert is_valid(Real(), value) == (is_number and abs(value) <= 1e300)
    assert is_valid(Text(9), value) == isinstance(value, str)
    assert is_valid(Maybe(Text(9)), value) == (value is None or isinstance(value, str))
    assert is_valid(Listing(Tree(9), 4), value) == (
        isinstance(value, list) and all(is_valid(Tree(9), one) for one in value)
    )
    assert is_valid(Object(), value) == isinstance(value, dict)
    assert not is_valid(Object({"missing entry": Tree(9)}), value)


@given(JSON)
def test_json_is_read_as_json(value: Any) -> None:
    text = json.dumps(value)
    if "NaN" in text or "Infinity" in text:
        with pytest.raises(Invalid, match="no number of JSON"):
            read_json(text)
        read_json(text, nan_is_null=True)
    else:
        assert read_json(text) == read_json(text.encode()) == value


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, '{"a":' * 9999, "9" * 5000, b"\xff", "[" + "1," * 4_000_001]
)
def test_what_is_no_json_of_ours_is_refused(text: str | bytes) -> None:
    with pytest.raises(Invalid):
        read_json(text)


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:20])
@pytest.mark.parametrize("key", ["epoch", "step", "watched_at", "train_loss"])
def test_odd_lines_of_metrics_cost_themselves_alone(tmp_path: Path, key: str, value: Any) -> None:
    path, good = tmp_path / "metrics.jsonl", [{"epoch": i, "step": 4 * i} for i in (1, 2, 3)]
    lines = [json.dumps(x) for x in good]
    odd = value.text if isinstance(value, Raw) else json.dumps(value)
    lines[1] = '{"epoch": 2, "step": 8}'.replace("}", f', "{key}": {odd}}}')
    path.write_text("\n".join(lines) + "\n")
    history = [{**x, "made": "up"} for x in good]
    found = Record.kept(path, 3, history)
    assert found.count == 3
    written = [json.loads(x) for x in path.read_text().splitlines()]
    assert good[0] in written
    assert good[2] in written
    assert all(math.isfinite(x["step"]) for x in written if x["step"] is not None)
