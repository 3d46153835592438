"""Data sets: what they hold, where their files come from, and what happens to missing, truncated, altered and hostile ones."""

from __future__ import annotations

import errno
import gc
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch

from lr_env.files import FileFormatError
from lr_env.tasks import Data, datasets
from lr_env.tasks.datasets import DATASETS, SOURCES, Source, is_available, read_verified

ROOT = Path(__file__).parent.parent
SHARED_DATA = os.environ.get("LR_ENV_DATA")
TEXT = b"To be, or not to be, that is the question:\n" * 40


class Server(ThreadingHTTPServer):
    """A web server of some contents by path.

    Attributes:
        contents: Bytes by path.
        missing_bytes: How much of each content is never sent.
        barrier: Whom each request waits for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.missing_bytes = 0
        self.barrier: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.barrier is not None:
            self.server.barrier.wait(120)
        content = self.server.contents.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.missing_bytes])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folder, empty; ``$LR_ENV_DATA`` is not set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LR_ENV_DATA", raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    return tmp_path / "cache" / "lr_env"


@pytest.fixture
def offline_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def store(folder: Path, name: str, files: dict[str, bytes]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / name / file).write_bytes(content)


def load(dataset: Callable[..., Data], **arguments: Any) -> Data:
    """The data set, read again, and forgotten."""
    return dataset.__wrapped__(**arguments)  # type: ignore[attr-defined]  # functools.cache's


def failure(kind: type[Exception]) -> tuple[str, int | None]:
    """Message and error number with which loading tiny Shakespeare fails."""
    message, number = "", None
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # pooch leaves it to garbage collection to close a connection
        try:
            load(datasets.tiny_shakespeare)
        except kind as error:
            message, number = str(error), getattr(error, "errno", None)
        gc.collect()
    assert message, "It was loaded."
    return message, number


def use_files(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], url: str = "http://unused.invalid/") -> None:
    """Makes these the original files of the data set."""
    monkeypatch.setitem(SOURCES, name, Source(url, {file: sha256(content) for file, content in files.items()}))


@pytest.fixture
def text_from_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of a shorter tiny Shakespeare."""
    use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT}, server.url)
    server.contents["/input.txt"] = TEXT
    return server


def parts_of(data: Data) -> list[Any]:
    return [data.train, data.validation, data.test]


def test_every_data_set_has_a_name_and_every_source_known_hashes() -> None:
    assert list(DATASETS) == sorted(DATASETS)
    assert set(SOURCES) <= set(DATASETS)
    for source in SOURCES.values():
        assert source.url.startswith("http") and source.url.endswith("/")
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.hashes.values())


MADE: dict[str, Any] = {
    "clusters": lambda: sklearn.datasets.make_classification(2000, 20, n_informative=8, n_redundant=4, n_classes=5, flip_y=0.0, random_state=0),
    "friedman": lambda: sklearn.datasets.make_friedman1(1000, noise=4.0, random_state=0),
}


