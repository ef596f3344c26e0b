"""Files of data sets: what is read of them, what is said of wrong ones, how they are fetched."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.data import cifar
from netdsl.data.cifar import RECORD, read_batches
from netdsl.data.download import Remote, fetch
from netdsl.data.npz import read_arrays
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
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
        (record(1, 0, 0, 0) + record(10, 0, 0, 0), "gives image 1 the label 10 of 10"),
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
    np.savez(tmp_path / "y.npz", images=np.asfortranarray(GOOD["images"][..., 0]), labels=[1] * 4)
    dataset = read_arrays(tmp_path / "y.npz")
    assert dataset.train.images.shape == (4, 5, 6, 1)
    assert dataset.read_test is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": np.zeros(3, int)}, "4 images and 3 labels"),
        ({"labels": np.zeros(4)}, "not one whole number"),
        ({"labels": np.zeros((4, 10), int)}, "not one whole number"),
        ({"labels": np.array([0, 1, -1, 0])}, "the label -1"),
        ({"labels": np.array([0, 1, 10**9, 0])}, "the label 1000000000"),
        ({"labels": None}, "no array `labels`"),
        ({"images": np.zeros((4, 5, 6, 3))}, "float64"),
        ({"images": np.zeros((4, 90), np.uint8)}, "4x90 uint8"),
        ({"images": np.zeros((0, 5, 6), np.uint8), "labels": np.zeros(0, int)}, "holds no images"),
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


def test_a_file_that_promises_too_much_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    import zipfile

    def npy(shape: tuple[int, ...]) -> bytes:
        out = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        return out.getvalue() + b"abc"

    for shape in ((10**12,), (100,), (2**62, 2**62)):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as z:
            z.writestr("images.npy", npy(shape))
        with pytest.raises(NetError, match=r"damaged|other than"):
            read_arrays(tmp_path / "x.npz")
    for damaged in (b"{'descr': ((", b"(" * 60):  # a header that is cut short as Python
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as z:
            size = len(damaged).to_bytes(2, "little")
            z.writestr("images.npy", b"\x93NUMPY\x01\x00" + size + damaged)
        with pytest.raises(NetError, match="or damaged"):
            read_arrays(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(NetError, match=r"no \.npz file"):
        read_arrays(tmp_path / "x.npz")
    with pytest.raises(NetError, match="there is no file"):
        read_arrays(tmp_path / "y.npz")


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server on this machine: its address, and what it answers by path."""
    files: dict[str, Any] = {"asked": []}

    class Handler(BaseHTTPRequestHandler):
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
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", files
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_file_is_fetched_once_and_only_if_it_is_the_right_one(
    tmp_path: Path, server: tuple[str, dict[str, Any]]
) -> None:
    url, files = server
    content = b"digits" * 1000
    right = hashlib.sha256(content).hexdigest()
    files["/a.bin"] = content
    for _ in range(2):
        assert fetch(Remote(f"{url}/a.bin", right), tmp_path).read_bytes() == content
    assert files["asked"] == ["/a.bin"]
    files["/b.bin"] = b"an error page of a proxy"
    with pytest.raises(NetError, match="not the one expected"):
        fetch(Remote(f"{url}/b.bin", right), tmp_path)
    with pytest.raises(NetError, match="Not Found"):
        fetch(Remote(f"{url}/c.bin", right), tmp_path)
    files["length"] = len(content) + 10
    files["/d.bin"] = content
    with pytest.raises(NetError, match=r"d\.bin"):
        fetch(Remote(f"{url}/d.bin", hashlib.sha256(content + b"x" * 10).hexdigest()), tmp_path)
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
    for name, content in zip(mnist.NAMES, contents, strict=True):
        files[f"/tiny/{name}"] = content
        sums.append(hashlib.sha256(content).hexdigest())
    source = mnist.idx_source("tiny", tuple("0123456789"), "", "http://nowhere", tuple(sums))
    for _ in range(2):
        assert len(source.load(None, path=None).train) == 2
    assert len(files["asked"]) == 4
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in (*cifar.BATCHES, cifar.TEST):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = RECORD
            tar.addfile(info, io.BytesIO(record(1, 2, 3, 4)))
        info = tarfile.TarInfo("../../outside.bin")
        tar.addfile(info, io.BytesIO(b""))
    files[f"/cifar10/{cifar.ARCHIVE}"] = out.getvalue()
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(out.getvalue()).hexdigest())
    dataset = SOURCES["cifar10"].load(None, path=None)
    assert len(dataset.train) == 5
    assert dataset.read_test is not None
    assert not list(tmp_path.parent.glob("outside*"))


def test_images_of_a_wrong_size_name_their_file(tmp_path: Path) -> None:
    from netdsl.language.parse import parse
    from netdsl.language.program import program
    from netdsl.train.job import prepare

    np.savez(tmp_path / "x.npz", **GOOD)
    path = str(tmp_path / "x.npz")
    text = f'net a {{ input(5x5x3); fc(4) }}\ndata {{ source = arrays("{path}") }}\ntrain {{ }}'
    with pytest.raises(NetError) as e:
        prepare(program(parse(text)), None)
    assert f"the images of {path} are 5x6x3, the net wants 5x5x3" in e.value.render()
    text = text.replace("5x5x3", "5x6x3").replace("fc(4)", "fc(3)")
    with pytest.raises(NetError, match="the data has 4 classes, the net gives 3"):
        prepare(program(parse(text)), None)
