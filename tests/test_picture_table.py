"""Tables of pictures (CSV): one or several labels each, parts, and what is said of wrong ones."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.data.csv_file import MAX_TABLE_BYTES
from netdsl.data.picture_table import read_table
from netdsl.data.pictures import Pictures, write_picture
from netdsl.data.samples import Samples
from netdsl.data.sources import SOURCES, load
from netdsl.errors import NetError
from netdsl.signature import BoundCall

PICTURES = ("a.png", "b.png", "c.png", "sub/d.png", "e.png", "f.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(PICTURES):
        write_picture(found / name, np.full((4, 4, 3), 40 * i, np.uint8))
    (found / "bad.png").write_bytes(b"\x89PNG but no picture")
    return found


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(samples: Samples | None) -> list[str]:
    assert samples is not None
    assert isinstance(samples.images, Pictures)
    return list(samples.images.names)


@pytest.mark.parametrize(
    "text",
    [
        "image,ant,bee\na.png,1,0\nb.png,1,1\nsub/d.png,0,0\n",
        "image,ant,bee\r\na.png,1.0,0.0\r\n./b.png,TRUE,True\r\n\r\nsub/d.png,False,0\r\n",
        "file,labels\na.png,ant\nb.png,bee ant\nsub/d.png,\n",
        '\ufeff"file", Labels\na.png,ant|\nb.png, ant | bee\nsub/d.png,',
        "x,LABELS,split\na.png,ant;,train\nb.png,bee;ant,Training\nsub/d.png,,TRAIN\n",
    ],
)
def test_several_labels_are_columns_or_one_column(folder: Path, text: str) -> None:
    dataset = read_table(write(folder, text), folder)
    assert dataset.classes == ("ant", "bee")
    assert names(dataset.train) == ["a.png", "b.png", "sub/d.png"]
    assert dataset.train.is_multi_label
    assert dataset.train.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert dataset.validation is dataset.read_test is None


def test_one_label_and_parts(folder: Path) -> None:
    text = (
        "image,split,label\na.png,train,red ant\nb.png,val,bee\nc.png,test,bee\n"
        "sub/d.png,train,bee\ne.png,dev,red ant\n"
    )
    dataset = read_table(write(folder, text), folder)
    assert dataset.classes == ("bee", "red ant")
    assert names(dataset.train) == ["a.png", "sub/d.png"]
    assert dataset.train.labels.tolist() == [1, 0]
    assert not dataset.train.is_multi_label
    assert names(dataset.validation) == ["b.png", "e.png"]
    assert dataset.read_test is not None
    assert names(dataset.read_test()) == ["c.png"]


_TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters="|;"), min_size=1
)


@settings(max_examples=30)
@given(st.lists(_TEXT, min_size=2, max_size=5, unique=True), st.data(), st.sampled_from("|; "))
def test_what_is_written_is_read(
    folder: Path, classes: list[str], data: st.DataObject, separator: str
) -> None:
    """Any names of classes and any labels, as columns of 0 and 1 and as lists of names."""
    sets = st.lists(st.sampled_from(classes), unique=True)
    labels = [set(data.draw(sets)) for _ in PICTURES[:-1]] + [set(classes)]
    listed = io.StringIO()
    csv.writer(listed).writerows(
        [["image", "labels"], *zip(PICTURES, map(separator.join, labels), strict=True)]
    )
    found = read_table(write(folder, listed.getvalue()), folder)
    assert [{found.classes[i] for i in np.flatnonzero(x)} for x in found.train.labels] == labels
    flags = io.StringIO()
    rows = [
        [p, *(int(c in x) for c in found.classes)] for p, x in zip(PICTURES, labels, strict=True)
    ]
    csv.writer(flags).writerows([["image", *(f"x{c}" for c in found.classes)], *rows])
    again = read_table(write(folder, flags.getvalue()), folder)
    assert again.classes == tuple(f"x{c}" for c in found.classes)
    assert again.train.labels.tolist() == found.train.labels.tolist()


@pytest.mark.parametrize(
    ("text", "place", "complaint"),
    [
        ("", "", "labels.csv is empty"),
        ("\n , \n", "", "labels.csv is empty"),
        ("image,label\n", ":1:1", "has no rows below the header"),
        ("a.png,ant\nb.png,bee\n", ":1:1", "names the picture a.png, not columns"),
        ("image;label\na.png;ant\n", ":1:1", "separated by semicolons instead of commas"),
        ("image\tlabel\na.png\tant\n", ":1:1", "separated by tabs instead of commas"),
        ("image\na.png\n", ":1:1", "no column of labels"),
        (",image,label\n0,a.png,ant\n", ":1:1", "column 1 has no name.*index=False"),
        ("image,ant,ant\na.png,1,0\n", ":1:1", "two columns are called `ant`"),
        ("label,image\nant,a.png\n", ":1:1", "first column is `label`"),
        ("image,species\na.png,ant\n", ":1:1", "not clear what the column `species` contains"),
        ("image,label,age\na.png,ant,3\n", ":1:1", "cannot have the column age"),
        ("image,label,labels\na.png,x,y\n", ":1:1", "cannot have the column labels"),
        (
            "image,label\na.png,ant\nb.png\n",
            ":3:1",
            "this row has 1 cell, but the header has 2.*empty",
        ),
        (
            "image,label\na.png,ant\nb.png,a,b\n",
            ":3:1",
            "3 cells, but the header has 2.*quote a cell",
        ),
        ("image,label\na.png,ant\nb.png,\n", ":3:1", "no label"),
        ("image,label\na.png,ant\n\nb.png,ant\n", "", "the classes in .* are ant alone"),
        ("image,labels\na.png,\nb.png,\n", "", "the classes in .* are none"),
        ("image,ant,bee\na.png,1,0\nb.png,1,2\n", ":3:1", "`bee` is `2`, neither 0 nor 1"),
        ("image,ant,bee\na.png,1,\n", ":2:1", "`bee` is ``, neither 0 nor 1"),
        ("image,label\na.png,x\nb.png,y\n./a.png,y\n", ":4:1", "a.png already appears on line 2"),
        ("image,label\n,x\n", ":2:1", "does not name a picture"),
        ("image,label\n/etc/a.png,x\n", ":2:1", "not in the folder of the pictures"),
        ("image,label\nsub/../../a.png,x\n", ":2:1", "not in the folder of the pictures"),
        ("image,label,split\na.png,x,holdout\n", ":2:1", "`split` is `holdout`"),
        ("image,label,split\na.png,x,val\nb.png,y,val\n", "", "no training pictures"),
        ('image,label\na.png,"x\nb.png,y\n', ":3:1", "not valid CSV"),
        (b"image,label\na.png,caf\xe9\n", "", "not UTF-8 text: line 2 has the byte 0xe9"),
        ("image,label\na.png,x\n".encode("utf-16"), "", "not UTF-8 text: line 1"),
        ("image,label\na,x\nb,y\n", "", "write names with their extension: a.png"),
        ("image,label\nx.png,x\ny.png,y\n", "", "2 pictures to train on, but none.*`images` in"),
        (b" " * (MAX_TABLE_BYTES + 1), "", "more than 64,000,000 bytes"),
    ],
)
def test_wrong_tables_say_where_and_why(
    folder: Path, text: str | bytes, place: str, complaint: str
) -> None:
    with pytest.raises(NetError, match="(?s)" + complaint) as e:
        read_table(write(folder, text), folder)
    assert f"labels.csv{place}" in str(e.value)


def chosen(**arguments: Any) -> BoundCall:
    return BoundCall("csv", SOURCES["csv"], arguments)


def test_missing_and_bad_pictures_are_named_or_skipped(folder: Path) -> None:
    write(folder, "image,label\na.png,x\ngone.png,y\nb.png,y\nbad.png,x\n")
    with pytest.raises(NetError, match=r"(?s)no picture .*gone.png.*bad.png.*on_bad_picture") as e:
        load(chosen(path="labels.csv", images=None), str(folder))
    assert "restore it, or remove its row" in str(e.value)
    dataset = load(chosen(path="labels.csv", images=None), str(folder), skip_bad_pictures=True)
    assert names(dataset.train) == ["a.png", "b.png"]
    assert len(dataset.picture_errors) == 2


def test_table_and_pictures_are_looked_up_in_the_data_folder(folder: Path, tmp_path: Path) -> None:
    write(folder, "image,label\nd.png,x\n")
    (folder / "y.csv").write_text("image,label\nd.png,x\nnone.png,y\n")
    with pytest.raises(NetError, match=r"there is no file .*x.csv"):
        load(chosen(path="x.csv", images=None), str(folder))
    with pytest.raises(NetError, match=r"there is no folder .*nowhere"):
        load(chosen(path="labels.csv", images="nowhere"), str(folder))
    for path in ("y.csv", "elsewhere/y.csv", str(tmp_path / "other" / "y.csv")):
        dataset = load(chosen(path=path, images="sub"), str(folder), skip_bad_pictures=True)
        assert names(dataset.train) == ["d.png"]
