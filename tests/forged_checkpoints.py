"""Checkpoints with one forged part and a valid checksum: what an attacker could provide."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.types import dims

KeyPath = tuple[str | int, ...]
DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "F64": np.float64,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass
class CheckpointParts:
    """A checkpoint in parts: its metadata, and its weights by name."""

    about: dict[str, Any]
    states: dict[str, Any]

    @staticmethod
    def of(content: bytes) -> CheckpointParts:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        about = json.loads(json.loads(header.pop("__metadata__")["netdsl"])["about"])
        data, states = content[8 + length :], {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            states[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])
        return CheckpointParts(about, states)

    def whole(self, seal: Callable[[dict[str, Any]], Any] = lambda sealed: sealed) -> bytes:
        """The file, with a valid checksum."""
        text = json.dumps(self.about, sort_keys=True)
        sealed = seal({"about": text, "sha256": self._digest(text)})
        header: dict[str, Any] = {"__metadata__": {"netdsl": json.dumps(sealed)}}
        data = b""
        codes = {np.dtype(t): code for code, t in DTYPES.items()}
        for name, array in self.states.items():
            end = len(data) + array.nbytes
            entry = {"shape": array.shape, "data_offsets": (len(data), end)}
            header[name] = {"dtype": codes[array.dtype], **entry}
            data += array.tobytes()
        return frame_safetensors(header, data)

    def _digest(self, text: str) -> str:
        digest = hashlib.sha256(text.encode())
        for name in sorted(self.states):
            array = self.states[name]
            digest.update(f"{name} {array.dtype} {dims(array.shape)}".encode("utf-8", "replace"))
            digest.update(array.tobytes())
        return digest.hexdigest()


def rewrite_progress(path: KeyPath, **progress: Any) -> None:
    """Rewrites a checkpoint with other progress, which `checkpoint.save` would refuse."""
    parts = CheckpointParts.of(path.read_bytes())
    parts.about["progress"] |= progress
    path.write_bytes(parts.whole())


def frame_safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


class RawJson:
    """JSON that `json.dumps` would not write, such as extreme nesting."""

    def __init__(self, text: str) -> None:
        self.text = text


ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**30),
    0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", "x", "1", "../../etc/passwd", "/dev/zero", "x" * 2_000_000, "\x1b[2J\x1b]0;x\x07", "\r",
    "\u202e", "[red]x[/]", "a\nb", "\ud800", "\0",
    [], [[]], [None], ["x"], [1, 2, 3], list(range(100_000)), {}, {"a": 1}, {"": {}},
    RawJson("[" * 900 + "]" * 900), RawJson("[" * 100_000 + "]" * 100_000),
    RawJson('{"a":' * 700 + "1" + "}" * 700),
    RawJson("9" * 5000), RawJson("1e999"), RawJson("-" + "9" * 4000),
]  # fmt: skip
HOSTILE_NETS = [
    'use "/dev/zero"\n', 'use "/dev/stdin"\n', 'use "/etc/passwd"\n', 'use "blocks.net"\n',
    "\x1b[2J", "\0", "net b {", "net a = a\n", "net b = a\nnet a = b\n", "test a { params == 1 }\n",
    "train x { after = x }\n", "expect", "train { epochs = 0 }\n", "use " * 20_000, "((" * 30_000,
]  # fmt: skip
NET_EDITS = [
    ("epochs = 2", "epochs = 1000000000"),
    ("epochs = 2", 'epochs = "two"'),
    ("epochs = 2", "epochs = 3"),
    ("fc(10)", "fc(11)"),
    ("fc(10)", "fc(1_000_000_000)"),
    ("fc(10)", "relu"),
    ("fc(10)", "fc(10) -> nothing"),
    ("8x8x1", "8x8x3"),
    ("8x8x1", "65536x65536x1"),
    ("8x8x1", "0x8x1"),
    ("batch = 200", "batch = 100000000000"),
    ("batch = 200", "batch = 1"),
    ("source = digits", 'source = folder("/proc")'),
    ("source = digits", 'source = arrays("/dev/zero")'),
    ("source = digits", "source = mnist"),
    ("adam(", "sgd("),
    ("lr=0.001", "lr=-1"),
    ("net a", "net b"),
    ("init = none", 'init = weights("/dev/zero")'),
    ("seed = 1", "seed = 2"),
    ("validation = ", "validation = 0.5 #"),
    ("input", "output"),
    ("{", ""),
    ("patience = none", "patience = 1"),
    ("best = none", 'best = max(val_recall("8"))'),
    ("accumulate = 1", "accumulate = 60000"),
]


def pick_key_path(value: Any, rng: random.Random) -> KeyPath:
    """A random path in a checkpoint's metadata: descends a few levels, choosing branches
    uniformly."""
    at: KeyPath = ()
    while isinstance(value, dict | list) and value and (not at or rng.random() < 0.8):
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        at, value = (*at, key), value[key]
    return at


def get_at(value: Any, at: KeyPath) -> Any:
    for key in at:
        value = value[key]
    return value


def forge(parts: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """Forges one part; returns a description and the file."""
    made = CheckpointParts(deepcopy(parts.about), dict(parts.states))
    how = rng.choice(
        (
            _forge_value,
            _forge_value,
            _forge_value,
            _forge_number,
            _forge_entry,
            _forge_net,
            _forge_weights,
            _forge_header,
            _forge_seal,
        )
    )
    return how(made, rng)


def _forge_value(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """An odd value at a random path."""
    return _replace_at(made, pick_key_path(made.about, rng), rng.choice(ODD_VALUES))


def _replace_at(made: CheckpointParts, at: KeyPath, value: Any) -> tuple[str, bytes]:
    holder = get_at(made.about, at[:-1])
    mark = "a place for raw text"
    holder[at[-1]] = mark if isinstance(value, RawJson) else value
    what = f"{at} = {value.text[:20] if isinstance(value, RawJson) else repr(value)[:40]}"
    if not isinstance(value, RawJson):
        return what, made.whole()
    text = json.dumps(made.about, sort_keys=True).replace(f'"{mark}"', value.text)
    sealed = json.dumps({"about": text, "sha256": made._digest(text)})
    whole = made.whole()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"]["netdsl"] = sealed
    return what, frame_safetensors(header, whole[8 + length :])


def _forge_number(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """A wrong number."""
    at = pick_key_path(made.about, rng)
    while not isinstance(value := get_at(made.about, at), int | float):
        at = pick_key_path(made.about, rng)
    off = rng.choice((value + 1, value - 1, -value, value * 1000 + 7, value + 0.5, str(value), []))
    return _replace_at(made, at, off)


def _forge_entry(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """An entry that is removed, duplicated or swapped with another."""
    path = pick_key_path(made.about, rng)
    holder, key = get_at(made.about, path[:-1]), path[-1]
    way = rng.randrange(3)
    if way == 0:
        del holder[key]
    elif isinstance(holder, list):
        holder.extend(deepcopy(holder if way == 1 else [made.about["progress"]]))
    else:
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    return f"{path} changed in way {way}", made.whole()


def _forge_net(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """A modified net."""
    text = made.about["net"]
    if rng.random() < 0.5:
        old, new = rng.choice(NET_EDITS)
        made.about["net"] = text.replace(old, new)
        return f"net: {old} -> {new}", made.whole()
    more, at = rng.choice(HOSTILE_NETS), rng.choice((0, len(text), rng.randrange(len(text))))
    made.about["net"] = text[:at] + more + text[at:]
    return f"net: {more[:30]!r} at {at}", made.whole()


def _forge_weights(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(list(made.states))
    array = made.states[name]
    way = rng.choice(("type", "shape", "gone", "name", "more", "values", "big", "many"))
    match way:
        case "type":
            code = rng.choice([c for c in DTYPES if c != "F32"])
            made.states[name] = array.astype(DTYPES[code])
            way = f"type {code}"
        case "shape":
            shapes = (array.shape[::-1], (1, *array.shape), (array.size,), (1,) * 12 + array.shape)
            made.states[name] = array.reshape(rng.choice(shapes))
        case "gone":
            del made.states[name]
        case "name":
            odd = (
                "",
                "x" * 100_000,
                "\x1b[2J",
                "__metadata__ ",
                "a/../b",
                name.upper(),
                "[red]x[/]",
            )
            made.states[rng.choice(odd)] = made.states.pop(name)
        case "more":
            made.states[f"{name}.more"] = array
        case "values":
            odd_values = np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45], np.float32)
            made.states[name] = np.full_like(array, rng.choice(list(odd_values)))
        case "big":
            made.states[name] = np.zeros((rng.choice((10_000_000, 0)),), np.float32)
        case _:
            made.states |= {f"x{i}": np.zeros(0, np.float32) for i in range(20_000)}
    return f"weights: {way} of {name}", made.whole()


def _forge_header(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    """The header, which no checksum covers."""
    whole = made.whole()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = rng.choice([n for n in header if n != "__metadata__"])
    way = rng.randrange(9)
    if way == 0:
        return "header: length", frame_safetensors(
            header, data, rng.choice((0, 1, 2**62, 2**63, 10**9, 10**6))
        )
    if way == 1:
        dicts = [b"[%b{}]" % (b"{}," * n) for n in (1_900_000, 10**7)]
        bombs = (b"[" * 10**6, b'{"a":' * 10**6, b'"%b"' % bytes(10**8), *dicts)
        return "header: bomb", frame_safetensors(rng.choice(bombs), data)
    if way == 2:
        other = rng.choice((b"", b"[]", b"null", b"\xff\xfe", b"{}", b"1" * 9999))
        return "header: other", frame_safetensors(other, data)
    if way == 3:
        header[name]["data_offsets"] = rng.choice(
            ([0, 0], [0, 2**62], [-4, 0], [8, 0], [0], "0", [0, 4, 8], [None, 1], [0.0, 4.0], {})
        )
    elif way == 4:
        header[name]["shape"] = rng.choice(
            ([-1, -1], [2**31, 2**31], [2**63], "x", None, [[1]], [1.5], [True], [0], [1] * 70, {})
        )
    elif way == 5:
        odd = ("I32", "F64", "F8_E4M3", "BF16", "", "object", 5, None, [])
        header[name]["dtype"] = rng.choice(odd)
    elif way == 6:
        del header[name][rng.choice(list(header[name]))]
    elif way == 7:
        header["__metadata__"] = rng.choice((None, [], "x", {}, {"netdsl": 5}, {"netdsl": None}, 7))
    else:
        header[name] = rng.choice(ODD_VALUES[:40])
    return f"header: way {way}", frame_safetensors(header, data)


def _forge_seal(made: CheckpointParts, rng: random.Random) -> tuple[str, bytes]:
    odd = rng.choice(ODD_VALUES[:40])
    key = rng.choice(("about", "sha256"))
    ways: list[Callable[[dict[str, Any]], Any]] = [
        lambda sealed: sealed | {key: odd},
        lambda sealed: odd,
        lambda sealed: {key: sealed[key]},
        lambda sealed: [sealed],
        lambda sealed: sealed | {"about": json.dumps(odd), "sha256": made._digest(json.dumps(odd))},
    ]
    at = rng.randrange(len(ways))
    return f"seal: way {at}, {key}, {odd!r:.20}", made.whole(ways[at])
