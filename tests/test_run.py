"""`netdsl run`: values at places of a net, for pictures, arrays and tables of numbers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import netdsl as package
from netdsl.cli.value_rows import UNLIMITED, Limits, format_values, is_shortened
from netdsl.data.npy import format_npy, format_npz, read_npy
from netdsl.data.number_table import read_number_table
from netdsl.errors import NetError
from tests.conftest import ROOT

LECTURE = ROOT / "models" / "lecture"
NETS = """net small { input(4x4x2) ; c: conv(3, 3x3, pad=same) -> relu ; head: fc(2) }
net grey { input(4x4x1) ; double: add { identity | identity } }
net vector { input(3) ; double: add { identity | identity } -> fc(2) }
net pair { left: input(2x2x1) ; right: input(2x2x1) ; file: sub { left | right } }
data { source = arrays("none.npz") }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.net").write_text(NETS)
    (tmp_path / "table.csv").write_text("1,2,3,4\n5,6,7,8\n9,10,11,12\n13,14,15,-0.5\n")
    (tmp_path / "square.csv").write_text("1,2\n3,4\n")
    return tmp_path


def test_the_slide_of_pooling(netdsl: Any) -> None:
    """The commands of the file, which `tests/test_lecture.py` runs; here with what they print."""
    net, table = f"{LECTURE / 'pooling.net'}:slide", str(LECTURE / "table.csv")
    command = ("run", net, "--input", table, "--at", "pool", "--device", "reference")
    code, out, err = netdsl(*command)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["pool:", "2x2x2"],
        ["channel", "0"],
        ["8", "9"],
        ["12", "12"],
        ["channel", "1"],
        ["3.778", "4.889"],
        ["5.333", "3.889"],
    ]
    assert err == f"{table}: 4 blank cells read as 0\n"
    code, out, _ = netdsl(*command, "--json")
    found = json.loads(out)
    assert (found["place"], found["shape"]) == ("pool", [2, 2, 2])
    assert np.array(found["values"])[..., 0].tolist() == [[8, 9], [12, 12]]


def test_values_of_a_file_are_those_of_python_for_the_same_seed(netdsl: Any, folder: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
    np.save("x.npy", images)
    seed = ("--seed", "5", "--device", "reference")
    command = ("run", "nets.net:small", "--input", "x.npy", *seed)
    code, out, err = netdsl(*command, "--at", "c", "--at", "head", "-o", "x.npz", "--json")
    assert (code, err) == (
        0,
        "the weights of `small` are initial ones, drawn from seed 5; for trained weights, "
        "give a checkpoint\n",
    )
    net = package.load(folder / "nets.net:small", device="reference", seed=5)
    wanted = net.values(images, ["c", "head"])
    with np.load("x.npz") as saved:
        for row in json.loads(out):
            np.testing.assert_array_equal(saved[row["place"]], wanted[row["place"]])
            np.testing.assert_array_equal(np.float32(row["values"]), wanted[row["place"]])
            assert row["shape"] == list(wanted[row["place"]].shape)
    assert netdsl(*command, "-o", "y.npy")[0] == 0
    np.testing.assert_array_equal(np.load("y.npy"), wanted["head"])


def test_weights_keep_their_seed_and_one_image_has_no_axis_of_a_batch(
    netdsl: Any, folder: Path
) -> None:
    net = package.load(folder / "nets.net:grey", device="reference")
    net.save(folder / "w.safetensors")
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(folder / "x.png")
    pixels = ["0", *(f"{2 * n / 255:.4g}" for n in range(1, 4))]  # normalised as in `predict`
    for file, row in (("x.png", pixels), ("table.csv", ["2", "4", "6", "8"])):
        code, out, err = netdsl(
            "run", "w.safetensors", "--input", file, "--at", "double", "--device", "reference"
        )
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == "double: 4x4x1"
        assert out.splitlines()[1].split() == row


def test_rows_of_a_table_are_vectors(netdsl: Any, folder: Path) -> None:
    (folder / "v.csv").write_text("1 2 3\n4 5\n")
    command = ("run", "nets.net:vector", "--at", "double.add1", "--device", "reference")
    _, out, err = netdsl(*command, "--input", "v.csv", "--blank", "7")
    assert " ".join(out.split()) == "double.add1: 2x3 image 0 2 4 6 image 1 8 10 14"
    assert "v.csv: 1 blank cell read as 7" in err
    (folder / "v.csv").write_text("1\n2\n3\n")
    out = netdsl(*command, "--input", "v.csv")[1]
    assert " ".join(out.split()) == "double.add1: 3 2 4 6"


def test_several_inputs_are_named(netdsl: Any, folder: Path) -> None:
    (folder / "b.csv").write_text("1,1\n1,1\n")
    command = ("run", "nets.net:pair", "--device", "reference", "--at", "file", "--at", "left")
    code, out, _ = netdsl(
        *command, "--input", "left=square.csv", "--input", "right=b.csv", "-o", "x.npz"
    )
    assert (code, " ".join(out.split())) == (0, "file: 2x2x1 0 1 2 3 left: 2x2x1 1 2 3 4")
    with np.load("x.npz") as saved:
        assert saved["file"].ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("nets.net:grey", "Missing option '--input'"),
        ("nets.net:grey --input square.csv", "square.csv is 2x2, but the net takes 4x4x1"),
        ("nets.net:small --input table.csv", "a table is an image with one channel"),
        ("nets.net:grey --input none.csv", "cannot read none.csv"),
        ("nets.net:grey --input nets.net", "nets.net"),
        ("nets.net:grey --input table.csv --at x", "`grey` has no place `x`"),
        ("nets.net:grey --input words.csv", "`one` is not a number"),
        ("nets.net:grey --input table.csv --input table.csv", "`input` is given twice"),
        ("nets.net:pair --input table.csv", "write `--input left=FILE --input right=FILE`"),
        ("nets.net:pair --input left=square.csv", "the input `right` is missing"),
        ("nets.net:grey --input pickle.npy", "Python objects, a pickle, which is never read"),
        ("nets.net:grey --input table.csv -o table.csv", "a file that this command reads"),
        ("nets.net:grey --input table.csv -o x.png", "x.png does not end in `.npy`"),
        ("nets.net:grey --input table.csv --at input --at double -o x.npy", "2 places"),
        ("w.safetensors --input table.csv --seed 3", "`--seed` applies only to a .net file"),
        ("nets.net:grey --input table.csv --device none", "none"),
    ],
)
def test_what_cannot_be_run_is_an_error(
    netdsl: Any, folder: Path, words: str, complaint: str
) -> None:
    (folder / "words.csv").write_text("one,two\n1,2\n")
    np.save(folder / "pickle.npy", np.array([{}], object), allow_pickle=True)
    package.load(folder / "nets.net:grey").save(folder / "w.safetensors")
    code, out, err = netdsl("run", *words.split())
    assert (code, out) == (2, "")
    assert complaint in err


