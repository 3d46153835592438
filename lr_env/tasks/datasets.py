"""Data sets as tensors: scikit-learn's bundled ones, and larger ones read from files whose hashes are known.

A file is looked for in ``$LR_ENV_DATA/<data set>/``, then in the user's cache folder, and is else downloaded to the latter. Its hash is
checked whenever it is read. Each data set is read once per process.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import math
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import requests
import torch
from torch import Tensor

from lr_env.checks import positive_integer, unknown_name
from lr_env.files import FileFormatError
from lr_env.tasks.task import Data, Split

DATA_VARIABLE = "LR_ENV_DATA"
"""Environment variable that names a folder with one folder per data set."""

VALIDATION_IMAGES = 5_000
"""Training images of MNIST, Fashion-MNIST and CIFAR-10 that are held out as validation data, the same ones always."""

SPLIT_SEED = 0


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        url: Where they are downloaded from, with a slash at the end.
        hashes: SHA-256, by file name.
    """

    url: str
    hashes: Mapping[str, str]


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    ),
    "tinyshakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    ),
}
"""Files by data set; a data set's name is also the name of its folder."""


@cache
def digits() -> Data:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8×8 pixels, scaled to [0, 1], 10 classes."""
    from sklearn.datasets import load_digits  # here, as it takes as long to import as PyTorch

    images, labels = load_digits(return_X_y=True)
    return _examples(images / 16.0, labels).divide()


@cache
def breast_cancer() -> Data:
    """scikit-learn's bundled breast cancer data: 569 tumours, 30 measurements, standardised by the training split, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    return _standardised_inputs(_examples(*load_breast_cancer(return_X_y=True)).divide())


@cache
def wine() -> Data:
    """scikit-learn's bundled wine data: 178 wines, 13 measurements, standardised by the training split, 3 classes."""
    from sklearn.datasets import load_wine

    return _standardised_inputs(_examples(*load_wine(return_X_y=True)).divide())


@cache
def diabetes() -> Data:
    """scikit-learn's bundled diabetes data: 442 patients, 10 measurements, one target ``(M, 1)``, both standardised by the training split."""
    from sklearn.datasets import load_diabetes

    return _regression(*load_diabetes(return_X_y=True))


@cache
def friedman() -> Data:
    """1,000 examples of scikit-learn's ``make_friedman1`` (Friedman, 1991): 10 numbers, of which 5 matter, one target ``(M, 1)``.

    Both are standardised by the training split. Noise leaves some two thirds of the target's variance to be explained.
    """
    from sklearn.datasets import make_friedman1

    return _regression(*make_friedman1(1000, n_features=10, noise=4.0, random_state=SPLIT_SEED))


@cache
def iris() -> Data:
    """scikit-learn's bundled iris data: 150 flowers, 4 measurements, standardised by the training split, 3 classes."""
    from sklearn.datasets import load_iris

    return _standardised_inputs(_examples(*load_iris(return_X_y=True)).divide())


@cache
def clusters() -> Data:
    """2,000 examples of scikit-learn's ``make_classification`` (Guyon, 2003): 20 numbers, of which 12 matter, 5 classes of 2 clusters each.

    The numbers are standardised by the training split.
    """
    from sklearn.datasets import make_classification

    return _standardised_inputs(
        _examples(*make_classification(2000, 20, n_informative=8, n_redundant=4, n_classes=5, flip_y=0.0, random_state=SPLIT_SEED)).divide()
    )


@cache
def mnist() -> Data:
    """MNIST's handwritten digits: float32 images ``(M, 1, 28, 28)`` in [0, 1], 10 classes, 55,000 + 5,000 + 10,000 examples.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded. The message says what to do, here and below.
        FileFormatError: If a file is truncated or altered.
        OSError: If it cannot be stored, as on a full disk.
    """
    return _idx_images("mnist")


@cache
def fashion_mnist() -> Data:
    """Fashion-MNIST's clothes: float32 images ``(M, 1, 28, 28)`` in [0, 1], 10 classes, 55,000 + 5,000 + 10,000 examples.

    Raises:
        OSError, FileFormatError: As :func:`mnist` does.
    """
    return _idx_images("fashion-mnist")


