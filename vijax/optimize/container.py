"""Trees of arrays in a file that is there whole or not at all, and a folder of the newest of them;
nothing here knows what they mean.

A file is `MAGIC`, pieces (8 bytes of length, little-endian, then flax's msgpack of one tree or
array), and the SHA-256 of all that. Pieces are written one after the other, so that no second copy
of everything is made.
"""

import hashlib
import os
import pathlib
import struct
from collections.abc import Iterable
from typing import Any

from flax import serialization

MAGIC = b"vijax run 3\n"
ENDING = ".run"
LENGTH = struct.Struct("<Q")


class DamagedError(ValueError):
    """A file that is no whole container."""


def write(path: pathlib.Path, pieces: Iterable[Any]) -> None:
    """Take the place of a former file at once, when all is on the disk; a write that fails, or a
    process that is killed, leaves the former one.

    Raises:
      OSError: if it cannot be written.
      TypeError: if a piece has parts other than dicts, lists, numbers, words, bytes and arrays.
    """
    beside, digest = path.with_name(f"{path.name}.{os.getpid()}.part"), hashlib.sha256()
    try:
        with open(beside, "wb") as file:

            def put(some: bytes) -> None:
                digest.update(some)
                file.write(some)

            put(MAGIC)
            for piece in pieces:
                packed = serialization.msgpack_serialize(piece)
                put(LENGTH.pack(len(packed)))
                put(packed)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def read(path: pathlib.Path) -> list[Any]:
    """The pieces.

    Raises:
      DamagedError: if one bit is not as it was written, or this is no such file.
    """
    whole = memoryview(path.read_bytes())
    size = hashlib.sha256().digest_size
    inside = whole[: max(0, len(whole) - size)]
    if hashlib.sha256(inside).digest() != whole[len(inside) :] or inside[: len(MAGIC)] != MAGIC:
        raise DamagedError(
            f"{path} is no result that this version of vijax wrote whole: it was cut short or "
            "changed on the disk, comes from another version, or is another kind of file."
        )
    pieces, at = [], len(MAGIC)
    while at < len(inside):
        begin = at + LENGTH.size
        at = begin + LENGTH.unpack(inside[at:begin])[0]
        pieces.append(serialization.msgpack_restore(bytes(inside[begin:at])))
    return pieces


def sync_folder(folder: pathlib.Path) -> None:
    """Put the names in a folder on the disk, where the system opens folders at all."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def name_of(step: int) -> str:
    """A file name that sorts by step."""
    return f"{step:012d}{ENDING}"


def newest_first(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder that have a step for a name, by it."""
    named = (path for path in folder.glob(f"*{ENDING}") if path.stem.isdecimal())
    return sorted(named, reverse=True)


def newest_step(folder: pathlib.Path) -> int:
    """Of the newest file, 0 if there is none."""
    return max((int(path.stem) for path in newest_first(folder)), default=0)


def keep_newest(folder: pathlib.Path, number: int) -> None:
    """Remove all but so many."""
    for old in newest_first(folder)[number:]:
        old.unlink(missing_ok=True)