CELLS = st.one_of(st.none(), st.integers(-99, 99), st.floats(-1e9, 1e9, allow_subnormal=False))


@settings(max_examples=25)
@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=5), min_size=1, max_size=5),
    separator=st.sampled_from([",", ";", "\t", ", "]),
    blank=st.sampled_from([0.0, -1.5, float("inf")]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_reads_back(
    rows: list[list[Any]], separator: str, blank: float, end: str, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    path.write_bytes(
        end.join(separator.join("" if x is None else repr(x) for x in r) for r in rows).encode()
    )
    width = max(map(len, rows))
    wanted = [[*(blank if x is None else x for x in r), *[blank] * (width - len(r))] for r in rows]
    found = read_number_table(path, blank)
    np.testing.assert_array_equal(found.values, np.array(wanted, np.float64))
    assert found.blank_count == sum(r.count(None) + width - len(r) for r in rows)


ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "<i4", ">f4", "<f8", "?"]),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
)


@settings(max_examples=25)
@given(array=ARRAYS, is_fortran=st.booleans())
def test_an_array_reads_back(array: Any, is_fortran: bool, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "a.npy"
    path.write_bytes(format_npy(np.asfortranarray(array) if is_fortran else array))
    found = read_npy(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@settings(max_examples=40)
@given(array=ARRAYS, where=st.integers(0, 200), byte=st.integers(0, 255), keep=st.integers(0, 200))
def test_a_damaged_array_is_an_error_or_another_array(
    array: Any, where: int, byte: int, keep: int, tmp_path_factory: Any
) -> None:
    content = bytearray(format_npy(array))
    content[where % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(content[: max(1, len(content) - keep)] if keep % 2 else content)
    with suppress(NetError):
        assert isinstance(read_npy(path), np.ndarray)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("(0, 9999999999999999999), ", "contains no values"),
        ("(" + "1, " * 40 + "), ", "has 40 axes"),
        ("(9999999999999999999, 9), ", "it is damaged"),
        ("(2, 2), ", "does not have the 4 bytes"),
    ],
)
def test_the_shape_in_a_header_is_checked(header: str, complaint: str, tmp_path: Path) -> None:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {header}}}\n".encode()
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
    (tmp_path / "x.npy").write_bytes(content + bytes(3))
    with pytest.raises(NetError, match=complaint):
        read_npy(tmp_path / "x.npy")


def test_arrays_by_name_have_one_form() -> None:
    arrays = {"file": np.arange(3.0), "allow_pickle": np.zeros((2, 2))}
    assert format_npz(arrays) == format_npz(arrays)


@settings(max_examples=40)
@given(
    values=hnp.arrays("f4", hnp.array_shapes(max_dims=3, max_side=9), elements=st.integers(-9, 9)),
    limits=st.builds(Limits, *[st.integers(3, 8)] * 4),
)
def test_all_values_are_printed_or_the_gap_says_so(values: Any, limits: Limits) -> None:
    whole = [w for line in format_values("p", values, False, UNLIMITED) for w in line.split()]
    has_maps = values.ndim == 3 and values.shape[:2] != (1, 1)
    blocks = np.moveaxis(values, -1, 0) if has_maps else values[None]
    wanted = ["p:", "x".join(map(str, values.shape))]
    for i, block in enumerate(blocks):
        wanted += ["channel", str(i)] * (has_maps and len(blocks) > 1)
        wanted += [str(int(v)) for v in block.ravel()]
    assert whole == wanted
    lines = list(format_values("p", values, False, limits))
    assert any("..." in line for line in lines) == is_shortened(values, False, limits)
    is_batch = values.ndim > 1
    lines = list(format_values("p", values, is_batch, limits))
    assert any("..." in line for line in lines) == is_shortened(values, is_batch, limits)
    assert max(len(line.split()) for line in lines) <= max(limits.columns, 2)
