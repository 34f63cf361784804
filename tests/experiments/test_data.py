"""Real digits from the package, MNIST from files, and errors that help."""

import gzip
import hashlib
import io
import struct
import tarfile

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


@pytest.mark.slow
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


def test_mnist_is_read_from_idx_files(tmp_path):
    files = mnist_like()
    for name, array in files.items():
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
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
    with pytest.raises(SystemExit, match=r"(?s)SHA-256 is .*expected .*yourself"):
        data.load_mnist(folder, mirrors=(f"{mirror.as_uri()}/",))
    assert not folder.exists()


def test_without_a_network_it_says_what_to_do(tmp_path):
    with pytest.raises(
        SystemExit, match=r"(?s)not be downloaded.*Put it there yourself"
    ):
        data.load_mnist(tmp_path, mirrors=("file:///nowhere/",))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bbroken", b"\0\0\x08\x03\0\0"])
def test_a_damaged_file_is_named(tmp_path, content):
    name = next(iter(data.MNIST_FILES))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=f"{name} is damaged"):
        data.load_mnist(tmp_path, mirrors=())


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """The archive as it is published, but of four images a file, and what is in it."""
    monkeypatch.setattr(data, "CIFAR_IMAGES", 4)
    rng = np.random.default_rng(0)
    content, arrays = io.BytesIO(), {}
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in data.CIFAR_FILES:
            images = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
            labels = rng.integers(0, 10, 4).astype(np.uint8)
            planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
            (tmp_path / name).write_bytes(
                np.hstack([labels[:, None], planes]).tobytes()
            )
            tar.add(tmp_path / name, f"{data.CIFAR_FOLDER}/{name}")
            arrays[name] = images, labels
    return content.getvalue(), arrays


def assert_is_cifar(read, arrays):
    images, labels = zip(*(arrays[name] for name in data.CIFAR_FILES[:5]))
    assert read.train.images.dtype == np.float32
    np.testing.assert_allclose(
        read.train.images * data.CIFAR_STD + data.CIFAR_MEAN,
        np.concatenate(images) / 255,
        atol=1e-6,
    )
    np.testing.assert_array_equal(read.train.labels, np.concatenate(labels))
    np.testing.assert_array_equal(read.test.labels, arrays[data.CIFAR_FILES[5]][1])
    assert read.test.images.shape == (4, 32, 32, 3)


def test_cifar10_is_downloaded_once_and_read_from_its_archive(
    cifar, tmp_path, monkeypatch
):
    content, arrays = cifar
    mirror, target = tmp_path / "mirror", tmp_path / "target"
    mirror.mkdir()
    (mirror / data.CIFAR_ARCHIVE).write_bytes(content)
    address = (f"{mirror.as_uri()}/",)
    with pytest.raises(SystemExit, match=r"(?s)SHA-256 is .*--data synthetic"):
        data.load_cifar10(target, address)
    assert not target.exists()
    monkeypatch.setattr(data, "CIFAR_SHA256", hashlib.sha256(content).hexdigest())
    assert_is_cifar(data.load_cifar10(target, address), arrays)
    assert_is_cifar(data.load("cifar10", target), arrays)


def flipped(content):
    """With another bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: c[:-1], flipped]
)
def test_a_damaged_archive_is_named(cifar, tmp_path, damage):
    target = tmp_path / "target"
    target.mkdir()
    (target / data.CIFAR_ARCHIVE).write_bytes(damage(cifar[0]))
    with pytest.raises(SystemExit, match=f"{data.CIFAR_ARCHIVE} is damaged"):
        data.load_cifar10(target, mirrors=())
    name, array = next(iter(mnist_like().items()))
    (target / name).write_bytes(damage(gzip.compress(idx(array))))
    with pytest.raises(SystemExit, match=f"{name} is damaged"):
        data.load_mnist(target, mirrors=())


def test_the_synthetic_set_is_normal_and_can_be_told_apart():
    made = data.load("synthetic")
    assert made.train.images.shape == (4000, 32, 32, 3)
    assert made.test.images.shape == (1000, 32, 32, 3)
    assert made.train.images.dtype == np.float32
    assert abs(made.train.images.mean()) < 0.05
    assert abs(made.train.images.std() - 1) < 0.05
    assert set(made.test.labels) == set(range(10))
    again = data.make_synthetic()
    np.testing.assert_array_equal(made.test.images, again.test.images)
    # By the nearest mean image alone, which chance has right one time in ten.
    means = np.stack(
        [made.train.images[made.train.labels == c].mean(0) for c in range(10)]
    )
    guesses = np.einsum("nijk,cijk->nc", made.test.images, means).argmax(1)
    assert np.mean(guesses == made.test.labels) > 0.6
