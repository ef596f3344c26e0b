"""The schema of what is read back: types, ranges, sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.json_schema import (
    MAX_JSON_VALUES,
    JsonArray,
    JsonInteger,
    JsonNumber,
    JsonObject,
    JsonString,
    JsonValue,
    Nullable,
    Schema,
    SchemaError,
    read_json,
)
from netdsl.limits import MAX_EPOCHS, MAX_TOKENS
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import MAX_HEADER, Checkpoint
from netdsl.training.store.metrics_log import MetricsLog
from netdsl.training.store.progress import Progress
from tests.conftest import ROOT
from tests.forged_checkpoints import ODD_VALUES, RawJson

DIGITS = ROOT / "models" / "digits.net"
NET = """
net small { input(8x8x1); fc(10) }
data { source = digits, batch = 256 }
train { epochs = 1 }
"""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def is_valid(schema: Schema, value: Any) -> bool:
    try:
        schema.check(value, "it")
    except SchemaError:
        return False
    return True


@given(JSON)
def test_each_schema_takes_its_own_values(value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int)
    assert is_valid(JsonInteger(-5, 5), value) == (is_whole and -5 <= value <= 5)
    assert is_valid(JsonNumber(), value) == (is_number and abs(value) <= 1e300)
    assert is_valid(JsonString(9), value) == isinstance(value, str)
    assert is_valid(Nullable(JsonString(9)), value) == (value is None or isinstance(value, str))
    assert is_valid(JsonArray(JsonValue(9), 4), value) == (
        isinstance(value, list) and all(is_valid(JsonValue(9), one) for one in value)
    )
    assert is_valid(JsonObject(), value) == isinstance(value, dict)
    assert not is_valid(JsonObject({"missing entry": JsonValue(9)}), value)


@given(JSON)
def test_json_is_read_as_json(value: Any) -> None:
    text = json.dumps(value)
    if "NaN" in text or "Infinity" in text:
        with pytest.raises(SchemaError, match="not a JSON number"):
            read_json(text)
        read_json(text, is_nan_null=True)
    else:
        assert read_json(text) == read_json(text.encode()) == value


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, '{"a":' * 9999, "9" * 5000, b"\xff", "[" + "1," * 4_000_001]
)
def test_what_is_no_json_of_ours_is_refused(text: str | bytes) -> None:
    with pytest.raises(SchemaError):
        read_json(text)


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda v: ascii(v)[:20])
@pytest.mark.parametrize("key", ["epoch", "step", "watched_at", "train_loss"])
def test_odd_lines_of_metrics_cost_themselves_alone(tmp_path: Path, key: str, value: Any) -> None:
    path, good = tmp_path / "metrics.jsonl", [{"epoch": i, "step": 4 * i} for i in (1, 2, 3)]
    lines = [json.dumps(x) for x in good]
    odd = value.text if isinstance(value, RawJson) else json.dumps(value)
    lines[1] = '{"epoch": 2, "step": 8}'.replace("}", f', "{key}": {odd}}}')
    path.write_text("\n".join(lines) + "\n")
    history = [{**x, "made": "up"} for x in good]
    found = MetricsLog.restore(path, 3, history)
    assert found.count == 3
    written = [json.loads(x) for x in path.read_text().splitlines()]
    assert good[0] in written
    assert good[2] in written
    assert all(math.isfinite(x["step"]) for x in written if x["step"] is not None)


# ---- what is written is read back


def long_run(epochs: int, classes: int) -> Checkpoint:
    """A checkpoint of a run, with all that an epoch may measure and long names of classes."""
    record = {
        "train_loss": 0.12345678901234567,
        "train_accuracy": 0.9876543210987654,
        "val_loss": 0.22345678901234567,
        "val_accuracy": 0.9123456789012345,
        "lr": 1.2345678901234567e-05,
        "scale": 65536.0,
        "skipped": 123_456,
    }
    history = tuple({"epoch": i, "step": 10_000 * i, **record} for i in range(1, epochs + 1))
    s = Progress(epochs, step=10_000 * epochs, update=10_000 * epochs, history=history)
    names = tuple(f"{i} {'ключ' * 20}" for i in range(classes))
    progress = {**s.as_json(), "data": "0" * 64, "pipeline": {"order": 1}}
    return Checkpoint({"w": np.zeros(3, np.float32)}, "net a { input(3) }", names, record, progress)


def header(path: Path) -> str:
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()


def test_a_long_run_with_many_classes_is_read_back(tmp_path: Path) -> None:
    path, saved = tmp_path / "x.safetensors", long_run(10_000, 1_000)
    checkpoint.save(path, saved)
    found = checkpoint.load(path)
    assert found.classes == saved.classes
    assert Progress.from_json(found.progress) == Progress.from_json(saved.progress)


def test_the_longest_run_is_within_the_limits(tmp_path: Path) -> None:
    texts = []
    for epochs in (1_000, 2_000):
        checkpoint.save(tmp_path / "x.safetensors", long_run(epochs, 1_000))
        texts.append(header(tmp_path / "x.safetensors"))
    signs = [sum(map(text.count, ",:[{")) for text in texts]
    thousands = MAX_EPOCHS // 1000
    assert len(texts[0]) + thousands * (len(texts[1]) - len(texts[0])) < MAX_HEADER
    assert signs[0] + thousands * (signs[1] - signs[0]) < MAX_JSON_VALUES


@given(
    st.sampled_from(["metrics", "progress", "history"]),
    st.sampled_from(["epoch", "val_accuracy", "lines", "changes", "data", "pipeline", "other"]),
    JSON | st.sampled_from([o for o in ODD_VALUES if not isinstance(o, RawJson)]),
)
@example("progress", "other", math.nan)
@example("metrics", "other", [[["three", "deep"]]])
@example("history", "other", "long" * 300)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, where: str, key: str, value: Any
) -> None:
    """Or refused, and then what was there stays."""
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    sound = long_run(2, 2)
    checkpoint.save(path, sound)
    before = path.read_bytes()
    metrics, progress = dict(sound.metrics), dict(sound.progress)
    history = [dict(m) for m in progress["history"]]
    {"metrics": metrics, "progress": progress, "history": history[0]}[where][key] = value
    if where == "history":
        progress["history"] = tuple(history)
    odd = Checkpoint(sound.states, sound.net_text, sound.classes, metrics, progress)
    try:
        checkpoint.save(path, odd)
    except NetError:
        assert path.read_bytes() == before
    checkpoint.load(path)


@pytest.mark.parametrize(("epochs", "code"), [(MAX_EPOCHS, 0), (MAX_EPOCHS + 1, 2)])
def test_no_run_is_longer_than_its_record_may_be(netdsl: Any, epochs: int, code: int) -> None:
    setting = f"train.epochs={epochs}"
    assert netdsl("train", str(DIGITS), "--dry-run", "--set", setting)[0] == code


def test_files_that_are_too_long_as_one_text_are_refused_at_once(
    netdsl: Any, tmp_path: Path
) -> None:
    """Each may be read alone; the text of a run has all of them in it."""
    line = "block %s%d { conv(4, 3x3, pad=same) -> relu -> conv(4, 3x3, pad=same) }\n"
    count = MAX_TOKENS // 50
    for name in "ab":
        (tmp_path / f"{name}.net").write_text("".join(line % (name, i) for i in range(count)))
    small = NET.replace("input(8x8x1)", "input(8x8x1) -> a0 -> b0")
    (tmp_path / "main.net").write_text(f'use "a.net"\nuse "b.net"\n{small}')
    for command in (("check",), ("train", "--out", "run", "--device", "reference")):
        code, _, err = netdsl(*command, "main.net")
        assert code == 2
        assert f"{MAX_TOKENS:,} tokens" in err
    assert not (tmp_path / "run").exists()
