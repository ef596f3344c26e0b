"""Fuzzes data sets: `python -m tests.fuzz_data KIND FIRST COUNT`.

Damaged or hostile data sets, read as a run reads them, must yield a data set or an error message,
in bounded time and memory.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import stat
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from netdsl.data import sources
from netdsl.data.augment import bind_augmentation
from netdsl.data.inventory import make_inventory
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Dataset, evaluation_batches, split, training_batches
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.signature import BoundCall
from netdsl.values import Size

MAX_SECONDS, MAX_MESSAGE_LENGTH = 5.0, 20_000
"""CPU seconds that a case may take, and the maximum length of its error message."""
Random = random.Random


# ---- reading a data set as a run does


def consume_dataset(dataset: Dataset, prepare: Preprocessing, rng: Random) -> None:
    """Uses a data set as a run does, without the net."""
    assert dataset.fingerprint
    train, validation = dataset.train, dataset.validation
    if validation is None:
        train, validation = split(dataset.train, rng.choice([0, 0.1, 0.5]), 1)
    for line in make_inventory("fuzz", dataset, train, validation).lines():
        assert line.isprintable(), line
    batches = training_batches(train, max(1, min(4, len(train))), 1, 0, augment=prepare)
    parts = [validation, *([dataset.read_test()] if dataset.read_test else [])]
    shapes = {b.images.shape[1:] for b in batches}
    for part in parts:
        shapes |= {b.images.shape[1:] for b in evaluation_batches(part, 4, prepare)}
    assert len(shapes) <= 1


def read_npz(place: Path, rng: Random) -> None:
    (path,) = place.iterdir()
    consume_dataset(
        sources.load(BoundCall("arrays", SOURCES["arrays"], {"path": str(path)}), None), PLAIN, rng
    )


def read_idx(place: Path, rng: Random) -> None:
    consume_dataset(
        sources.load(BoundCall("mnist", SOURCES["mnist"], {"path": None}), str(place)), PLAIN, rng
    )


def read_folder(place: Path, rng: Random) -> None:
    path = {"path": str(place)}
    changes = rng.choice(
        [
            (),
            (bind_augmentation("resize", size=20), bind_augmentation("center_crop")),
            (bind_augmentation("resize", size=256),),
            (bind_augmentation("random_resized_crop"), bind_augmentation("hflip")),
            (bind_augmentation("scale_jitter", sides=(16, 300)), bind_augmentation("random_crop")),
            (bind_augmentation("resize", size=Size((1, 900))),),
        ]
    )
    prepare = Preprocessing(changes, (16, 16, rng.choice([1, 3, 4])))
    skip_bad = rng.random() < 0.7
    consume_dataset(
        sources.load(BoundCall("folder", SOURCES["folder"], path), None, skip_bad), prepare, rng
    )


PLAIN = Preprocessing()


# ---- bytes


def damage(content: bytes, rng: Random) -> bytes:
    """Overwrites, deletes, duplicates or truncates some bytes."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        a = rng.randrange(len(found) + 1)
        b = min(len(found), a + rng.choice([1, 1, 2, 4, 16]))
        match rng.randrange(5):
            case 0:
                found[a:b] = rng.randbytes(b - a)
            case 1:
                del found[a:b]
            case 2:
                found[a:a] = found[a:b]
            case 3:
                found[a:b] = rng.choice([b"\0", b"\xff"]) * (b - a)
            case 4 if rng.random() < 0.2:
                del found[a:]
    return bytes(found)


def draw_number(rng: Random) -> int:
    return rng.choice([0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])


@cache
def deflate_zeros(megabytes: int, window: int) -> bytes:
    """Deflated zeros, about a thousandth of their size; `window` is zlib's wbits."""
    packer = zlib.compressobj(1, zlib.DEFLATED, window)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(megabytes)) + packer.flush()