@cache
def cifar10() -> Data:
    """CIFAR-10's photographs: float32 images ``(M, 3, 32, 32)``, channels standardised by the training split, 45,000 + 5,000 + 10,000 examples.

    Raises:
        OSError, FileFormatError: As :func:`mnist` does.
    """
    (file,) = SOURCES["cifar10"].hashes
    with tarfile.open(fileobj=io.BytesIO(read_verified("cifar10", file)), mode="r:gz") as archive:
        batches = (_cifar_batch(archive, f"data_batch_{number}") for number in range(1, 6))
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        test_images, test_labels = _cifar_batch(archive, "test_batch")
    data = _image_data(images, labels, test_images, test_labels)
    deviation, mean = torch.std_mean(data.train.inputs, (0, 2, 3), keepdim=True)
    for part in (data.train, data.validation, data.test):
        part.inputs.sub_(mean).div_(deviation)  # in place, as they are large
    return data


@cache
def tiny_shakespeare(context: int = 32) -> Data:
    """Characters of Shakespeare's plays, from their first 90 %, next 5 % and last 5 %, cut into windows that don't overlap.

    Args:
        context: Characters per window, T.

    Returns:
        Inputs ``(M, T)`` and targets ``(M, T)``, the inputs' next characters: int64 places in the alphabetical list of all 65 characters.

    Raises:
        OSError, FileFormatError: As :func:`mnist` does.
        ValueError: If ``context`` is below 1 or too long for a window in each split.
    """
    context = positive_integer("context", context)
    text = np.frombuffer(read_verified("tinyshakespeare", "input.txt"), np.uint8)
    characters = torch.from_numpy(np.unique(text, return_inverse=True)[1].astype(np.int64))
    first, second = int(0.9 * len(text)), int(0.95 * len(text))
    parts = characters[:first], characters[first:second], characters[second:]
    longest = min(map(len, parts)) - 1  # as a window's targets end one character later
    if context > longest:
        raise ValueError(f"context must be at most {longest}, so that each split holds a window, but {context} was given.")
    return Data(*(_windows(part, context) for part in parts))


DATASETS: Mapping[str, Callable[[], Data]] = {
    "breast-cancer": breast_cancer,
    "cifar10": cifar10,
    "clusters": clusters,
    "diabetes": diabetes,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "friedman": friedman,
    "iris": iris,
    "mnist": mnist,
    "tinyshakespeare": tiny_shakespeare,
    "wine": wine,
}
"""Data sets by name."""


