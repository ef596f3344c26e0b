"""Files of data sets: what is read of them, what is said of wrong ones, how they are fetched."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.data import cifar
from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.cifar import RECORD_BYTES, read_batches
from netdsl.data.download import RemoteFile, fetch
from netdsl.data.idx import read_idx, read_idx_shape
from netdsl.data.npz import read_arrays
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from tests.processes import TIME_LIMIT
from tests.test_data import idx


def record(label: int, red: int, green: int, blue: int) -> bytes:
    return bytes([label]) + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


def test_cifar_batches_are_planes_of_colour(tmp_path: Path) -> None:
    plane = bytes(range(256)) * 4
    (tmp_path / "data_batch_1.bin").write_bytes(record(3, 1, 2, 3) + b"\x09" + plane * 3)
    found = read_batches([tmp_path / "data_batch_1.bin"], 10)
    assert found.labels.tolist() == [3, 9]
    assert found.images[0, 5, 7].tolist() == [1, 2, 3]
    assert found.images[1, 1, 2].tolist() == [34] * 3
    dataset = SOURCES["cifar10"].load(tmp_path, path=None)
    assert dataset.read_test is None
    (tmp_path / "test_batch.bin").write_bytes(record(1, 0, 0, 0))
    dataset = SOURCES["cifar10"].load(None, path=str(tmp_path))
    assert dataset.read_test is not None
    assert len(dataset.read_test()) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 bytes"),
        (record(1, 0, 0, 0)[:-1], "3,072 bytes"),
        (record(1, 0, 0, 0) + b"x", "3,074 bytes"),
        (record(1, 0, 0, 0) + record(10, 0, 0, 0), "gives image 1 the label 10"),
    ],
)
def test_wrong_cifar_batches_are_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(NetError, match=complaint) as e:
        SOURCES["cifar10"].load(tmp_path, path=None)
    assert "data_batch_3.bin" in str(e.value)


GOOD: dict[str, Any] = {
    "images": np.zeros((4, 5, 6, 3), np.uint8),
    "labels": np.array([0, 1, 2, 1]),
    "test_images": np.ones((2, 5, 6, 3), np.uint8),
    "test_labels": np.array([3, 0], np.uint8),
}


def test_arrays_are_read(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **GOOD)
        dataset = SOURCES["arrays"].load(tmp_path, path="x.npz")
        assert dataset.classes == ("0", "1", "2", "3")
        assert dataset.train.images.shape == (4, 5, 6, 3)
        assert dataset.train.labels.dtype == np.int32
        assert dataset.read_test is not None
        assert dataset.read_test().labels.tolist() == [3, 0]
    np.savez(tmp_path / "z.npz", **GOOD, classes=["ant", "bee", "wasp", "fly"])
    assert read_arrays(tmp_path / "z.npz").classes == ("ant", "bee", "wasp", "fly")
    np.savez(tmp_path / "y.npz", images=np.asfortranarray(GOOD["images"][..., 0]), labels=[1] * 4)
    dataset = read_arrays(tmp_path / "y.npz")
    assert dataset.train.images.shape == (4, 5, 6, 1)
    assert dataset.read_test is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": np.zeros(3, int)}, "4 images and 3 labels"),
        ({"labels": np.zeros(4)}, "not one integer"),
        ({"labels": np.zeros((4, 10), int)}, "`labels` in .* has several labels"),
        ({"labels": np.zeros((4, 1), int)}, "not one integer"),
        ({"labels": np.zeros((4, 2, 2), int)}, "not one integer"),
        ({"labels": np.full((4, 2), 2)}, "contains 2 for image 0 and class 0"),
        ({"classes": np.array(["a"])}, "contains the label 3, but there are 1 `classes`"),
        ({"classes": np.array(["a", "a"])}, "two of `classes` in .* are called `a`"),
        ({"classes": np.array([["a", "b"]])}, "1x2, not a list of names"),
        ({"classes": np.array([0, 1])}, "not text"),
        ({"labels": np.array([0, 1, -1, 0])}, "the label -1"),
        ({"labels": np.array([0, 1, 10**9, 0])}, "the label 1000000000"),
        ({"labels": None}, "no array `labels`"),
        ({"images": np.zeros((4, 5, 6, 3))}, "float64"),
        ({"images": np.zeros((4, 90), np.uint8)}, "4x90 uint8"),
        (
            {"images": np.zeros((0, 5, 6), np.uint8), "labels": np.zeros(0, int)},
            "contains no images",
        ),
        ({"images": np.array([object()] * 4)}, "not numbers"),
        ({"test_images": np.ones((2, 7, 7, 3), np.uint8)}, "5x6x3 and 7x7x3"),
        ({"test_labels": None}, "no array `test_labels`"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{k: v for k, v in (GOOD | change).items() if v is not None})
    with pytest.raises(NetError, match=complaint) as e:
        read_arrays(path)
    assert "x.npz" in str(e.value)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_several_labels_an_image_are_read(tmp_path: Path, dtype: type) -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype)
    images = {"images": GOOD["images"], "test_images": GOOD["test_images"]}
    np.savez(tmp_path / "x.npz", **images, labels=labels, test_labels=labels[:2])
    dataset = read_arrays(tmp_path / "x.npz")
    assert dataset.classes == ("0", "1", "2")
    assert dataset.train.is_multi_label
    assert dataset.train.labels.dtype == np.uint8
    assert dataset.train.labels.tolist() == labels.tolist()
    assert dataset.read_test is not None
    assert dataset.read_test().labels.tolist() == labels[:2].tolist()
    assert dataset.train.count_by_class(3).tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", list(GOOD))
def test_two_arrays_of_a_name_are_refused(tmp_path: Path, name: str) -> None:
    """Which of them is meant? Readers of archives differ."""
    path = tmp_path / "x.npz"
    np.savez(path, **GOOD)
    with zipfile.ZipFile(path) as z:
        content = z.read(f"{name}.npy")
    with zipfile.ZipFile(path, "a") as z, pytest.warns(UserWarning, match="Duplicate name"):
        z.writestr(f"{name}.npy", content)
    with pytest.raises(NetError, match=f"x.npz contains 2 arrays `{name}`"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("labels", "test_labels", "complaint"),
    [
        ([0, 2], [0], "(?s)are 0, 2, and none is 1;.*return_inverse=True"),
        ([1, 2, 3, 4], [1], "(?s)are 1, 2, 3, 4, and none is 0;.*`labels - 1`"),
        ([0, 1], [3], "(?s)are 0, 1, and none is 2, 3;.*label of the test images"),
        ([0, 99_999], [0], "(?s)none is 1, 2, .*, 10, and 99,988 more.*return_inverse=True"),
    ],
)
def test_classes_without_images_are_refused(
    tmp_path: Path, netdsl: Any, labels: list[int], test_labels: list[int], complaint: str
) -> None:
    """Those that only the labels count: 1 to 10 are eleven classes."""
    images = np.zeros((4 * len(labels), 8, 8), np.uint8)
    test = {"test_images": images[: len(test_labels)], "test_labels": test_labels}
    np.savez(tmp_path / "x.npz", images=images, labels=labels * 4, **test)
    path = tmp_path / "a.net"
    path.write_text(
        "net a { input(8x8x1); fc(3) }\n"
        f'data {{ source = arrays("{tmp_path}/x.npz"), batch = 2 }}\ntrain {{ epochs = 1 }}\n'
    )
    for more in ((), ("--dry-run",)):
        code, _, err = netdsl("train", str(path), "--device", "reference", *more)
        assert code == 2
        assert re.search(complaint, err), err


def npy(shape: tuple[int, ...], content: bytes = b"abc") -> bytes:
    out = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + content


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as z:
        for name, content in members.items():
            z.writestr(f"{name}.npy", content)
    return path


LABELS = npy((4,), bytes(4))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (npy((4, 10**6, 10**6)), "it is damaged"),
        (npy((4, 5, 5)), "does not have the 100 bytes that its header declares"),
        (npy((4, 2**62, 2**62)), "it is damaged"),
        (npy((4, 1, 1), bytes(9)), "does not have the 4 bytes that its header declares"),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr': ((", "`images` has the header"),
        (b"\x93NUMPY\x01\x00\x3c\x00" + b"(" * 60, "`images` has the header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 10**7, "`images` has the header"),
        (b"\x93NUMPY\x07\x00", "does not start like an array"),
        (b"", "does not start like an array"),
        (npy((4, 1, 1)).replace(b"'|u1'", b"'|x9'"), "or is damaged"),
    ],
)
def test_headers_are_held_against_the_file_before_anything_is_read(
    tmp_path: Path, images: bytes, complaint: str
) -> None:
    with pytest.raises(NetError, match=complaint) as e:
        read_arrays(archive(tmp_path / "x.npz", images=images, labels=LABELS))
    assert "x.npz" in str(e.value)


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"PK no zip", b"PK\5\6" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(NetError, match=r"not an \.npz file|contains no array"):
            read_arrays(path)
    with pytest.raises(NetError, match="there is no file"):
        SOURCES["arrays"].load(None, path=str(tmp_path / "y.npz"))
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(NetError, match=r"pipe\.npz is a named pipe"):
        read_arrays(tmp_path / "pipe.npz")
    with pytest.raises(NetError, match="is a device"):
        read_arrays(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_LZMA, "LZMA"), (zipfile.ZIP_BZIP2, "bzip2")]
)
def test_other_compression_is_told(tmp_path: Path, method: int, name: str) -> None:
    path = archive(tmp_path / "x.npz", method, images=npy((4, 1, 1), bytes(4)), labels=LABELS)
    with pytest.raises(NetError, match=f"compressed by {name}, which NumPy does not write") as e:
        read_arrays(path)
    assert "np.savez_compressed" in e.value.render()


def test_an_encrypted_member_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=npy((4, 1, 1), bytes(4)), labels=LABELS)
    content = bytearray(path.read_bytes())
    for begin in (b"PK\1\2", b"PK\3\4"):
        content[content.index(begin) + (8 if begin[2] == 1 else 6)] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(NetError, match="is encrypted"):
        read_arrays(path)


def test_a_directory_of_many_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as z:
        for i in range(30_000):
            z.writestr(f"{i:05}", b"")
    with pytest.raises(NetError, match="a directory of 1,"):
        read_arrays(path)


def test_arrays_of_version_2_and_other_orders_are_read(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(4, 3, 2))
    out = io.BytesIO()
    np.lib.format.write_array(out, values, version=(2, 0))
    found = read_arrays(archive(tmp_path / "x.npz", images=out.getvalue(), labels=LABELS)).train
    np.testing.assert_array_equal(found.images[..., 0], values)


# ---- small files that grow


def zeros(path: Path, shape: tuple[int, ...]) -> Path:
    """An archive of black images, of which each member is compressed a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for name, size in (("images", shape), ("labels", shape[:1])):
            with z.open(f"{name}.npy", "w", force_zip64=True) as f:
                f.write(npy(size, b""))
                left = int(np.prod(size))
                while left:
                    left -= f.write(bytes(min(left, 1 << 24)))
    return path


