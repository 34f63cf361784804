"""Real digits from the package, MNIST from files, and errors that help."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from experiments import data


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(sizes=(5, 3)):
    rng = np.random.default_rng(0)
    contents = []
    for n in sizes:
        contents.append(rng.integers(0, 256, (n, 28, 28)).astype(np.uint8))
        contents.append(rng.integers(0, 10, n).astype(np.uint8))
    return dict(zip(data.MNIST_FILES, contents))


def test_the_small_set_is_5000_normalised_real_digits_of_all_classes():
    small = data.load_small()
    assert small.train.images.shape == (4000, 28, 28, 1)
    assert small.test.images.shape == (1000, 28, 28, 1)
    assert small.train.images.dtype == np.float32
    labels = np.concatenate([small.train.labels, small.test.labels])
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 500))
    assert np.bincount(small.test.labels).min() > 70
    assert abs(small.train.images.mean()) < 0.05
    assert abs(small.train.images.std() - 1) < 0.05
    again = data.load_small()
    np.testing.assert_array_equal(small.test.labels, again.test.labels)


@pytest.mark.parametrize("compressed", [True, False])
def test_mnist_is_read_from_idx_files(tmp_path, compressed):
    files = mnist_like()
    for name, array in files.items():
        content = gzip.compress(idx(array)) if compressed else idx(array)
        (tmp_path / (name if compressed else name[: -len(".gz")])).write_bytes(content)
    read = data.load_mnist(tmp_path, mirrors=())
    raw, labels = list(files.values())[:2]
    np.testing.assert_allclose(
        read.train.images[..., 0] * data.STD + data.MEAN, raw / 255, atol=1e-6
    )
    np.testing.assert_array_equal(read.train.labels, labels)
    assert read.test.images.shape == (3, 28, 28, 1)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder to download from, and the checksums of what is in it."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    checksums = {}
    for name, array in mnist_like().items():
        content = gzip.compress(idx(array))
        (folder / name).write_bytes(content)
        checksums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "MNIST_FILES", checksums)
    return folder


def test_absent_files_are_downloaded_once(tmp_path, mirror):
    folder = tmp_path / "data" / "mnist"
    url = f"{mirror.as_uri()}/"
    first = data.load_mnist(folder, mirrors=("file:///nowhere/", url))
    assert sorted(p.name for p in folder.iterdir()) == sorted(data.MNIST_FILES)
    second = data.load_mnist(folder, mirrors=())
    np.testing.assert_array_equal(first.test.images, second.test.images)


def test_a_download_with_another_checksum_is_refused(tmp_path, mirror):
    name = next(iter(data.MNIST_FILES))
    (mirror / name).write_bytes(b"something else")
    folder = tmp_path / "data"
    with pytest.raises(RuntimeError, match=r"(?s)SHA-256 is .*expected .*yourself"):
        data.load_mnist(folder, mirrors=(f"{mirror.as_uri()}/",))
    assert not folder.exists()


def test_without_a_network_it_says_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)not be downloaded.*Put the four"):
        data.load_mnist(tmp_path, mirrors=("file:///nowhere/",))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bbroken", b"\0\0\x08\x03\0\0"])
def test_a_damaged_file_is_named(tmp_path, content):
    name = next(iter(data.MNIST_FILES))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=f"{name} is damaged"):
        data.load_mnist(tmp_path, mirrors=())
