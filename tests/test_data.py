"""Loaders read small files that the tests write, and download from a local server; a damaged file
never passes.
"""

import functools
import gzip
import hashlib
import http.server
import io
import struct
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments.common import data
from experiments.common.download import SOURCES, DataUnavailableError, Source


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte.gz": rng.integers(0, 256, (6, 4, 5)),
        "train-labels-idx1-ubyte.gz": np.arange(6),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (3, 4, 5)),
        "t10k-labels-idx1-ubyte.gz": np.arange(3),
    }


@pytest.fixture(scope="module")
def published(arrays, tmp_path_factory):
    """A folder with the four idx files."""
    folder = tmp_path_factory.mktemp("published")
    for name, array in arrays.items():
        (folder / name).write_bytes(idx_bytes(array))
    return folder


@pytest.fixture(scope="module")
def source(published):
    """The folder behind a local HTTP server, with its true checksums."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(published))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    md5 = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(published.iterdir())
    }
    yield Source(f"http://127.0.0.1:{server.server_port}/", md5)
    server.shutdown()
    server.server_close()
    thread.join()


def check_small_mnist(images, arrays):
    assert images.image_shape == (4, 5)
    np.testing.assert_array_equal(
        np.round(images.train_x * 255), arrays["train-images-idx3-ubyte.gz"].reshape(6, 20)
    )
    np.testing.assert_array_equal(
        np.round(images.test_x * 255), arrays["t10k-images-idx3-ubyte.gz"].reshape(3, 20)
    )
    np.testing.assert_array_equal(images.train_label, np.arange(6))
    np.testing.assert_array_equal(images.test_label, np.arange(3))


def test_files_in_the_folder_or_its_subfolder_are_read(published, arrays, tmp_path):
    check_small_mnist(data.load("mnist", published, own_files=True), arrays)
    (tmp_path / "fashion_mnist").symlink_to(published)
    check_small_mnist(data.load("fashion_mnist", tmp_path, own_files=True), arrays)


def test_unzipped_files_are_read(source, published, arrays, tmp_path):
    unzipped = {path.stem: gzip.decompress(path.read_bytes()) for path in published.iterdir()}
    for name, content in unzipped.items():
        (tmp_path / name).write_bytes(content)
    known = {name: hashlib.md5(content).hexdigest() for name, content in unzipped.items()}
    for sources, own_files in (
        ({"mnist": source._replace(unzipped=known)}, False),
        (SOURCES, True),
    ):
        check_small_mnist(
            data.load("mnist", tmp_path, sources=sources, own_files=own_files), arrays
        )
    with pytest.raises(ValueError, match="not known of an unzipped copy.*--own_files"):
        data.load("mnist", tmp_path, sources={"mnist": source})


def test_well_formed_files_that_are_not_the_published_ones_are_refused(published, source, tmp_path):
    """Another data set in the place of MNIST would give its numbers MNIST's name."""
    with pytest.raises(ValueError, match="f68b3c2dcbeaaa9fbdd348bbdeb94873.*--own_files"):
        data.load("mnist", published)
    for path in published.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.array([0, 1, 1])))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz is not the published file"):
        data.load("mnist", tmp_path, sources={"mnist": source})
    mine = data.load("mnist", tmp_path, sources={"mnist": source}, own_files=True)
    np.testing.assert_array_equal(mine.test_label, [0, 1, 1])


def test_missing_files_are_downloaded_once_and_verified(source, arrays, tmp_path):
    check_small_mnist(data.load("mnist", tmp_path, sources={"mnist": source}), arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(source.md5)
    # Nothing listens: the second time must not ask
    nowhere = source._replace(url="http://127.0.0.1:9/")
    check_small_mnist(data.load("mnist", tmp_path, sources={"mnist": nowhere}), arrays)


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(source, tmp_path):
    wrong = source._replace(md5=source.md5 | {"train-images-idx3-ubyte.gz": "0" * 32})
    with pytest.raises(DataUnavailableError, match="hash"):
        data.load("mnist", tmp_path, sources={"mnist": wrong})
    assert not (tmp_path / "train-images-idx3-ubyte.gz").exists()


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path):
    offline = Source(
        "http://127.0.0.1:9/",
        {"train-images-idx3-ubyte.gz": "1" * 32, "t10k-labels-idx1-ubyte.gz": "2" * 32},
    )
    with pytest.raises(DataUnavailableError) as caught:
        data.load("mnist", tmp_path, sources={"mnist": offline})
    message = str(caught.value)
    for part in (
        "http://127.0.0.1:9/train-images-idx3-ubyte.gz   md5 111",
        str(tmp_path),
        "--data=mnist --data_dir=",
    ):
        assert part in message


def flipped(raw, place):
    """One bit of a file the other way round."""
    return raw[:place] + bytes([raw[place] ^ 16]) + raw[place + 1 :]