def peak(read: Any) -> int:
    """The most memory that is allocated while something is read."""
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(NetError) as e:
            read()
        assert "`NETDSL_MEMORY=" in e.value.render()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_archive_takes_no_large_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zeros(tmp_path / "x.npz", (300, 1000, 1000))
    with pytest.raises(NetError, match=r"x\.npz, unpacked, would take 300\.0 MB of memory out of"):
        read_arrays(path)
    assert peak(lambda: read_arrays(path)) < 20_000_000
    monkeypatch.setenv("NETDSL_MEMORY", "100MB")
    with pytest.raises(NetError, match=r"300\.0 MB of memory, and the limit is 100\.0 MB"):
        read_arrays(path)
    monkeypatch.setenv("NETDSL_MEMORY", "0.4 GB")
    assert len(read_arrays(path).train) == 300
    for odd in ("much", "-1", "0", "1e9 GB", "9" * 400):
        monkeypatch.setenv("NETDSL_MEMORY", odd)
        with pytest.raises(NetError, match="is not a size"):
            read_arrays(path)


def test_a_small_idx_file_takes_no_large_memory(tmp_path: Path) -> None:
    for count, name in ((500_000, "images"), (10**6, "more"), (4_000_000_000, "most")):
        with gzip.open(tmp_path / f"{name}.gz", "wb") as f:
            f.write(idx((count, 28, 28), b""))
            f.write(bytes(1 << 22))
        for read in (read_idx, read_idx_shape):
            told = peak(lambda name=name, read=read: read(tmp_path, name, 3))
            assert told < 20_000_000
    with gzip.open(tmp_path / "tail.gz", "wb", 1) as f:  # what the header does not speak of
        f.write(idx((3,)) + bytes(1 << 26))
    with pytest.raises(NetError, match="more values than its header declares"):
        read_idx(tmp_path, "tail", 1)


