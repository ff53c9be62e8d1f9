"""Public files of the data sets: where they live, their checksums, fetching them once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pooch


class Source(NamedTuple):
    """Where a data set lives in public.

    Attributes:
      url: of the folder, ends in "/".
      md5: file name -> published checksum.
      unzipped: file name -> checksum of what is in the .gz, for copies that somebody unzipped.
    """

    url: str
    md5: Mapping[str, str]
    unzipped: Mapping[str, str] = {}


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        {
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    ),
    "omniglot": Source(
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
        {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        },
    ),
}


class DataUnavailableError(FileNotFoundError):
    """A file is neither on disk nor to be had; the message says what to fetch and where to put
    it.
    """


def fetch(
    name: str, source: Source, data_dir: str | Path | None = None, *, own_files: bool = False
) -> dict[str, Path]:
    """Paths of a source's files, downloaded where missing (progress on stderr, checksum verified
    before anything is kept).

    Raises:
      DataUnavailableError: if a file is neither there nor to be had.
      ValueError: if a file that is there is not the published one, unless `own_files`.
    """
    folder = (
        Path(pooch.os_cache("vijax")) / name if data_dir is None else Path(data_dir).expanduser()
    )
    if (folder / name).is_dir():
        folder = folder / name
    paths = {
        file: _present(folder / file) or _download(name, source, file, folder)
        for file in source.md5
    }
    if not own_files:
        for path in paths.values():
            _verify(name, source, path)
    return paths


def _present(path: Path) -> Path | None:
    """The file, or the same without .gz: both are read."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    return next((candidate for candidate in (path, plain) if candidate.is_file()), None)


def _verify(name: str, source: Source, path: Path) -> None:
    """Raises ValueError unless the file is the published one."""
    known = {**source.md5, **source.unzipped}
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if known.get(path.name) != found:
        published = known.get(path.name, "not known of an unzipped copy")
        raise ValueError(
            f"{path} is not the published file of {name}: its md5 is {found}, the published one "
            f"{published}. Delete it, and it is fetched again; if it is a file of your own, say so "
            "with --own_files (own_files=True)."
        )


def _download(name: str, source: Source, file: str, folder: Path) -> Path:
    try:
        path = pooch.retrieve(
            source.url + file, f"md5:{source.md5[file]}", file, folder, progressbar=True
        )
    except (OSError, ValueError) as error:  # no network, or a wrong checksum
        wanted = "\n".join(f"  {source.url}{each}   md5 {md5}" for each, md5 in source.md5.items())
        raise DataUnavailableError(
            f"{name}: {file} is not in {folder} and could not be downloaded "
            f"({type(error).__name__}: {error}).\n"
            f"Fetch these files on a machine with a network:\n{wanted}\n"
            f"put them, as they are, into\n  {folder.absolute()}\nand run again with "
            f"--data={name} --data_dir={folder}"
        ) from error
    return Path(path)
