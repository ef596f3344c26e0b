"""Picture files of every kind become upright bytes, or a sentence that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdsl.data.pictures import listed, read_picture, unreadable
from netdsl.errors import NetError

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
    (told,) = unreadable([tmp_path / "good.jpg", tmp_path / "bad.jpg"])
    assert "bad.jpg is no readable picture" in told


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(NetError, match=r"cut\.jpg is no readable picture.*truncated"):
        read_picture(path, 3)


def test_a_picture_of_far_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured("RGB", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(NetError, match=r"bomb\.png is no readable picture.*bomb"):
        read_picture(tmp_path / "bomb.png", 3)


def test_a_picture_of_real_numbers_is_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(NetError, match=r"float\.tif: .* no fixed range of brightness"):
        read_picture(tmp_path / "float.tif", 3)


def test_a_checksum_tells_files_apart(tmp_path: Path) -> None:
    coloured("RGB").save(tmp_path / "a.png")
    coloured("L").save(tmp_path / "b.png")
    one, two = (listed([tmp_path / n]).checksum() for n in ("a.png", "b.png"))
    assert one != two
    assert one == listed([tmp_path / "a.png"]).checksum()