def is_available(name: str) -> bool:
    """Whether the files of the data set of this name are here, so that nothing would be downloaded. Their hashes are not checked.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return name not in SOURCES or all(any(path.is_file() for path in _places(name, file)) for file in SOURCES[name].hashes)


def read_verified(name: str, file: str) -> bytes:
    """The content of a data set's file, downloaded first where it is not here.

    Args:
        name: A data set of :data:`SOURCES`.
        file: One of its files.

    Raises:
        FileNotFoundError: If it is missing and cannot be downloaded.
        FileFormatError: If it is truncated or altered and cannot be downloaded anew. A file under ``$LR_ENV_DATA`` is never replaced.
        OSError: If it cannot be stored, as on a full disk. No partial file is left.
    """
    *given, cached = _places(name, file)
    source = SOURCES[name].url + file
    if given and given[0].is_file():
        try:
            return _verified(given[0], SOURCES[name].hashes[file])
        except FileFormatError as error:
            raise FileFormatError(f"{error} Replace it by {source}, or delete it to let it be downloaded.") from None
    problem: Exception = FileNotFoundError(f"There is no file {cached}; it must have SHA-256 {SOURCES[name].hashes[file]}.")
    if cached.is_file():
        try:
            return _verified(cached, SOURCES[name].hashes[file])
        except FileFormatError as error:
            problem = error
    _download(name, file, cached, problem)
    return _verified(cached, SOURCES[name].hashes[file])


def _places(name: str, file: str) -> list[Path]:
    """Where a data set's file may be: first under ``$LR_ENV_DATA``, if that is set, and last in the user's cache folder."""
    folders = [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []
    return [folder / name / file for folder in (*folders, pooch.os_cache("lr_env"))]


def _verified(path: Path, expected: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise FileFormatError(f"{path} is truncated or altered: its {len(content):,} bytes have SHA-256 {found}, but {expected} is needed.")
    return content


def _download(name: str, file: str, target: Path, problem: Exception) -> None:
    """Downloads a file beside ``target``, checks it and moves it there, or raises an error that starts with the ``problem`` to be solved."""
    url = SOURCES[name].url + file
    failure = f"{problem} Downloading it for data set {name!r} from {url} failed"
    advice = f"Put the file into {target.parent}, or into a folder {name} of a folder that the environment variable {DATA_VARIABLE} names."
    try:
        pooch.retrieve(url, f"sha256:{SOURCES[name].hashes[file]}", target.name, target.parent, progressbar=True)
    except requests.RequestException as error:
        raise type(problem)(f"{failure}: {error}. {advice}") from None  # the libraries' own would fill two screens
    except ValueError as error:  # another hash
        raise FileFormatError(f"{failure}, as what came is truncated or altered: {error} Try again later. {advice}") from error
    except OSError as error:
        remedy = "Free some space there" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else "Make that folder writable"
        message = f"{failure}, as it could not be written to {target.parent}: {error}. {remedy}, or choose another with XDG_CACHE_HOME. {advice}"
        raise OSError(error.errno, message) from error


def _examples(inputs: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def _each_split(data: Data, change: Callable[[Split], Split]) -> Data:
    return Data(*(change(part) for part in (data.train, data.validation, data.test)))


def _standardised_inputs(data: Data) -> Data:
    mean, deviation = data.train.inputs.mean(0), data.train.inputs.std(0)
    return _each_split(data, lambda part: Split((part.inputs - mean) / deviation, part.targets))


def _regression(inputs: np.ndarray, targets: np.ndarray) -> Data:
    """Inputs and the one target, ``(M,)``, both standardised by the training split."""
    data = _standardised_inputs(Split(*(torch.from_numpy(values.astype(np.float32)) for values in (inputs, targets[:, None]))).divide())
    mean, deviation = data.train.targets.mean(0), data.train.targets.std(0)
    return _each_split(data, lambda part: Split(part.inputs, (part.targets - mean) / deviation))


def _image_split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images.astype(np.float32)).div_(255), torch.from_numpy(labels.astype(np.int64)))


def _image_data(images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray) -> Data:
    """uint8 images ``(M, C, H, W)``, scaled to [0, 1]; some of the training images, drawn at random, are held out as validation data."""
    held_out, kept = np.split(np.random.default_rng(SPLIT_SEED).permutation(len(labels)), [VALIDATION_IMAGES])
    return Data(_image_split(images[kept], labels[kept]), _image_split(images[held_out], labels[held_out]), _image_split(test_images, test_labels))


def _idx_images(name: str) -> Data:
    files = [(f"{part}-{kind}-ubyte.gz", dimensions) for part in ("train", "t10k") for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1))]
    images, labels, test_images, test_labels = (_idx_array(read_verified(name, file), file, dimensions) for file, dimensions in files)
    return _image_data(images[:, None], labels, test_images[:, None], test_labels)


def _idx_array(content: bytes, file: str, dimensions: int) -> np.ndarray:
    """The uint8 array in a compressed idx file: a magic number (0, 0, 8, dimensions), the sizes as big-endian 32-bit integers, the values."""
    values = gzip.decompress(content)
    start = 4 * (1 + dimensions)
    if len(values) < start or values[:4] != bytes([0, 0, 8, dimensions]):
        raise FileFormatError(
            f"{file} must start with the bytes 0, 0, 8, {dimensions} and {dimensions} sizes, but starts with {list(values[:start])}."
        )
    shape = np.frombuffer(values[4:start], ">u4").tolist()
    if len(values) - start != math.prod(shape):
        raise FileFormatError(f"{file} must hold {math.prod(shape):,} values, as its sizes are {shape}, but holds {len(values) - start:,}.")
    return np.frombuffer(values, np.uint8, offset=start).reshape(shape)


def _make_dtype(name: bytes | str, align: int, copy: int) -> np.dtype[Any]:
    return np.dtype(name.decode() if isinstance(name, bytes) else name, align=bool(align), copy=bool(copy))


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows nothing but NumPy arrays, so that no pickle can run code."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _known: Mapping[tuple[str, str], object] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _make_dtype,  # NumPy 1 stored its flags as integers, of which NumPy 2.4 warns
    }

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """What a pickle calls by this name.

        Raises:
            FileFormatError: If arrays don't need it.
        """
        try:
            return self._known[module_name, global_name]
        except KeyError:
            raise FileFormatError(
                f"A pickle asks for {module_name}.{global_name}, but only NumPy arrays are allowed in it. Nothing was run. Delete its file."
            ) from None


def _cifar_batch(archive: tarfile.TarFile, batch: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(M, 3, 32, 32)`` of uint8 and labels ``(M,)`` of one of CIFAR-10's batches, which Python 2 pickled."""
    file = archive.extractfile(f"cifar-10-batches-py/{batch}")
    assert file is not None  # as the archive's hash is known
    content: dict[bytes, Any] = _ArrayUnpickler(file, encoding="bytes").load()
    return content[b"data"].reshape(-1, 3, 32, 32), np.array(content[b"labels"])


def _windows(characters: Tensor, context: int) -> Split:
    num_windows = (len(characters) - 1) // context
    return Split(*(characters[start : start + num_windows * context].view(num_windows, context) for start in (0, 1)))
