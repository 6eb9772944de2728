"""Reading CIFAR-10: archives and folders, and what is refused."""

import gzip
import io
import random
import tarfile

import numpy as np
import pytest
from cifar_files import ARCHIVE, BATCHES, EDITION, archive_of, check_cifar, files_in

from biases.ablation import load_cifar10, load_images
from biases.ablation.images import cifar


def test_cifar_is_read_from_an_archive_and_from_directories(tmp_path):
    (tmp_path / "own.tar.gz").write_bytes(ARCHIVE)
    inner = tmp_path / cifar.FOLDER
    inner.mkdir()
    for name, content in BATCHES.items():
        (inner / name).write_bytes(content.tobytes())
    for path in (tmp_path / "own.tar.gz", tmp_path, inner):
        images = load_cifar10(path, edition=EDITION)
        check_cifar(images)
        assert images.name == str(path)


def test_the_official_archive_is_the_one_that_its_page_names():
    remote = cifar.OFFICIAL.remote
    assert remote.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert remote.size == 170_052_171
    assert len(remote.sha256) == 64
    assert cifar.OFFICIAL.records * cifar.RECORD == 30_730_000


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "cut.tar.gz"
    cuts = random.Random(0).sample(range(len(ARCHIVE)), 40)
    for size in [0, 1, 9, 10, 11, *cuts, *range(len(ARCHIVE) - 12, len(ARCHIVE))]:
        path.write_bytes(ARCHIVE[:size])
        with pytest.raises(ValueError, match=r"CIFAR-10 archive .*cut\.tar\.gz: expected a whole gzipped tar, got \S"):
            load_cifar10(path, edition=EDITION)
    assert files_in(tmp_path) == ["cut.tar.gz"]


def test_a_flipped_bit_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "flipped.tar.gz"
    for at in random.Random(1).sample(range(10, len(ARCHIVE)), 20):
        path.write_bytes(ARCHIVE[:at] + bytes([ARCHIVE[at] ^ 4]) + ARCHIVE[at + 1 :])
        with pytest.raises(ValueError, match="expected"):
            load_cifar10(path, edition=EDITION)


@pytest.mark.parametrize("name", [cifar.BATCHES[0], cifar.TEST_BATCH])
def test_a_missing_batch_is_named(tmp_path, name):
    rest = {batch: content for batch, content in BATCHES.items() if batch != name}
    (tmp_path / "a.tar.gz").write_bytes(archive_of(rest))
    with pytest.raises(ValueError, match=f"expected a member {cifar.FOLDER}/{name}, got none"):
        load_cifar10(tmp_path / "a.tar.gz", edition=EDITION)
    for batch, content in rest.items():
        (tmp_path / batch).write_bytes(content.tobytes())
    with pytest.raises(ValueError, match=f"expected a file {name}, got none"):
        load_cifar10(tmp_path, edition=EDITION)
    with pytest.raises(ValueError, match=f"expected a file {name}, got none"):
        load_images(tmp_path)


def test_batches_in_another_folder_are_not_taken(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(archive_of(BATCHES, folder="../elsewhere"))
    with pytest.raises(ValueError, match=f"expected a member {cifar.FOLDER}/data_batch_1.bin, got none"):
        load_cifar10(tmp_path / "a.tar.gz", edition=EDITION)
    assert files_in(tmp_path) == ["a.tar.gz"]


def test_a_batch_that_is_twice_there_or_a_link_is_refused(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of(BATCHES, extra=[(cifar.TEST_BATCH, BATCHES[cifar.TEST_BATCH])]))
    with pytest.raises(ValueError, match=f"expected one regular file {cifar.FOLDER}/{cifar.TEST_BATCH}"):
        load_cifar10(path, edition=EDITION)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        link = tarfile.TarInfo(f"{cifar.FOLDER}/{cifar.TEST_BATCH}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    path.write_bytes(gzip.compress(plain.getvalue()))
    with pytest.raises(ValueError, match="expected one regular file"):
        load_cifar10(path, edition=EDITION)


@pytest.mark.parametrize("change", [-1, 1, -cifar.RECORD])
def test_a_batch_of_another_size_is_refused(tmp_path, change):
    raw = BATCHES["data_batch_3.bin"].tobytes()
    other = raw[:change] if change < 0 else raw + b"\0"
    (tmp_path / "a.tar.gz").write_bytes(archive_of({**BATCHES, "data_batch_3.bin": other}))
    message = f"data_batch_3.bin: expected 10 records of 3073 bytes, 30730 in all, got {len(other)}"
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path / "a.tar.gz", edition=EDITION)
    for name, content in {**BATCHES, "data_batch_3.bin": np.frombuffer(other, np.uint8)}.items():
        (tmp_path / name).write_bytes(content.tobytes())
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path, edition=EDITION)


def test_wrong_labels_are_refused(tmp_path):
    wrong = BATCHES["data_batch_4.bin"].copy()
    wrong[7, 0] = 10
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of({**BATCHES, "data_batch_4.bin": wrong}))
    with pytest.raises(ValueError, match=r"data_batch_4\.bin, record 7: expected a label from 0 to 9, got 10"):
        load_cifar10(path, edition=EDITION)
    wrong = BATCHES[cifar.TEST_BATCH].copy()
    wrong[:, 0] = 3
    path.write_bytes(archive_of({**BATCHES, cifar.TEST_BATCH: wrong}))
    with pytest.raises(ValueError, match="test split: expected 1 images of every class, got"):
        load_cifar10(path, edition=EDITION)