def headed(*sizes, content=b""):
    """An idx file with these sizes."""
    return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}i", *sizes) + content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-8], "cut short"),
        (lambda raw: gzip.decompress(raw)[:-1], "header says"),
        (lambda raw: b"<html>not found</html>", "no idx file"),
        (lambda raw: gzip.decompress(raw)[:9], "no idx file"),
        (lambda raw: b"", "no idx file"),
        (lambda raw: b"\0\0\x08", "no idx file"),
        (lambda raw: flipped(raw, 20), "is damaged: its gzip stream cannot be read"),
        (lambda raw: flipped(raw, len(raw) - 6), "is damaged: its gzip stream cannot be read"),
        (lambda raw: flipped(raw, 2), "is damaged: its gzip stream cannot be read"),
        (lambda raw: headed(-2, -3, content=b"abcdef"), r"holds nothing.*\[-2, -3\]"),
        (lambda raw: headed(0, 4, 5), r"holds nothing.*\[0, 4, 5\]"),
        (lambda raw: headed(content=b"a"), r"holds nothing.*\[\]"),
    ],
    ids=[
        "gzip_cut",
        "data_cut",
        "html",
        "header_cut",
        "empty",
        "three_bytes",
        "bit_in_the_stream",
        "bit_in_the_checksum",
        "bit_in_the_method",
        "negative_sizes",
        "no_images",
        "no_dimensions",
    ],
)
def test_a_damaged_file_is_named(damage, message, arrays, tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(idx_bytes(arrays["train-images-idx3-ubyte.gz"])))
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte.gz", np.arange(5), r"\(6, 4, 5\) and labels \(5,\).*belong"),
        ("train-labels-idx1-ubyte.gz", np.zeros((6, 2)), "belong together"),
        ("train-images-idx3-ubyte.gz", np.zeros((6, 20)), "belong together"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((3, 5, 4)), r"\(4, 5\).*\(5, 4\) pixels"),
    ],
    ids=["fewer_labels", "labels_2d", "images_2d", "other_size"],
)
def test_files_of_different_sets_are_refused(name, content, message, published, tmp_path):
    for path in published.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(idx_bytes(content))
    with pytest.raises(ValueError, match=message):
        data.load("mnist", tmp_path, own_files=True)


def drawing():
    """The bytes of a .png with ink on the left."""
    paper = np.full((105, 105), True)
    paper[:, : 105 // 2] = False
    file = io.BytesIO()
    Image.fromarray(paper).save(file, "png")
    return file.getvalue()


def archive(path, *names, content=None):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, drawing() if content is None else content)


def test_omniglot_zips_are_read_as_ink(tmp_path):
    for name, alphabets in (
        ("images_background", ("Greek", "Latin")),
        ("images_evaluation", ("Tifinagh",)),
    ):
        names = (f"{name}/{alphabet}/character01/0001_01.png" for alphabet in alphabets)
        archive(tmp_path / f"{name}.zip", *names)
    images = data.load("omniglot", tmp_path, own_files=True)
    assert images.train_x.shape == (2, 784) and images.test_x.shape == (1, 784)
    np.testing.assert_array_equal(images.train_label, [0, 1])
    picture = images.train_x[0].reshape(28, 28)
    assert np.all(picture[:, :13] == 1.0) and np.all(picture[:, 15:] == 0.0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK no archive"), "is damaged"),
        (lambda path: archive(path, "a/Greek/c/1.png", content=b"no image"), "is damaged"),
        (lambda path: archive(path, "a/Greek/c/1.png", content=drawing()[:60]), "is damaged"),
        (lambda path: archive(path, "1.png"), "not Omniglot's"),
        (lambda path: archive(path, "read.me"), "not Omniglot's"),
    ],
    ids=["no_zip", "no_image", "image_cut", "no_alphabets", "no_pictures"],
)
def test_a_damaged_omniglot_is_named(write, message, tmp_path):
    for name in ("images_background", "images_evaluation"):
        write(tmp_path / f"{name}.zip")
    with pytest.raises(ValueError, match=f"images_background.zip.*{message}"):
        data.load("omniglot", tmp_path, own_files=True)


def test_digits_ship_with_the_packages_and_split_the_same_every_time():
    first, second = data.load("digits"), data.load("digits")
    assert first.train_x.shape == (1437, 64) and first.test_x.shape == (360, 64)
    assert first.train_x.min() == 0.0 and first.train_x.max() == 1.0
    np.testing.assert_array_equal(first.test_x, second.test_x)
    both = np.concatenate([first.train_x, first.test_x])
    assert len(np.unique(both, axis=0)) == 1797  # no image is in both


def test_static_binarization_is_one_draw_with_grey_as_probability():
    grey = np.tile(np.float32([0.0, 0.25, 1.0]), (4000, 1))
    drawn = data.sampled(0)(grey)
    np.testing.assert_array_equal(drawn, data.sampled(0)(grey))
    assert np.any(drawn != data.sampled(1)(grey))
    mean = drawn.mean(axis=0)
    assert mean[0] == 0.0 and mean[2] == 1.0
    assert abs(mean[1] - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    # Planted: another binarization
    assert abs(data.threshold(grey).mean(axis=0)[1] - 0.25) > 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="omniglot"):
        data.load("cifar")