@pytest.mark.parametrize("count", [3, 10**6, 2**32 - 1])
def test_a_plain_idx_file_is_held_against_its_own_length(tmp_path: Path, count: int) -> None:
    """More memory would not help."""
    (tmp_path / "images").write_bytes(idx((count, 28, 28), bytes(784)))
    for read in (read_idx, read_idx_shape):
        with pytest.raises(NetError, match="fewer values than its header declares") as e:
            read(tmp_path, "images", 3)
        assert "NETDSL_MEMORY" not in e.value.render()


def test_pipes_and_devices_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels")
    (tmp_path / "zero.gz").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "data_batch_1.bin")
    for read in (
        lambda: read_idx(tmp_path, "labels", 1),
        lambda: read_idx(tmp_path, "zero", 1),
        lambda: SOURCES["cifar10"].load(tmp_path, path=None),
    ):
        with pytest.raises(NetError, match=r"is a (named pipe|device), not a file"):
            read()


def test_a_large_batch_file_is_refused_by_its_length(tmp_path: Path) -> None:
    with (tmp_path / "data_batch_1.bin").open("wb") as f:
        f.truncate(RECORD_BYTES * 10**6)
    assert peak(lambda: SOURCES["cifar10"].load(tmp_path, path=None)) < 1_000_000


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server on this machine: its address, and what it answers by path."""
    files: dict[str, Any] = {"asked": []}

    class Handler(BaseHTTPRequestHandler):
        timeout = TIME_LIMIT

        def do_GET(self) -> None:
            files["asked"].append(self.path)
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(files.get("length", len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", files
    http.shutdown()
    thread.join(TIME_LIMIT)
    http.server_close()


def test_a_file_is_fetched_once_and_only_if_it_is_the_right_one(
    tmp_path: Path, server: tuple[str, dict[str, Any]]
) -> None:
    url, files = server
    content = b"digits" * 1000
    right = hashlib.sha256(content).hexdigest()
    files["/a.bin"] = content
    for _ in range(2):
        assert fetch(RemoteFile(f"{url}/a.bin", right), tmp_path).read_bytes() == content
    assert files["asked"] == ["/a.bin"]
    files["/b.bin"] = b"an error page of a proxy"
    with pytest.raises(NetError, match="other than the expected one"):
        fetch(RemoteFile(f"{url}/b.bin", right), tmp_path)
    with pytest.raises(NetError, match="Not Found"):
        fetch(RemoteFile(f"{url}/c.bin", right), tmp_path)
    files["length"] = len(content) + 10
    files["/d.bin"] = content
    with pytest.raises(NetError, match=r"d\.bin"):
        fetch(RemoteFile(f"{url}/d.bin", hashlib.sha256(content + b"x" * 10).hexdigest()), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_without_a_network_it_says_which_files_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    for name in ("mnist", "fashion_mnist", "cifar10"):
        with pytest.raises(NetError) as e:
            SOURCES[name].load(None, path=None)
        told = e.value.render()
        assert "cannot fetch http://127.0.0.1:9/" in told
        assert f"into {tmp_path / name}, or give their folder with `--data DIR`" in told


def test_data_sets_are_fetched_into_the_cache(
    tmp_path: Path, server: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from netdsl.data import mnist

    url, files = server
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    monkeypatch.setenv("NETDSL_MIRROR", url)
    contents = [gzip.compress(idx((2, 28, 28))), gzip.compress(idx((2,)))] * 2
    sums = []
    for name, content in zip(mnist.FILE_NAMES, contents, strict=True):
        files[f"/tiny/{name}"] = content
        sums.append(hashlib.sha256(content).hexdigest())
    source = mnist.idx_source("tiny", tuple("0123456789"), "", "http://nowhere", tuple(sums))
    for _ in range(2):
        assert len(source.load(None, path=None).train) == 2
    assert len(files["asked"]) == 4
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in (*cifar.TRAIN_BATCHES, cifar.TEST_BATCH):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = RECORD_BYTES
            tar.addfile(info, io.BytesIO(record(1, 2, 3, 4)))
        info = tarfile.TarInfo("../../outside.bin")
        tar.addfile(info, io.BytesIO(b""))
    files[f"/cifar10/{cifar.ARCHIVE}"] = out.getvalue()
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(out.getvalue()).hexdigest())
    dataset = SOURCES["cifar10"].load(None, path=None)
    assert len(dataset.train) == 5
    assert dataset.read_test is not None
    assert not list(tmp_path.parent.glob("outside*"))


@pytest.mark.parametrize("shape", ["64", "8x8", "1x1x64"])
@pytest.mark.parametrize("augment", sorted(AUGMENTATIONS))
def test_a_net_of_another_shape_than_images_have_is_refused(shape: str, augment: str) -> None:
    from netdsl.language.parse import parse
    from netdsl.language.program import build_program
    from netdsl.training.checks import check_recipe

    data = f"data {{ source = digits, augment = {augment} }}"
    text = f"net a {{ input({shape}); fc(10) }}\n{data}\ntrain {{ }}"
    with pytest.raises(NetError):
        check_recipe(build_program(parse(text)), None)


def test_images_of_a_wrong_size_name_their_file(tmp_path: Path) -> None:
    from netdsl.language.parse import parse
    from netdsl.language.program import build_program
    from netdsl.training.job import prepare_job

    np.savez(tmp_path / "x.npz", **GOOD | {"labels": np.arange(4)})
    path = str(tmp_path / "x.npz")
    text = f'net a {{ input(5x5x3); fc(4) }}\ndata {{ source = arrays("{path}") }}\ntrain {{ }}'
    with pytest.raises(NetError) as e:
        prepare_job(build_program(parse(text)), None)
    assert f"the images of {path} are 5x6x3, but the net needs 5x5x3" in e.value.render()
    text = text.replace("5x5x3", "5x6x3").replace("fc(4)", "fc(3)")
    with pytest.raises(NetError, match="the data set has 4 classes, but the net gives 3"):
        prepare_job(build_program(parse(text)), None)
