"""CIFAR-10 (Krizhevsky 2009) in its binary format.

A batch is a file of records without a header, each one byte of label (0 to 9) and 3072 bytes of pixels: 1024 of red, of
green, of blue, row-major in 32 x 32. Five batches are the training split, one is the test split, 10,000 records each;
every class has a tenth of each split.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from biases._checks import fail
from biases.ablation.data import cache_directory
from biases.ablation.images._fetch import Remote, cached
from biases.ablation.images.dataset import Images, Progress

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
FOLDER = "cifar-10-batches-bin"
TRAIN_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_BATCH = "test_batch.bin"
BATCHES = (*TRAIN_BATCHES, TEST_BATCH)
ARCHIVE = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Edition:
    """An archive of this format.

    Attributes:
        remote: where it is, its size and its SHA-256.
        records: in each batch, a multiple of 10.
    """

    remote: Remote
    records: int


# The MD5 that the data set's page states for this archive is c32a1d4ab5d03f1284b67883e8d87530.
OFFICIAL = Edition(
    Remote(
        url=f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    records=10_000,
)


def load_cifar10(
    path: str | os.PathLike[str] | None = None, *, progress: Progress | None = None, edition: Edition = OFFICIAL
) -> Images:
    """CIFAR-10: fetched once and cached, or a copy of one's own.

    Args:
        path: a ``.tar.gz`` archive, or a directory that holds the six batches or ``cifar-10-batches-bin``. ``None``:
            the official archive, cached in :func:`~biases.ablation.data.cache_directory` and checked against its
            SHA-256 at every use. An archive of one's own need not be the official file, only hold the same members.
        progress: called with (bytes, bytes in all) during a download.
        edition: what the archive holds.

    Returns:
        50,000 and 10,000 images (3, 32, 32). ``sha256`` is that of the five training batches and the test batch, one
        after the other: the same however they were read.

    Raises:
        ValueError: nothing there, a damaged archive, a batch that is missing or has another size, a label that is not 0
            to 9, a class that has not a tenth of its split; as
            :class:`~biases.ablation.images.ImagesUnavailable` where the archive cannot be fetched.
    """
    if path is None:
        copy = cache_directory() / ARCHIVE
        with cached(edition.remote, copy, progress) as file:
            return _images("cifar10", str(copy), _from_archive(str(copy), file, edition), edition)
    name, given = os.fspath(path), Path(path)
    if given.is_dir():
        return _images(name, name, _from_directory(given, edition), edition)
    try:
        with given.open("rb") as file:
            return _images(name, name, _from_archive(name, file, edition), edition)
    except OSError as error:
        expected = f"an archive {ARCHIVE} or a directory with its batches"
        raise ValueError(f"CIFAR-10: expected {expected}, got {name!r} ({error.strerror or error})") from error


def _from_archive(name: str, file: IO[bytes], edition: Edition) -> dict[str, bytes]:
    """The batches in a gzipped tar, by name; nothing is written anywhere.

    The archive is read to its end, so that its checksum is compared whatever the batches look like.
    """
    wanted = {f"{FOLDER}/{batch}": batch for batch in BATCHES}
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=file) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    batch = wanted.get(member.name.removeprefix("./"))
                    if batch is None:
                        continue
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is None or batch in found:
                        fail(
                            f"CIFAR-10 archive {name}", f"one regular file {member.name}", "another member of that name"
                        )
                    _check_size(f"{name}, {member.name}", member.size, edition)
                    found[batch] = content.read()
            while plain.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"CIFAR-10 archive {name}: expected a whole gzipped tar, got {error}") from error
    for member_name, batch in wanted.items():
        if batch not in found:
            fail(f"CIFAR-10 archive {name}", f"a member {member_name}", "none")
    return found


def _from_directory(folder: Path, edition: Edition) -> dict[str, bytes]:
    inner = folder / FOLDER
    paths = {batch: (inner if inner.is_dir() else folder) / batch for batch in BATCHES}
    for path in paths.values():
        if not path.is_file():
            fail(f"CIFAR-10 directory {folder}", f"a file {path.relative_to(folder)}", "none")
    for path in paths.values():
        _check_size(str(path), path.stat().st_size, edition)
    return {batch: path.read_bytes() for batch, path in paths.items()}


def _check_size(what: str, size: int, edition: Edition) -> None:
    if size != edition.records * RECORD:
        expected = f"{edition.records} records of {RECORD} bytes, {edition.records * RECORD} in all"
        fail(f"CIFAR-10 batch {what}", expected, size)


def _images(name: str, source: str, batches: Mapping[str, bytes], edition: Edition) -> Images:
    parsed = {batch: _records(f"{source}, {batch}", content, edition) for batch, content in batches.items()}
    train = [parsed[batch] for batch in TRAIN_BATCHES]
    labels = {"training": torch.cat([each[0] for each in train]), "test": parsed[TEST_BATCH][0]}
    for split, of in labels.items():
        counts = torch.bincount(of, minlength=len(CLASSES)).tolist()
        each = len(of) // len(CLASSES)
        if counts != [each] * len(CLASSES):
            fail(f"CIFAR-10 {source}, {split} split", f"{each} images of every class", counts)
    digest = hashlib.sha256()
    for batch in BATCHES:
        digest.update(batches[batch])
    return Images(
        name=name,
        sha256=digest.hexdigest(),
        classes=CLASSES,
        train=torch.cat([each[1] for each in train]),
        train_labels=labels["training"],
        test=parsed[TEST_BATCH][1],
        test_labels=labels["test"],
        mirrored=True,
    )


def _records(what: str, content: bytes, edition: Edition) -> tuple[Tensor, Tensor]:
    """Labels (n,) and images (n, 3, 32, 32) of a batch."""
    _check_size(what, len(content), edition)
    rows = np.frombuffer(content, dtype=np.uint8).reshape(edition.records, RECORD)
    wrong = np.flatnonzero(rows[:, 0] >= len(CLASSES))
    if wrong.size:
        fail(f"CIFAR-10 batch {what}, record {wrong[0]}", "a label from 0 to 9", int(rows[wrong[0], 0]))
    labels = torch.from_numpy(rows[:, 0].astype(np.int64))
    return labels, torch.from_numpy(rows[:, 1:].copy()).view(-1, *SHAPE)
