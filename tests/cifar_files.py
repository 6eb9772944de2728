"""A small archive in the official layout of CIFAR-10, which the tests of its reader and of downloads share."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from biases.ablation import Images
from biases.ablation.images import cifar
from biases.ablation.images._fetch import Remote

RECORDS = 10
URL = "https://example.org/cifar.tar.gz"


def cifar_batches() -> dict[str, np.ndarray]:
    """Six small batches in the official layout, every class once in each."""
    numbers = np.random.default_rng(0)
    batches = {}
    for name in cifar.BATCHES:
        rows = numbers.integers(0, 256, (RECORDS, cifar.RECORD), dtype=np.uint8)
        rows[:, 0] = numbers.permutation(10)
        batches[name] = rows
    return batches


def archive_of(
    batches: Mapping[str, np.ndarray | bytes],
    folder: str = cifar.FOLDER,
    extra: Iterable[tuple[str, np.ndarray | bytes]] = (),
) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in [("batches.meta.txt", b"airplane\n"), *batches.items(), *extra]:
            raw = content if isinstance(content, bytes) else content.tobytes()
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return gzip.compress(plain.getvalue(), mtime=0)


BATCHES = cifar_batches()
ARCHIVE = archive_of(BATCHES)


def edition_of(content: bytes) -> cifar.Edition:
    return cifar.Edition(Remote(URL, len(content), hashlib.sha256(content).hexdigest()), RECORDS)


EDITION = edition_of(ARCHIVE)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check_cifar(images: Images) -> None:
    """Against the batches that they were read from."""
    assert images.train.shape == (5 * RECORDS, 3, 32, 32)
    assert images.test.shape == (RECORDS, 3, 32, 32)
    assert images.train.dtype == torch.uint8
    assert images.mirrored
    first = BATCHES["data_batch_2.bin"][3]
    at = RECORDS + 3
    assert images.train_labels[at] == first[0]
    for channel in range(3):
        for row, column in ((0, 0), (0, 31), (17, 5), (31, 31)):
            assert images.train[at, channel, row, column] == first[1 + 1024 * channel + 32 * row + column]
    raw = b"".join(BATCHES[name].tobytes() for name in cifar.BATCHES)
    assert images.sha256 == hashlib.sha256(raw).hexdigest()