@pytest.mark.parametrize("name", ["breast-cancer", "clusters", "diabetes", "digits", "friedman", "iris", "wine"])
def test_bundled_data_equal_a_naive_reference(name: str) -> None:
    if name in MADE:
        inputs, targets = MADE[name]()
    else:
        inputs, targets = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")(return_X_y=True)
    is_regression = name in ("diabetes", "friedman")
    order = np.random.default_rng(0).permutation(len(inputs))
    num_held_out = int(0.15 * len(inputs))
    train, validation, test = order[: -2 * num_held_out], order[-2 * num_held_out : -num_held_out], order[-num_held_out:]
    inputs = inputs / 16 if name == "digits" else (inputs - inputs[train].mean(0)) / inputs[train].std(0, ddof=1)
    if is_regression:
        targets = ((targets - targets[train].mean()) / targets[train].std(ddof=1))[:, None]
    for part, members in zip(parts_of(DATASETS[name]()), (train, validation, test), strict=True):
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == (torch.float32 if is_regression else torch.int64)
        np.testing.assert_allclose(part.inputs.numpy(), inputs[members], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(part.targets.numpy(), targets[members], rtol=1e-4, atol=1e-5)
        assert part.targets.shape == targets[members].shape


def test_a_data_set_is_read_once() -> None:
    assert DATASETS["wine"]() is DATASETS["wine"]()


def idx_file(values: np.ndarray, sizes: tuple[int, ...] | None = None, magic: bytes | None = None) -> bytes:
    start = magic or bytes([0, 0, 8, values.ndim])
    return gzip.compress(start + b"".join(size.to_bytes(4, "big") for size in sizes or values.shape) + values.astype(np.uint8).tobytes())


def small_images(num_train: int, num_test: int, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    images, test_images = (generator.integers(0, 256, (number, *shape), np.uint8) for number in (num_train, num_test))
    labels, test_labels = (generator.integers(0, 10, number, np.uint8) for number in (num_train, num_test))
    images[0, 0, :2], test_images[0, 0, :2] = (0, 255) if len(shape) == 1 else 0, 255
    return images, labels, test_images, test_labels


def idx_files(images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte.gz": idx_file(images),
        "train-labels-idx1-ubyte.gz": idx_file(labels),
        "t10k-images-idx3-ubyte.gz": idx_file(test_images),
        "t10k-labels-idx1-ubyte.gz": idx_file(test_labels),
    }


def check_images(data: Data, images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray, num_held_out: int) -> None:
    """Each example is where it belongs, once, with its label. ``images`` ``(M, C, H, W)`` are scaled as the data are."""
    assert all(part.inputs.dtype == torch.float32 and part.targets.dtype == torch.int64 for part in parts_of(data))
    assert (len(data.train), len(data.validation)) == (len(images) - num_held_out, num_held_out)
    np.testing.assert_allclose(data.test.inputs.numpy(), test_images, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.test.targets.numpy(), test_labels)
    loaded = np.concatenate([data.train.inputs.numpy(), data.validation.inputs.numpy()])
    loaded_labels = np.concatenate([data.train.targets.numpy(), data.validation.targets.numpy()])
    distances = np.abs(loaded[:, None] - images[None]).reshape(len(images), len(images), -1).max(2)
    origin = distances.argmin(1)
    assert distances.min(1).max() < 1e-5
    assert sorted(origin) == list(range(len(images)))
    assert list(origin) != list(range(len(images)))
    np.testing.assert_array_equal(loaded_labels, labels[origin])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_images(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, labels, test_images, test_labels = small_images(30, 8, 28, 28)
    files = idx_files(images, labels, test_images, test_labels)
    use_files(monkeypatch, name, files)
    store(tmp_path, name, files)
    monkeypatch.setenv("LR_ENV_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "VALIDATION_IMAGES", 5)
    data = load(DATASETS[name])
    check_images(data, images[:, None] / 255, labels, test_images[:, None] / 255, test_labels, 5)
    assert torch.equal(load(DATASETS[name]).validation.inputs, data.validation.inputs)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (idx_file(np.zeros((4, 28, 28)), magic=bytes([0, 0, 9, 3])), ["must start with the bytes 0, 0, 8, 3", "[0, 0, 9, 3, "]),
        (idx_file(np.zeros(4)), ["must start with the bytes 0, 0, 8, 3", "[0, 0, 8, 1, "]),
        (gzip.compress(bytes([0, 0, 8, 3, 0])), ["must start with the bytes 0, 0, 8, 3 and 3 sizes", "[0, 0, 8, 3, 0]"]),
        (idx_file(np.zeros((4, 28, 28)), sizes=(5, 28, 28)), ["3,920 values", "[5, 28, 28]", "holds 3,136"]),
        (idx_file(np.zeros((4, 28, 28)), sizes=(3, 28, 28)), ["2,352 values", "holds 3,136"]),
    ],
    ids=["magic number", "other dimensions", "short header", "too short", "too long"],
)
def test_wrong_idx_files_are_refused(content: bytes, fragments: list[str], monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    files = idx_files(*small_images(6, 4, 28, 28)) | {"t10k-images-idx3-ubyte.gz": content}
    use_files(monkeypatch, "mnist", files)
    store(cache_folder, "mnist", files)
    with pytest.raises(FileFormatError) as error:
        load(datasets.mnist)
    for fragment in ["t10k-images-idx3-ubyte.gz", *fragments]:
        assert fragment in str(error.value)


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The bytes that Python 2.7 and NumPy 1 wrote for ``{"batch_label": str, "labels": list, "data": uint8 array (M, 3072), "filenames": list}``."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    data = images.reshape(len(images), -1)
    minus_one = b"J\xff\xff\xff\xff"
    data_type = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"|") + b"NNN" + minus_one + minus_one + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = integer(data.shape[0]) + integer(data.shape[1]) + b"\x86"
    array = empty + b"(K\x01" + shape + data_type + b"\x89" + text(data.tobytes()) + b"tb"
    label_list = b"](" + b"".join(map(integer, labels.tolist())) + b"e"
    names = b"](" + text(b"leptodactylus_pentadactylus_s_000004.png") * len(labels) + b"e"
    entries = [b"batch_label", b"training batch 1 of 5", b"labels", label_list, b"data", array, b"filenames", names]
    pairs = b"".join(text(key) + (text(value) if key == b"batch_label" else value) for key, value in zip(entries[::2], entries[1::2], strict=True))
    return b"\x80\x02}(" + pairs + b"u."


def modern_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return pickle.dumps({b"data": images.reshape(len(images), -1), b"labels": labels.tolist()}, protocol=4)


def cifar_archive(batches: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def use_cifar(monkeypatch: pytest.MonkeyPatch, folder: Path, batches: dict[str, bytes]) -> None:
    files = {"cifar-10-python.tar.gz": cifar_archive(batches)}
    use_files(monkeypatch, "cifar10", files)
    store(folder, "cifar10", files)


@pytest.mark.parametrize("write", [python2_batch, modern_batch])
def test_cifar10_in_its_original_format(write: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    images, labels, test_images, test_labels = small_images(40, 6, 3, 32, 32)
    batches = {f"data_batch_{number + 1}": write(images[8 * number :][:8], labels[8 * number :][:8]) for number in range(5)}
    use_cifar(monkeypatch, cache_folder, {**batches, "test_batch": write(test_images, test_labels)})
    monkeypatch.setattr(datasets, "VALIDATION_IMAGES", 4)
    data = load(datasets.cifar10)
    held_out = np.random.default_rng(datasets.SPLIT_SEED).permutation(40)[:4]
    train = np.delete(images, held_out, 0).astype(float)
    mean, deviation = train.mean((0, 2, 3))[:, None, None], train.std((0, 2, 3), ddof=1)[:, None, None]
    check_images(data, (images - mean) / deviation, labels, (test_images - mean) / deviation, test_labels, 4)
    assert torch.allclose(data.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)


class Command:
    """Its pickle runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_hostile_pickle_is_hostile(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Command(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused(protocol: int, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path) -> None:
    hostile = pickle.dumps({"data": Command(tmp_path / "ran"), "labels": []}, protocol=protocol)
    use_cifar(monkeypatch, cache_folder, {f"data_batch_{number}": hostile for number in range(1, 6)})
    with pytest.raises(FileFormatError, match=r"asks for \w+\.mkdir, but only NumPy arrays are allowed in it. Nothing was run"):
        load(datasets.cifar10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "names", ["numpy\nload", "numpy\nndarray.tofile", "builtins\neval", "numpy.core.multiarray\nscalar", "copyreg\n_reconstructor"]
)
def test_an_array_needs_no_other_names(names: str) -> None:
    with pytest.raises(FileFormatError, match="only NumPy arrays"):
        datasets._ArrayUnpickler(io.BytesIO(f"c{names}\n.".encode())).load()


@pytest.mark.parametrize("given", [True, False])
def test_nothing_is_unpickled_before_the_hash_matched(
    given: bool, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path, offline_url: str
) -> None:
    archive = cifar_archive({"data_batch_1": modern_batch(*small_images(8, 1, 3, 32, 32)[:2])})
    monkeypatch.setenv("LR_ENV_DATA", str(tmp_path))
    monkeypatch.setitem(SOURCES, "cifar10", Source(offline_url, SOURCES["cifar10"].hashes))
    store(tmp_path if given else cache_folder, "cifar10", {"cifar-10-python.tar.gz": archive})
    for opener in ("tarfile.open", "pickle.Unpickler"):
        monkeypatch.setattr(opener, None)
    monkeypatch.setattr(datasets, "_ArrayUnpickler", None)
    with pytest.raises(FileFormatError, match="truncated or altered"):
        load(datasets.cifar10)


@pytest.mark.parametrize("context", [1, 5, 32])
def test_tiny_shakespeare_equals_a_naive_reference(context: int, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT})
    store(cache_folder, "tinyshakespeare", {"input.txt": TEXT})
    data = load(datasets.tiny_shakespeare, context=context)
    text = TEXT.decode()
    vocabulary = sorted(set(text))
    bounds = [0, int(0.9 * len(text)), int(0.95 * len(text)), len(text)]
    for part, first, last in zip(parts_of(data), bounds, bounds[1:], strict=False):
        expected = [
            (text[start : start + context], text[start + 1 : start + context + 1])
            for start in range(first, last, context)
            if start + context + 1 <= last
        ]
        decoded = [tuple("".join(vocabulary[place] for place in row) for row in pair) for pair in zip(part.inputs, part.targets, strict=True)]
        assert decoded == expected
        assert part.inputs.dtype == part.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("context", "message"), [(0, "context must be an integer >= 1"), (1.5, "1.5 was given"), (500, "context must be at most 85")]
)
def test_wrong_contexts_are_refused(context: Any, message: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT})
    store(cache_folder, "tinyshakespeare", {"input.txt": TEXT})
    with pytest.raises(ValueError, match=message):
        load(datasets.tiny_shakespeare, context=context)


def test_lookup_order(text_from_server: Server, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("LR_ENV_DATA", str(tmp_path / "data"))
    assert not is_available("tinyshakespeare")
    assert read_verified("tinyshakespeare", "input.txt") == TEXT
    assert text_from_server.requests == ["/input.txt"]
    assert [path.name for path in (cache_folder / "tinyshakespeare").iterdir()] == ["input.txt"]
    assert is_available("tinyshakespeare")
    assert read_verified("tinyshakespeare", "input.txt") == TEXT
    assert text_from_server.requests == ["/input.txt"]
    # The cached file is not even looked at where the variable's folder holds one.
    store(tmp_path / "data", "tinyshakespeare", {"input.txt": TEXT})
    store(cache_folder, "tinyshakespeare", {"input.txt": b"altered"})
    assert read_verified("tinyshakespeare", "input.txt") == TEXT
    assert text_from_server.requests == ["/input.txt"]


def test_a_warm_cache_works_offline(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, offline_url: str) -> None:
    use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT}, offline_url)
    store(cache_folder, "tinyshakespeare", {"input.txt": TEXT})
    assert len(load(datasets.tiny_shakespeare).train) == (int(0.9 * len(TEXT)) - 1) // 32


@pytest.mark.parametrize("content", [TEXT[:-7], TEXT.replace(b"question", b"answer"), b""], ids=["truncated", "altered", "empty"])
def test_a_wrong_given_file_is_refused(content: bytes, text_from_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LR_ENV_DATA", str(tmp_path))
    store(tmp_path, "tinyshakespeare", {"input.txt": content})
    message, _ = failure(FileFormatError)
    path = tmp_path / "tinyshakespeare" / "input.txt"
    for fragment in [str(path), sha256(content), sha256(TEXT), f"Replace it by {text_from_server.url}input.txt, or delete it"]:
        assert fragment in message
    assert path.read_bytes() == content
    assert text_from_server.requests == []


@pytest.mark.parametrize("content", [TEXT[:-7], b""], ids=["truncated", "empty"])
def test_a_wrong_cached_file_is_downloaded_anew(content: bytes, text_from_server: Server, cache_folder: Path) -> None:
    store(cache_folder, "tinyshakespeare", {"input.txt": content})
    assert read_verified("tinyshakespeare", "input.txt") == TEXT
    assert (cache_folder / "tinyshakespeare" / "input.txt").read_bytes() == TEXT


def test_a_wrong_cached_file_is_an_error_offline(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, offline_url: str) -> None:
    use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT}, offline_url)
    store(cache_folder, "tinyshakespeare", {"input.txt": TEXT[:-7]})
    message, _ = failure(FileFormatError)
    path = cache_folder / "tinyshakespeare" / "input.txt"
    for fragment in [f"{path} is truncated or altered", sha256(TEXT[:-7]), sha256(TEXT), f"from {offline_url}input.txt failed", "LR_ENV_DATA"]:
        assert fragment in message
    assert path.read_bytes() == TEXT[:-7]


@pytest.mark.parametrize("reason", ["offline", "not found", "cut short"])
def test_a_failed_download_says_what_to_do(
    reason: str, text_from_server: Server, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, offline_url: str
) -> None:
    if reason == "offline":
        use_files(monkeypatch, "tinyshakespeare", {"input.txt": TEXT}, offline_url)
    elif reason == "not found":
        text_from_server.contents.clear()
    else:
        text_from_server.missing_bytes = 100
    message, _ = failure(FileNotFoundError)
    folder = cache_folder / "tinyshakespeare"
    url = SOURCES["tinyshakespeare"].url
    for fragment in [
        f"There is no file {folder / 'input.txt'}; it must have SHA-256 {sha256(TEXT)}",
        "'tinyshakespeare'",
        f"{url}input.txt",
        f"Put the file into {folder}",
        "LR_ENV_DATA",
    ]:
        assert fragment in message
    assert list(folder.iterdir()) == []


def test_another_content_from_the_server_is_refused(text_from_server: Server, cache_folder: Path) -> None:
    text_from_server.contents["/input.txt"] = b"<html>Sign in to this network</html>"
    message, _ = failure(FileFormatError)
    served = sha256(b"<html>Sign in to this network</html>")
    for fragment in [
        f"{text_from_server.url}input.txt",
        served,
        sha256(TEXT),
        "Try again later",
        str(cache_folder / "tinyshakespeare"),
        "LR_ENV_DATA",
    ]:
        assert fragment in message
    assert list((cache_folder / "tinyshakespeare").iterdir()) == []


class FullDisk(io.FileIO):
    """A file that takes 1,000 bytes."""

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > 1000:
            super().write(content[: 1000 - self.tell()])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.mark.parametrize("cached", [None, b"altered"])
def test_a_full_disk_leaves_no_partial_file(
    cached: bytes | None, text_from_server: Server, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    if cached is not None:
        store(cache_folder, "tinyshakespeare", {"input.txt": cached})
    opened = []

    def open_on_full_disk(path: str, mode: str) -> FullDisk:
        opened.append(path)
        return FullDisk(path, mode.replace("b", ""))

    monkeypatch.setattr("pooch.downloaders.open", open_on_full_disk, raising=False)
    message, number = failure(OSError)
    assert len(opened) == 1
    assert number == errno.ENOSPC
    folder = cache_folder / "tinyshakespeare"
    for fragment in ["No space left on device", "'tinyshakespeare'", str(folder), "Free some space there", "XDG_CACHE_HOME", "LR_ENV_DATA"]:
        assert fragment in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == ({} if cached is None else {"input.txt": cached})


def test_a_cache_folder_that_cannot_be_made(text_from_server: Server, cache_folder: Path) -> None:
    cache_folder.parent.write_bytes(b"a file, not a folder")
    message, _ = failure(OSError)
    for fragment in [f"could not be written to {cache_folder}", "Make that folder writable", "XDG_CACHE_HOME", "LR_ENV_DATA"]:
        assert fragment in message


def test_two_processes_at_once_do_not_corrupt_the_cache(text_from_server: Server, cache_folder: Path) -> None:
    content = np.random.default_rng(0).integers(97, 123, 3_000_000, np.uint8).tobytes()
    text_from_server.contents["/input.txt"] = content
    text_from_server.barrier = threading.Barrier(2)  # so that both download
    program = (
        "from lr_env.tasks import datasets\n"
        f"datasets.SOURCES['tinyshakespeare'] = datasets.Source({text_from_server.url!r}, {{'input.txt': {sha256(content)!r}}})\n"
        "print(datasets.tiny_shakespeare().train.inputs.sum().item())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    used = (int(0.9 * len(content)) - 1) // 32 * 32
    total = int(np.frombuffer(content, np.uint8)[:used].astype(int).sum()) - 97 * used
    assert [int(output) for output, _ in outputs] == [total, total]
    assert all(b"100%" in errors for _, errors in outputs)  # the progress bars
    assert len(text_from_server.requests) == 2
    assert {path.name: sha256(path.read_bytes()) for path in (cache_folder / "tinyshakespeare").iterdir()} == {"input.txt": sha256(content)}


def test_is_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_folder: Path) -> None:
    assert is_available("digits") and is_available("wine")
    assert not is_available("mnist")
    files = idx_files(*small_images(6, 4, 28, 28))
    store(cache_folder, "mnist", dict(list(files.items())[:2]))
    assert not is_available("mnist")
    monkeypatch.setenv("LR_ENV_DATA", str(tmp_path))
    store(tmp_path, "mnist", dict(list(files.items())[2:]))
    assert is_available("mnist")
    with pytest.raises(ValueError, match=r"Unknown data set 'mnits'. Did you mean 'mnist'") as error:
        is_available("mnits")
    assert "fashion-mnist" in str(error.value)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_original_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if SHARED_DATA is not None:
        monkeypatch.setenv("LR_ENV_DATA", SHARED_DATA)
    if not is_available(name):
        pytest.skip(f"$LR_ENV_DATA does not hold {name}")
    data = load(DATASETS[name])
    if name == "tinyshakespeare":
        assert [tuple(part.inputs.shape) for part in parts_of(data)] == [(31370, 32), (1742, 32), (1742, 32)]
        assert int(data.train.targets.max()) == 64
    else:
        shape, num_train = ((3, 32, 32), 45_000) if name == "cifar10" else ((1, 28, 28), 55_000)
        assert [tuple(part.inputs.shape) for part in parts_of(data)] == [(num_train, *shape), (5_000, *shape), (10_000, *shape)]
        assert data.test.targets.bincount().tolist() == [1_000] * 10 or name == "mnist"
        if name != "cifar10":
            assert all((part.inputs.min(), part.inputs.max()) == (0, 1) for part in parts_of(data))
    assert all(len(part.targets.unique()) >= 10 for part in parts_of(data))
