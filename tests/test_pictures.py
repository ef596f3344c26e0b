"""Picture files of every kind become upright bytes, or a sentence that names them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netdsl.data.augment import AUGMENTATIONS, bind_augmentation
from netdsl.data.memory_limits import MemorySemaphore
from netdsl.data.pictures import (
    FORMATS,
    BadPicture,
    PictureFile,
    find_picture_error,
    find_picture_errors,
    is_picture,
    pictures_from_paths,
    read_picture,
)
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.spatial_ops import resize_to_cover
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.job import prepare_job as prepare_job
from netdsl.values import Size
from tests.conftest import ROOT

RED = (200, 30, 40)


def coloured(mode: str, size: tuple[int, int] = (6, 4)) -> Any:
    plain = Image.new("RGB", size, RED)
    return plain.quantize() if mode == "P" else plain.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("RGB", "a.bmp"),
        ("RGB", "a.webp"),
        ("P", "a.gif"),
        ("P", "a.png"),
        ("RGBA", "a.png"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.jpg"),
        ("RGB", "a.tif"),
    ],
)
def test_every_kind_of_picture_keeps_its_colour(tmp_path: Path, mode: str, name: str) -> None:
    coloured(mode).save(tmp_path / name)
    found = read_picture(tmp_path / name, 3)
    assert found.shape == (4, 6, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - RED).max() <= 12


@pytest.mark.parametrize(("mode", "value"), [("L", 77), ("1", 255), ("I;16", 77 * 257)])
def test_grey_pictures_are_grey_in_colour(tmp_path: Path, mode: str, value: int) -> None:
    Image.new(mode, (6, 4), value).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 3)
    assert (found == min(value, 77 if value > 255 else value)).all()
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 1), found[..., :1])


def transparent(kind: str) -> Any:
    """Black that nobody sees on the left, red on the right."""
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.paste((*RED, 255), (2, 0, 4, 2))
    if kind == "RGBA":
        return picture
    if kind == "LA":
        return picture.convert("LA")
    flat = Image.new("P", (4, 2), 0)
    flat.putpalette([0, 0, 0, *RED])
    flat.paste(1, (2, 0, 4, 2))
    flat.info["transparency"] = 0
    return flat


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, kind: str) -> None:
    transparent(kind).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 3)
    assert (found[:, :2] == 255).all()
    assert (found[:, 2:] < 255).all()
    if kind != "LA":
        assert (found[:, 2:] == RED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 1)[..., 0], upright)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0 no more"])
def test_no_pictures_are_known_by_their_first_bytes(tmp_path: Path, content: bytes) -> None:
    coloured("RGB").save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(content)
    good, bad = find_picture_errors([tmp_path / "good.jpg", tmp_path / "bad.jpg"])
    assert good is None
    assert "bad.jpg is not a readable picture" in str(bad)


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(NetError, match=r"cut\.jpg is not a readable picture.*truncated"):
        read_picture(path, 3)


def test_a_picture_of_far_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 5_000)).save(path)
    message = r"bomb\.png of 5000x20000 has 100,000,000 pixels, but at most 83,333,333"
    for read in (
        lambda: read_picture(path, 3),
        lambda: Preprocessing((), (4, 4, 3))(pictures_from_paths([path])),
    ):
        with pytest.raises(BadPicture, match=message) as e:
            read()
        assert "`NETDSL_MEMORY=5GB` in the environment allows it" in e.value.render()
    assert "100,000,000 pixels" in str(find_picture_errors([path])[0])
    monkeypatch.setenv("NETDSL_MEMORY", "5GB")
    assert find_picture_errors([path]) == [None]
    monkeypatch.setenv("NETDSL_MEMORY", "30kB")
    coloured("RGB", (40, 40)).save(path)
    with pytest.raises(BadPicture, match="1,600 pixels, but at most 625 are decoded"):
        read_picture(path, 3)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ([("resize", {"size": 256})], (1, 20_000)),
        ([("resize", {"size": 256})], (20_000, 1)),
        ([("scale_jitter", {"sides": (8, 256)})], (1, 20_000)),
        ([("resize", {"size": 16384}), ("resize", {"size": 8})], (30, 30)),
        ([("resize", {"size": Size((16384, 16384))})], (3, 3)),
        ([("resize", {"size": Size((1, 16384))})], (10_000, 1)),
        ([("hflip", {}), ("resize", {"size": 256})], (1, 20_000)),
        ([("resize", {"size": 300}), ("center_crop", {})], (20_000, 1)),
    ],
)
def test_a_picture_that_grows_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, size: tuple[int, int]
) -> None:
    path = tmp_path / "long.png"
    Image.new("L", size[::-1]).save(path)
    prepare = Preprocessing(tuple(bind_augmentation(n, **given) for n, given in changes), (8, 8, 3))
    monkeypatch.setattr(PictureFile, "decode", lambda *args: pytest.fail("it was decoded"))
    with pytest.raises(
        BadPicture, match=r"long\.png of .*, together with the resized picture, has"
    ) as e:
        prepare(pictures_from_paths([path]))
    assert "NETDSL_MEMORY=" in e.value.render()


@pytest.mark.parametrize(
    "changes", [[("center_crop", {}), ("resize", {"size": 256})], [("random_resized_crop", {})]]
)
def test_a_long_picture_that_is_cut_first_is_taken(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "long.png"
    Image.new("L", (20_000, 12)).save(path)
    prepare = Preprocessing(tuple(bind_augmentation(n, **given) for n, given in changes), (8, 8, 3))
    assert prepare(pictures_from_paths([path])).shape == (1, 8, 8, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_sizes_are_foreseen(h: int, w: int, data: st.DataObject) -> None:
    """No image has more pixels on its way than was said before."""
    given = {
        "scale_jitter": {"sides": (9, 15)},
        "resize": {"size": data.draw(st.sampled_from([3, 20, Size((5, 17)), None]))},
    }
    names = data.draw(st.lists(st.sampled_from(sorted(AUGMENTATIONS)), max_size=4))
    prepare = Preprocessing(
        tuple(bind_augmentation(n, **given.get(n, {})) for n in names), (8, 9, 3)
    )
    largest, images = prepare.max_pixels((h, w)), np.zeros((1, h, w, 3), np.uint8)
    for chosen in prepare.augmentations:
        numbers = np.array(
            [[data.draw(st.sampled_from([0.0, 0.5, 0.999]))] * chosen.record.draw_count]
        )
        images = chosen.record.apply(images, numbers, (8, 9), **chosen.arguments)
        assert images.shape[1] * images.shape[2] <= max(largest, h * w)
    assert resize_to_cover(images, (8, 9))[0, :, :, 0].size <= max(largest, h * w)


def test_arrays_that_grow_too_large_are_refused_before_anything_runs(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((80, 1, 20_000), np.uint8), labels=[0, 1] * 40)
    text = f"""net a {{ input(8x8x1); fc(2) }}
    data {{ source = arrays("{tmp_path}/x.npz"), batch = 8, augment = [resize(100), center_crop]
           eval_transform = resize(8x8) }}
    train {{ }}"""
    with pytest.raises(NetError, match=r"preparing 8 images of 1x20000x1 would take 1\.6 GB") as e:
        prepare_job(build_program(parse(text)), None)
    assert "NETDSL_MEMORY=" in e.value.render()


_READS = """
import sys
from pathlib import Path
from netdsl.data.pictures import PictureFile, read_picture

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))