def make_special_file(path: Path, rng: Random) -> None:
    """Creates something other than a valid regular file."""
    match rng.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/dev/null", "/dev/tty"]))
        case 2:
            path.symlink_to(rng.choice(["nowhere", path.name, "/", ".", "/proc/self/mem"]))
        case 3:
            path.mkdir()
        case 4:
            with path.open("wb") as f:
                f.truncate(rng.choice([0, 10**4, 2**33]))
        case 5:
            path.write_bytes(rng.randbytes(rng.choice([1, 50, 5000])))


# ---- npz


class ExecutePickle:
    """Creates a file if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def make_npy_header(descr: str, shape: str, fortran: str = "False", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def make_arrays(rng: Random) -> dict[str, Any]:
    n, h, w = rng.randrange(10, 30), rng.randrange(1, 12), rng.randrange(1, 12)
    tail = rng.choice([(), (1,), (3,)])
    numbers = np.random.default_rng(rng.randrange(2**32))
    found: dict[str, Any] = {
        "images": numbers.integers(0, 256, (n, h, w, *tail), np.uint8),
        "labels": numbers.integers(0, 5, n, rng.choice([np.uint8, np.int32, np.int64])),
    }
    if rng.random() < 0.5:
        found |= {
            "test_images": numbers.integers(0, 256, (3, h, w, *tail), np.uint8),
            "test_labels": numbers.integers(0, 5, 3),
        }
    if rng.random() < 0.3:
        for name in [name for name in found if name.endswith("labels")]:
            one_hot = found[name][:, None] == np.arange(5)
            found[name] = (one_hot | one_hot[::-1]).astype(rng.choice([bool, np.uint8, float]))
    if rng.random() < 0.3:
        found["classes"] = np.array(rng.sample(CLASSES, 5))
    return found


def make_odd_array(rng: Random) -> Any:
    n = rng.choice([0, 1, 7])
    return rng.choice(
        [
            np.zeros(n),
            np.zeros((n, 3, 3)),
            np.zeros((n, 1, 1, 1, 1), np.uint8),
            np.full(n, 2**64 - 1, np.uint64),
            np.full(n, -1),
            np.full(n, 10**7),
            np.zeros(n, bool),
            np.array(["x"] * n),
            np.full((n, 5), 1 << 40),
            np.zeros((n, 10**5), bool),
            np.frombuffer(b"\xff" * 20, "<U1"),
            np.zeros(n, "datetime64[s]"),
            np.zeros(n, [("a", "u1"), ("b", "f4")]),
            np.zeros(n, complex),
            np.array(3),
            np.asfortranarray(np.zeros((n, 4, 5), np.uint8)),
            np.zeros((n, 0, 5), np.uint8),
            np.zeros((n, 3, 3), ">u2"),
        ]
    )


DESCRS = ("'|u1'", "'<i8'", "'|O'", "'|S0'", "'<f99'", "'|V4'", "[('a', '|u1')]", "'u1'", "''", "1")
SHAPES = (
    *["(3, 4, 4)", "(3,)", "()", "(0, 4, 4)", "(99999999999, 4, 4)", "(-1, 4, 4)", "(3, 4, 4"],
    *["(3L, 4L, 4L)", "3", "(1e9,)", "(9223372036854775807, 9223372036854775807)", "(True, 1, 1)"],
    *["(" + "1, " * 70 + ")", "(" * 900, "(" + "9" * 5000 + ",)", "__import__('os').abort()"],
)


def make_npz(place: Path, rng: Random) -> None:
    path, out = place / "x.npz", io.BytesIO()
    kind = rng.randrange(10)
    if kind == 0 and rng.random() < 0.5:
        make_special_file(path, rng)
        return
    values = make_arrays(rng)
    if kind == 1:
        values[rng.choice(list(values))] = make_odd_array(rng)
    if kind == 2:
        del values[rng.choice(list(values))]
    members: dict[str, bytes] = {}
    for name, value in values.items():
        member = io.BytesIO()
        np.lib.format.write_array(member, value, version=rng.choice([None, (1, 0), (2, 0), (3, 0)]))
        members[f"{name}.npy"] = member.getvalue()
    victim = rng.choice(list(members))
    if kind == 3:
        shaped = make_npy_header(rng.choice(DESCRS), rng.choice(SHAPES), version=rng.choice([1, 2]))
        members[victim] = shaped + rng.randbytes(rng.choice([0, 3, 48]))
    if kind == 4:
        members[victim] = damage(members[victim], rng)
    if kind == 5:
        content = pickle.dumps(np.array([ExecutePickle(place.parent / "executed")], object))
        members[victim] = make_npy_header("'|O'", "(1,)") + content
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
    if kind == 6:
        methods = [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(out, "w", rng.choice(methods)) as z:
        for name, content in members.items():
            z.writestr(name, content)
    content = out.getvalue()
    if kind == 7:
        content = patch_zip(content, rng)
    if kind == 8:
        content = damage(content, rng)
    if kind == 9 and rng.random() < 0.3:
        content = rng.choice([make_overlapping_bomb, make_plain_bomb])(rng)
    path.write_bytes(content)


def patch_zip(content: bytes, rng: Random) -> bytes:
    """Overwrites one field of a local header, of the central directory or of its end record."""
    found = bytearray(content)
    signature, fields = rng.choice(
        [
            (b"PK\3\4", [(6, "<H"), (8, "<H"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H")]),
            (b"PK\1\2", [(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (42, "<I")]),
            (b"PK\5\6", [(4, "<H"), (8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H")]),
        ]
    )
    places = [i for i in range(len(found) - 3) if found[i : i + 4] == signature]
    offset, form = rng.choice(fields)
    at = rng.choice(places) + offset
    size = struct.calcsize(form)
    found[at : at + size] = struct.pack(form, draw_number(rng) % 256**size)
    return bytes(found)


def make_plain_bomb(rng: Random) -> bytes:
    """As many black images as are still accepted, or too many."""
    return make_black_archive(rng.choice([60, 150, 300]))


@cache
def make_black_archive(n: int) -> bytes:
    """An archive of `n` black images of one megabyte each."""
    out = io.BytesIO()
    labels = np.arange(n) % 3
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open("images.npy", "w") as f:
            f.write(make_npy_header("'|u1'", f"({n}, 1024, 1024)"))
            for _ in range(n):
                f.write(bytes(1 << 20))
        member = io.BytesIO()
        np.save(member, labels)
        z.writestr("labels.npy", member.getvalue())
    return out.getvalue()


def make_overlapping_bomb(rng: Random) -> bytes:
    """An archive whose members all share the same few bytes, which unpack to hundreds of
    megabytes."""
    megabytes = 300
    begin = make_npy_header("'|u1'", f"({megabytes}, 1024, 1023)")
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    data = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH) + deflate_zeros(megabytes, -15)
    size = len(begin) + (megabytes << 20)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(data), size, 10, 0)
    body, entries = local + b"images.npy" + data, []
    for name in (b"images.npy", b"labels.npy", b"test_images.npy"):
        sizes = (0, len(data), size, len(name))
        entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, 0, 0, 0, 0, 0, 0)
        entries.append(entry + name)
    directory = b"".join(entries)
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(body), 0
    )
    return body + directory + end


# ---- idx


def make_idx(place: Path, rng: Random) -> None:
    files = {}
    for part in ("train", "t10k"):
        n = rng.randrange(20, 40)
        images = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28) + rng.randbytes(n * 784)
        labels = bytes(rng.randrange(10) for _ in range(n))
        files[f"{part}-images-idx3-ubyte"] = images
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, n) + labels
    victim = rng.choice(list(files))
    kind = rng.randrange(9)
    content = bytearray(files[victim])
    match kind:
        case 0:
            at = rng.randrange(len(content[:16]) // 4) * 4
            content[at : at + 4] = struct.pack(">I", draw_number(rng))
        case 1:
            content[rng.randrange(4)] = rng.randrange(256)
        case 2:
            del content[rng.randrange(len(content)) :]
        case 3:
            content += rng.randbytes(rng.choice([1, 100]))
        case 4:
            content[8:] = damage(bytes(content[8:]), rng)
    files[victim] = bytes(content)
    for name, whole in files.items():
        packed = rng.random() < 0.6
        path = place / (f"{name}.gz" if packed else name)
        if name == victim and kind == 5:
            make_special_file(path, rng)
            continue
        if name == victim and kind == 6:
            begin = struct.pack(">4B3I", 0, 0, 8, 3, rng.choice([400_000, 10**6, 9]), 28, 28)
            if "labels" in name:
                begin = struct.pack(">4BI", 0, 0, 8, 1, rng.choice([300 << 20, 5]))
            (place / f"{name}.gz").write_bytes(gzip.compress(begin) + compress_zeros(310))
            continue
        if name == victim and kind == 7:
            packed = True
            path = place / f"{name}.gz"
            path.write_bytes(damage(gzip.compress(whole), rng))
            continue
        path.write_bytes(gzip.compress(whole, 1) if packed else whole)
    if kind == 8 and rng.random() < 0.5:
        next(place.iterdir()).unlink()


def compress_zeros(megabytes: int) -> bytes:
    return deflate_zeros(megabytes, 31)


# ---- folders of pictures

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
SUFFIXES = ("jpg", "JPEG", "jfif", "png", "gif", "bmp", "webp", "tif", "ppm", "jp2", "txt", "")
CLASSES = (
    *["cat", "dog", "bird", "Train", "val", "test", "__x__", "a b", "\x1b[2J", "[red]", "x\ny"],
    *["images", ".hidden", "\udcff\udcfe", "ü", "-", "..."],
)
SPLIT_NAMES = (
    "train",
    "Train",
    "training",
    "val",
    "Valid",
    "dev",
    "test",
    "Testing",
    "extra",
    "holdout",
)


@cache
def encode_picture(kind: str, mode: str, width: int, height: int) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(width * height).integers(0, 255, (height, width, 3), np.uint8)
    made = Image.fromarray(values)
    if mode in ("I;16", "I"):
        made = Image.fromarray(
            values[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 99
        )
    elif mode != "RGB":
        made = made.convert(mode)
    try:
        made.save(out, kind)
    except (OSError, ValueError):  # not every format supports every mode
        Image.fromarray(values).save(out, kind)
    return out.getvalue()


def make_picture(rng: Random) -> bytes:
    modes = ["RGB", "RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "I"]
    size = rng.choice([(9, 7), (1, 1), (40, 25), (16, 16), (3, 60)])
    return encode_picture(rng.choice(IMAGE_FORMATS), rng.choice(modes), *size)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def make_false_size_picture(rng: Random) -> bytes:
    """A picture of a few bytes whose header claims a large size."""
    w, h = rng.choice([(60_000, 60_000), (9_000, 9_000), (20_000, 1), (1, 20_000), (2**31 - 1, 1)])
    short = (min(w, 65535), min(h, 65535))
    match rng.randrange(7):
        case 0:
            head = struct.pack(">2I5B", w, h, 8, rng.choice([0, 2, 6]), 0, 0, rng.choice([0, 1]))
            data = (
                png_chunk(b"IHDR", head)
                + png_chunk(b"IDAT", deflate_zeros(8, 15))
                + png_chunk(b"IEND", b"")
            )
            return b"\x89PNG\r\n\x1a\n" + data
        case 1:
            found = bytearray(encode_picture("JPEG", "RGB", 9, 7))
            at = found.index(b"\xff\xc0")
            found[at + 5 : at + 9] = struct.pack(">2H", *short[::-1])
            return bytes(found)
        case 2:
            found = bytearray(encode_picture("GIF", "P", 9, 7))
            found[6:10] = struct.pack("<2H", *short)
            return bytes(found)
        case 3:
            found = bytearray(encode_picture("BMP", "RGB", 9, 7))
            found[18:26] = struct.pack("<2i", w, rng.choice([h, -h]))
            return bytes(found)
        case 4:
            return b"P%d %d %d 255\n" % (rng.choice([2, 3, 5, 6]), w, h) + bytes(1000)
        case 5:
            canvas = struct.pack("<I", 16382)[:3] * 2
            inner = (
                b"VP8X"
                + struct.pack("<I", 10)
                + bytes(4)
                + canvas
                + encode_picture("WEBP", "RGB", 9, 7)[12:]
            )
            return b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + inner
        case _:
            found = bytearray(encode_picture("TIFF", "L", 9, 7))
            for tag, value in ((256, w), (257, h)):
                for form in (3, 4):
                    at = found.find(struct.pack("<HHI", tag, form, 1))
                    if at >= 0:
                        found[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
            return bytes(found)


NON_PICTURES = (
    b"",
    b"<html>404</html>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS",
    b"%PDF-1.4",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    b"BM",
    b"II*\0",
    b"P6",
    b"\0" * 3000,
)


def write_file(path: Path, rng: Random) -> None:
    match rng.randrange(12):
        case 0:
            path.write_bytes(damage(make_picture(rng), rng))
        case 1:
            path.write_bytes(make_false_size_picture(rng))
        case 2:
            path.write_bytes(rng.choice(NON_PICTURES))
        case 3 if rng.random() < 0.4:
            make_special_file(path, rng)
        case 4 if rng.random() < 0.2:
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case _:
            path.write_bytes(make_picture(rng))


def make_folder(place: Path, rng: Random) -> None:
    good = rng.random() < 0.5
    classes = ["cat", "dog", "bird"] if good else rng.sample(CLASSES, rng.randrange(1, 5))
    parts = [""] if rng.random() < 0.4 else rng.sample(SPLIT_NAMES, rng.randrange(1, 4))
    if good and parts != [""]:
        parts = ["train", *rng.sample(("val", "test"), rng.randrange(3))]
    for part in parts:
        for name in classes:
            folder = place / part / name
            folder.mkdir(parents=True, exist_ok=True)
            if rng.random() < 0.2:
                folder = folder / "/".join(["deeper"] * rng.choice([1, 2, 20]))
                folder.mkdir(parents=True)
            for i in range(rng.randrange(1, 6)):
                path = folder / f"{i}.{rng.choice(SUFFIXES)}".rstrip(".")
                if good or rng.random() < 0.6:
                    path.write_bytes(make_picture(rng))
                else:
                    write_file(path, rng)
    damage_folder(place, rng)


def damage_folder(place: Path, rng: Random) -> None:
    """Damages one thing in a folder."""
    folders = sorted(p for p in place.rglob("*") if p.is_dir() and not p.is_symlink())
    folder = rng.choice(folders)
    match rng.randrange(6):
        case 0:
            write_file(folder / "odd.png", rng)
        case 1:
            make_special_file(folder / "odd.jpg", rng)
        case 2:
            link = rng.choice(["..", ".", "/", "../..", folders[0]])
            (folder / "link").symlink_to(link)
        case 3:
            shutil.rmtree(folder)
        case 4:
            (folder / rng.choice(CLASSES)).mkdir(exist_ok=True)
        case 5:
            write_file(place / "loose.png", rng)


# ---- tables of pictures

CELLS = (
    *["", "0", "1", "a.png", "../a.png", "/etc/passwd", "x" * 2000, "train", "cat;dog", "cat|dog"],
    *["\x1b[2J", "\0", '"', "ü", "0.0", "a b", "\u202e", "labels", "-1", "NaN"],
)


def make_table(place: Path, rng: Random) -> None:
    names = [f"{i}.png" for i in range(rng.randrange(4, 12))]
    for name in names:
        if rng.random() < 0.97:
            (place / name).write_bytes(make_picture(rng))
    header, draw = rng.choice(
        [
            (["image", "label"], lambda: [rng.choice(["cat", "dog"])]),
            (["image", "labels"], lambda: [rng.choice(["cat", "dog|cat", "dog|", "", "a b|cat"])]),
            (["image", "cat", "dog"], lambda: [rng.choice("01"), rng.choice(["0", "1", "True"])]),
        ]
    )
    rows = [header, *([name, *draw()] for name in names)]
    if rng.random() < 0.4:
        parts = ["train", "train", "val", "test"]
        rows = [[*row, rng.choice(parts) if i else "split"] for i, row in enumerate(rows)]
    if rng.random() < 0.4:
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    content = "\n".join(",".join(row) for row in rows).encode()
    match rng.randrange(8):
        case 0:
            content = damage(content, rng)
        case 1:
            make_special_file(place / "labels.csv", rng)
            return
        case 2 if rng.random() < 0.3:
            content = b"image,labels\n" + b"".join(b"%d,%d\n" % (i, i) for i in range(10**5))
        case 3:
            content = rng.choice([b"", b"\xff\xfe", b'"' * 9, b"," * 10**6, b'a,"' + b"x" * 10**6])
    (place / "labels.csv").write_bytes(content)


def read_table(place: Path, rng: Random) -> None:
    arguments = {"path": "labels.csv", "images": None}
    source = BoundCall("csv", SOURCES["csv"], arguments)
    skip_bad = rng.random() < 0.5
    prepare = Preprocessing((bind_augmentation("resize", size=16),), (16, 16, 3))
    consume_dataset(sources.load(source, str(place), skip_bad), prepare, rng)


# ---- the worker

MAKERS: dict[str, tuple[Callable[[Path, Random], None], Callable[[Path, Random], None]]] = {
    "npz": (make_npz, read_npz),
    "idx": (make_idx, read_idx),
    "folder": (make_folder, read_folder),
    "csv": (make_table, read_table),
}


def run_case(kind: str, number: int, root: Path) -> dict[str, Any]:
    """Runs one case; returns what went wrong, the message and the time."""
    place = root / "case"
    place.mkdir()
    make, read = MAKERS[kind]
    make(place, Random(f"{kind} {number}"))
    began, said, wrong = time.process_time(), "", ""
    try:
        read(place, Random(number))
    except NetError as e:
        said = e.render()
        if len(said) > MAX_MESSAGE_LENGTH or "MemoryError" in said:
            wrong = f"it says {said[:300]}"
    except BaseException:
        wrong = traceback.format_exc()
    seconds = time.process_time() - began
    if seconds > MAX_SECONDS:
        wrong = wrong or f"it took {seconds:.1f} s"
    if (root / "executed").exists():
        wrong = "it was executed"
    shutil.rmtree(place)
    return {"case": f"{kind} {number}", "seconds": seconds, "said": said[:200], "wrong": wrong}


def main(kind: str, first: int, count: int) -> None:
    """Prints a JSON object: the failed cases, the longest time, and the peak memory."""
    faulthandler.enable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quick = Path("/dev/shm")  # faster: thousands of folders are created and removed
    with tempfile.TemporaryDirectory(dir=quick if quick.is_dir() else None) as folder:
        root = Path(folder)
        (root / "tools").mkdir()
        (root / "tools" / "gs").write_text(f"#!/bin/sh\ntouch {root}/executed\n")
        (root / "tools" / "gs").chmod(0o755)
        os.environ["PATH"] = f"{root}/tools:{os.environ['PATH']}"
        cases = []
        for number in range(first, first + count):
            faulthandler.dump_traceback_later(60, exit=True)
            cases.append(run_case(kind, number, root))
        faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        json.dumps(
            {
                "cases": len(cases),
                "read": sum(not c["said"] for c in cases),
                "wrong": [c for c in cases if c["wrong"]],
                "slowest": max(c["seconds"] for c in cases),
                "peak": peak * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
