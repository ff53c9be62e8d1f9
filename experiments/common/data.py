"""Image data sets as arrays: loading and binarizing. Images are [N, P] floats in [0, 1], 0 is
paper. Where the files come from is in `download`.

`digits` ships with scikit-learn. `mnist`, `fashion_mnist` (idx files, IDX format of LeCun et al.)
and `omniglot` (Lake et al. 2015, two zip files) are read from a folder, and downloaded into it if
they are not there.
"""

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image  # comes with matplotlib
from sklearn.datasets import load_digits

from experiments.common.download import SOURCES, Source, fetch

GREY_SCALE = 255.0


class Dataset(NamedTuple):
    """Images and their classes, split into train and test the same way every time.

    Attributes:
      train_x: [N, P] float32 in [0, 1].
      train_label: [N] int.
      test_x: [M, P].
      test_label: [M].
      image_shape: rows, columns: P is their product.
      grey_step: spacing of the grey values.
    """

    train_x: np.ndarray
    train_label: np.ndarray
    test_x: np.ndarray
    test_label: np.ndarray
    image_shape: tuple[int, int]
    grey_step: float


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    own_files: bool = False,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """The data set `name`: "digits", or one of `sources`.

    Args:
      data_dir: folder with the files, or with a subfolder `name` that has them; missing files are
        downloaded there. Default: the user's cache folder.
      own_files: take files that are already there whatever their checksum.

    Raises:
      DataUnavailableError: offline, or a download that does not match its checksum.
      ValueError: a file is damaged, is not the published one, or does not belong with the others.
    """
    if name == "digits":
        return _digits()
    if name not in sources:
        raise ValueError(f"no data set {name!r}: there are {['digits', *sources]}.")
    files = fetch(name, sources[name], data_dir, own_files=own_files)
    return _omniglot(files) if name == "omniglot" else _idx_pairs(files)


def read_idx(path: str | Path) -> np.ndarray:
    """An array of unsigned bytes from an idx file, gzipped or not: a magic number, sizes as
    big-endian int32, the bytes.

    Raises:
      ValueError: another magic number, sizes that are not positive, or a length that the header
        contradicts (a download cut short).
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            what = "cut short" if isinstance(error, EOFError) else "damaged"
            raise ValueError(
                f"{path} is {what}: its gzip stream cannot be read ({error}). Delete it and fetch "
                "it again."
            ) from error
    if raw[:3] != b"\x00\x00\x08" or len(raw) < 4 or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(
            f"{path} is no idx file of unsigned bytes: it starts with {raw[:4]!r}, not 00 00 08. "
            f"Fetch it again."
        )
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4).tolist()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"{path} holds nothing: its header says that its sizes are {shape}. Delete it and "
            "fetch it again."
        )
    start = 4 + 4 * raw[3]
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} has {len(raw) - start} bytes of data, but its header says {shape}: "
            f"the file is damaged. "
            "Delete it and fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _digits() -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 17 grey values: 1,437 to train, 360 to test,
    always the same.
    """
    bunch: Any = load_digits()
    x, label = bunch.data, bunch.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1437], order[1437:]
    x = (x / 16.0).astype(np.float32)
    return Dataset(x[train], label[train], x[test], label[test], (8, 8), 1.0 / 16.0)


def _idx_pairs(files: Mapping[str, Path]) -> Dataset:
    train, train_label, test, test_label = (read_idx(path) for path in _in_order(files))
    for images, labels in ((train, train_label), (test, test_label)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"images {images.shape} and labels {labels.shape} in {_folder(files)} do not "
                "belong together: images are [N, rows, columns], labels [N]. Fetch the four files "
                "of one data set."
            )
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"training images of {train.shape[1:]} and test images of {test.shape[1:]} pixels in "
            f"{_folder(files)} do not belong together. Fetch the four files of one data set."
        )
    return Dataset(
        _flat(train),
        train_label.astype(int),
        _flat(test),
        test_label.astype(int),
        train.shape[1:],
        1.0 / GREY_SCALE,
    )


def _folder(files: Mapping[str, Path]) -> str:
    return ", ".join(sorted({str(path.parent) for path in files.values()}))


def _in_order(files: Mapping[str, Path]) -> list[Path]:
    kinds = ("train-images", "train-labels", "t10k-images", "t10k-labels")
    return [next(path for name, path in files.items() if name.startswith(kind)) for kind in kinds]


def _flat(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1) / GREY_SCALE).astype(np.float32)


def _omniglot(files: Mapping[str, Path]) -> Dataset:
    """Lake et al.'s own split: 964 background characters to train, 659 others to test; 28 x 28,
    labels are alphabets.
    """
    (train, train_label), (test, test_label) = (
        _read_characters(files[name]) for name in sorted(files)
    )
    return Dataset(
        _flat(train), train_label, _flat(test), test_label, train.shape[1:], 1.0 / GREY_SCALE
    )


def _read_characters(path: Path, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, size, size] of ink, area-averaged, and the index [N] of their alphabet."""
    try:
        names, pictures = _pictures(path)
    except (zipfile.BadZipFile, zlib.error, OSError, SyntaxError) as error:  # or no image inside
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it and fetch it again."
        ) from error
    folders = [name.split("/")[:-2] for name in names]  # .../ALPHABET/characterNN/drawing.png
    if not names or not all(folders):
        raise ValueError(
            f"{path} has no files ALPHABET/CHARACTER/drawing.png, so it is not Omniglot's. Delete "
            "it and fetch it again."
        )
    ink = [
        255 - np.asarray(picture.resize((size, size), Image.Resampling.BOX)) for picture in pictures
    ]
    return np.stack(ink), np.unique([folder[-1] for folder in folders], return_inverse=True)[1]


def _pictures(path: Path) -> tuple[list[str], list[Image.Image]]:
    """The names and the images of an archive's .png files, in order."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(
            name
            for name in archive.namelist()
            if name.endswith(".png") and not name.startswith("__MACOSX")
        )
        return names, [Image.open(io.BytesIO(archive.read(name))).convert("L") for name in names]


def threshold(x: np.ndarray) -> np.ndarray:
    """Black where the pixel is above one half."""
    return (x > 0.5).astype(np.float32)


def sampled(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """One Bernoulli draw per pixel with its grey value as probability, fixed by `seed`.
    Salakhutdinov and Murray 2008.
    """
    return lambda x: (np.random.default_rng(seed).random(x.shape, np.float32) < x).astype(
        np.float32
    )