path, channels = Path(sys.argv[1]), int(sys.argv[2])
small = path.with_name("small" + path.suffix)
read_picture(small, channels)  # what is loaded for it is not the picture's
before = memory("VmRSS")
h, w, _ = read_picture(path, channels).shape
print((memory("VmHWM") - before) / (h * w), PictureFile(path).bytes_per_pixel(channels))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what was taken")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("JPEG2000", "RGB"), ("JPEG2000", "RGBA")],
)
def test_a_picture_takes_no_more_memory_than_is_counted(
    tmp_path: Path, kind: str, mode: str
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    for name, side in ((path, 1500), (path.with_stem("small"), 9)):
        Image.new(mode, (side, side)).save(name, kind)
    command = [sys.executable, "-c", _READS, str(path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    taken, counted = map(float, done.stdout.split())
    assert 4 < taken <= counted + 0.2


def test_pictures_wait_for_the_memory_that_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETDSL_MEMORY", "4kB")
    gate, inside, most = MemorySemaphore(), [0], [0]
    lock = threading.Lock()

    def work(size: int) -> None:
        with gate.reserve(size):
            with lock:
                inside[0] += size
                most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            with lock:
                inside[0] -= size

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [300, 400, 500] * 40))
    assert 500 < most[0] <= 1000
    with gate.reserve(5000):  # more than there is for all of them: it is let in alone
        pass


def test_large_pictures_are_decoded_a_few_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        Image.new("L", (1000, 1000)).save(tmp_path / f"{i}.png")
    monkeypatch.setenv("NETDSL_MEMORY", "90MB")  # 22 MB to decode in: 12 MB and some a picture
    at_once, most, decoded = [0], [0], PictureFile.decode

    def counted(self: PictureFile, channels: int) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return decoded(self, channels)

    monkeypatch.setattr(PictureFile, "decode", counted)
    Preprocessing((), (8, 8, 3))(pictures_from_paths([tmp_path / f"{i}.png" for i in range(12)]))
    assert most[0] == 1
    monkeypatch.setenv("NETDSL_MEMORY", "1GB")
    Preprocessing((), (8, 8, 3))(pictures_from_paths([tmp_path / f"{i}.png" for i in range(12)]))
    assert most[0] > 1


# ---- only what is listed is decoded, and only files are opened


SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
DOS = b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + bytes(24) + SCRIPT


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Ghostscript that leaves a trace where it is started: the file."""
    trace, tools = tmp_path / "started", tmp_path / "tools"
    tools.mkdir()
    for name in ("gs", "convert", "magick"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return trace


@pytest.mark.parametrize("content", [SCRIPT, DOS, b"\n" + SCRIPT, b"%PDF-1.4\n" + SCRIPT])
@pytest.mark.parametrize("name", ["a.jpg", "a.eps", "a.png", "a"])
def test_no_picture_starts_a_program(
    tmp_path: Path, ghostscript: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert "a" in str(find_picture_errors([path])[0])
    assert not is_picture(path)
    for read in (
        lambda: read_picture(path, 3),
        lambda: Preprocessing((), (4, 4, 3))(pictures_from_paths([path])),
    ):
        with pytest.raises(
            BadPicture, match="is not a readable picture: it is not one of JPEG, PNG"
        ):
            read()
    assert not ghostscript.exists()


OTHERS = {"TGA": "tga", "PCX": "pcx", "ICO": "ico", "SGI": "sgi", "DDS": "dds"}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_no_pictures(tmp_path: Path, kind: str) -> None:
    coloured("RGB", (64, 64)).save(tmp_path / "a.png", kind)
    with pytest.raises(BadPicture, match="it is not one of JPEG"):
        read_picture(tmp_path / "a.png", 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_says_what_a_picture_is(tmp_path: Path, kind: str) -> None:
    for name in ("a", "a.jpg", "a.txt"):
        coloured("RGB").save(tmp_path / name, kind)
        assert is_picture(tmp_path / name)
        assert find_picture_errors([tmp_path / name]) == [None]
        found = read_picture(tmp_path / name, 3)
        assert np.abs(found.astype(int) - RED).max() <= 12


def test_several_pictures_in_a_jpeg_are_the_first(tmp_path: Path) -> None:
    coloured("RGB").save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[coloured("L")])
    assert np.abs(read_picture(tmp_path / "a.jpg", 3).astype(int) - RED).max() <= 12


def test_pipes_and_devices_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    (tmp_path / "c.jpg").mkdir()
    for name, kind in (("a", "a named pipe"), ("b", "a device"), ("c", "a folder")):
        with pytest.raises(BadPicture, match=rf"{name}\.jpg is {kind}, not a file"):
            read_picture(tmp_path / f"{name}.jpg", 3)
        assert not is_picture(tmp_path / f"{name}.jpg")


# ---- more than eight bits


def tiff(path: Path, values: Any, **tags: int) -> Path:
    known = {"bits": 258, "white_is": 262, "sign": 339}
    Image.fromarray(values).save(path, "TIFF", tiffinfo={known[k]: v for k, v in tags.items()})
    return path


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a", kind)
    found = read_picture(tmp_path / "a", 1)[..., 0]
    np.testing.assert_array_equal(found, np.round(RAMP / 257))
    big = RAMP.astype(">u2") if kind == "TIFF" else RAMP
    Image.fromarray(big).save(tmp_path / "b", kind)
    np.testing.assert_array_equal(read_picture(tmp_path / "b", 1)[..., 0], found)


def test_white_may_be_zero(tmp_path: Path) -> None:
    found = read_picture(tiff(tmp_path / "a.tif", RAMP, white_is=0), 1)[..., 0]
    np.testing.assert_array_equal(found, 255 - np.round(RAMP / 257))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float32])
def test_numbers_without_a_white_are_refused(tmp_path: Path, dtype: Any) -> None:
    values = (np.arange(64).reshape(8, 8) * 1000).astype(dtype)
    path = tmp_path / "a.tif"
    Image.fromarray(values.astype(np.int32) if dtype == np.uint32 else values).save(path)
    if dtype == np.uint32:
        patched(path, 339, 1)
    with pytest.raises(BadPicture, match=r"a\.tif: .* no fixed range of brightness"):
        read_picture(path, 1)
    fault = find_picture_error(path)
    assert fault is not None, "it is known before anything is decoded"
    assert fault.diagnostics[0].help == "save it with 8 or 16 bits per channel"


def patched(path: Path, tag: int, value: int) -> None:
    """A tag of a little-endian TIFF that holds one short, with another value."""
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HHL", tag, 3, 1))
    content[place + 8 : place + 10] = struct.pack("<H", value)
    path.write_bytes(bytes(content))


def test_sixteen_signed_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP).save(path, tiffinfo={339: 1})
    patched(path, 339, 2)
    with pytest.raises(BadPicture, match="signed integers have no fixed range"):
        read_picture(path, 1)


def test_twelve_bits_are_scaled(tmp_path: Path) -> None:
    """Two values in three bytes, as cameras and microscopes save them."""
    path = tmp_path / "a.tif"
    values = np.array([[0, 4095, 2048, 1024]], np.uint16)
    Image.fromarray(values).save(path)
    patched(path, 258, 12)
    content = bytearray(path.read_bytes())
    with Image.open(path) as opened:
        (begin,) = opened.tag_v2[273]
    a, b, c, d = (int(v) for v in values[0])
    packed = [a >> 4, (a & 15) << 4 | b >> 8, b & 255, c >> 4, (c & 15) << 4 | d >> 8, d & 255]
    content[begin : begin + 6] = bytes(packed)
    path.write_bytes(bytes(content))
    assert read_picture(path, 1)[0, :, 0].tolist() == [0, 255, 128, 64]


@pytest.mark.parametrize("orientation", [3, 6])
def test_pictures_of_sixteen_bits_stand_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP[:4]).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.round(RAMP[:4] / 257).astype(np.uint8)).save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(*(read_picture(tmp_path / n, 1) for n in ("a.png", "b.png")))


def test_a_picture_of_real_numbers_is_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(NetError, match=r"float\.tif: .* no fixed range of brightness"):
        read_picture(tmp_path / "float.tif", 3)


def test_a_checksum_tells_files_apart(tmp_path: Path) -> None:
    coloured("RGB").save(tmp_path / "a.png")
    coloured("L").save(tmp_path / "b.png")
    one, two = (pictures_from_paths([tmp_path / n]).checksum() for n in ("a.png", "b.png"))
    assert one != two
    assert one == pictures_from_paths([tmp_path / "a.png"]).checksum()
