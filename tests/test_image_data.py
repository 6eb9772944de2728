"""Readers of images: what they accept, what they refuse, and what they leave behind."""

import errno
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import struct
import tarfile
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biases.ablation import Images, ImagesUnavailable, load_cifar10, load_digits, load_image_folder, load_images
from biases.ablation.images import _fetch, cifar
from biases.ablation.images._fetch import Remote
from biases.ablation.images.digits import held_out_positions

RECORDS = 10
URL = "https://example.org/cifar.tar.gz"


def cifar_batches():
    """Six small batches in the official layout, every class once in each."""
    numbers = np.random.default_rng(0)
    batches = {}
    for name in cifar.BATCHES:
        rows = numbers.integers(0, 256, (RECORDS, cifar.RECORD), dtype=np.uint8)
        rows[:, 0] = numbers.permutation(10)
        batches[name] = rows
    return batches


def archive_of(batches, folder=cifar.FOLDER, extra=()):
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


def edition_of(content):
    return cifar.Edition(Remote(URL, len(content), hashlib.sha256(content).hexdigest()), RECORDS)


EDITION = edition_of(ARCHIVE)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIASES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def served(monkeypatch):
    """Serve ARCHIVE, and count the downloads."""
    calls = []

    def urlopen(url, timeout):
        calls.append(url)
        return io.BytesIO(ARCHIVE)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(_fetch, "CHUNK", 4096)
    return calls


def files_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# CIFAR-10


def check_cifar(images):
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


# Downloads


def test_a_download_is_cached_and_reported(cache, served):
    told = []
    check_cifar(load_cifar10(edition=EDITION, progress=lambda done, total: told.append((done, total))))
    check_cifar(load_cifar10(edition=EDITION))
    assert served == [URL]
    assert files_in(cache) == [cifar.ARCHIVE]
    assert told[-1] == (len(ARCHIVE), len(ARCHIVE))
    assert told == sorted(told)
    assert len(told) > 2


def test_a_damaged_copy_is_removed_then_fetched_anew(cache, served):
    cache.mkdir()
    (cache / cifar.ARCHIVE).write_bytes(ARCHIVE[:-1])
    with pytest.raises(ImagesUnavailable, match="damaged copy was removed, run again"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == []
    check_cifar(load_cifar10(edition=EDITION))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"not found", "got 9 of"),
        (ARCHIVE[:-1], f"got {len(ARCHIVE) - 1} of"),
        (ARCHIVE + b"more", "got more of"),
        (ARCHIVE[:-1] + b"\1", f"got {len(ARCHIVE)} of"),
    ],
)
def test_another_download_is_refused_and_not_kept(cache, served, monkeypatch, content, got):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    with pytest.raises(ImagesUnavailable, match=f"SHA-256 {EDITION.remote.sha256}, {got}"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == []


class Breaking(io.BytesIO):
    """A response that breaks after some bytes."""

    def __init__(self, error, after):
        super().__init__(ARCHIVE)
        self.error, self.after = error, after

    def read(self, size=-1):
        if self.tell() >= self.after:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset by peer"), TimeoutError("timed out"), http.client.IncompleteRead(b"")]
)
def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(cache, served, monkeypatch, error):
    whole = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Breaking(error, len(ARCHIVE) // 2))
    with pytest.raises(ImagesUnavailable, match=f"expected to fetch {URL}, got ") as caught:
        load_cifar10(edition=EDITION)
    assert str(error) in str(caught.value)
    assert files_in(cache) == []
    monkeypatch.setattr(urllib.request, "urlopen", whole)
    check_cifar(load_cifar10(edition=EDITION))


def test_a_stopped_download_leaves_nothing(cache, served):
    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_cifar10(edition=EDITION, progress=stop)
    assert files_in(cache) == []


def test_what_a_killed_download_left_is_no_copy_and_is_removed(cache, served):
    cache.mkdir()
    (cache / f".{cifar.ARCHIVE}.123-abcd.tmp").write_bytes(ARCHIVE[:100])
    check_cifar(load_cifar10(edition=EDITION))
    assert files_in(cache) == [cifar.ARCHIVE]


def test_another_process_downloading_is_not_disturbed(cache, served):
    cache.mkdir()
    theirs = [f".{cifar.ARCHIVE}.{os.getpid()}-abcd.tmp", f".{cifar.ARCHIVE}.lock"]
    (cache / theirs[0]).write_bytes(ARCHIVE[:100])
    assert _fetch._locks.acquire(cache / theirs[1])
    check_cifar(load_cifar10(edition=EDITION))
    assert files_in(cache) == sorted([*theirs, cifar.ARCHIVE])


def test_a_full_disk_leaves_nothing(cache, served, monkeypatch):
    class Full:
        def __init__(self, writer):
            self.file, self.left = writer, 3 * _fetch.CHUNK

        def write(self, chunk):
            self.left -= len(chunk)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(chunk)

        def __getattr__(self, name):
            return getattr(self.file, name)

    class Writer(_fetch._Writer):
        def __init__(self, path):
            super().__init__(path)
            self.file = Full(self.file)

    monkeypatch.setattr(_fetch, "_Writer", Writer)
    with pytest.raises(ImagesUnavailable, match="No space left on device; nothing was kept"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_copy_that_cannot_be_finished_leaves_nothing(cache, served, monkeypatch, call):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ImagesUnavailable, match="No space left on device; nothing was kept; BIASES_CACHE"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == []


def test_a_directory_where_the_copy_belongs_is_named_before_the_download(cache, served):
    (cache / cifar.ARCHIVE).mkdir(parents=True)
    with pytest.raises(ImagesUnavailable, match=f"{cifar.ARCHIVE}: expected a copy of the data .*, got a directory"):
        load_cifar10(edition=EDITION)
    assert served == []
    assert files_in(cache) == [cifar.ARCHIVE]


@pytest.mark.parametrize("reads", [0, 1])
def test_a_copy_that_cannot_be_read_is_named(cache, served, monkeypatch, reads):
    """At once, or after it was checked."""
    load_cifar10(edition=EDITION)
    whole, opened = Path.open, []

    def refuse(path, *arguments, **options):
        if path.name == cifar.ARCHIVE:
            opened.append(path)
            if len(opened) > reads:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImagesUnavailable, match=r"cached copy .*: expected to read it, got .*Permission denied"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == [cifar.ARCHIVE]
    assert len(served) == 1


def test_no_network_names_the_address_and_the_alternative(cache, monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ImagesUnavailable, match=f"expected to fetch {URL}.*no route to host.*by its path"):
        load_cifar10(edition=EDITION)
    assert files_in(cache) == []


def test_an_unwritable_cache_still_gives_the_images(tmp_path, served, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIASES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be cached in"):
        check_cifar(load_cifar10(edition=EDITION))
    assert files_in(tmp_path) == ["file"]


def test_a_read_only_cache_with_a_copy_is_used_without_a_warning(cache, served, monkeypatch):
    cache.mkdir()
    (cache / cifar.ARCHIVE).write_bytes(ARCHIVE)
    cache.chmod(0o500)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_cifar(load_cifar10(edition=EDITION))
    finally:
        cache.chmod(0o700)
    assert served == []


# Digits


def test_digits_are_split_the_same_way_each_time():
    images, again = load_digits(), load_images("digits")
    assert images.train.shape == (1438, 1, 8, 8)
    assert images.test.shape == (359, 1, 8, 8)
    assert int(images.train.max()) == 16
    assert not images.mirrored
    assert images.sha256 == again.sha256
    for name in ("train", "train_labels", "test", "test_labels"):
        assert torch.equal(getattr(images, name), getattr(again, name))
    per_class = torch.bincount(images.train_labels) + torch.bincount(images.test_labels)
    share = torch.bincount(images.test_labels) / per_class
    assert (share - 0.2).abs().max() <= 0.5 / per_class.min()


def test_digits_splits_hold_every_image_once():
    from sklearn.datasets import load_digits as original

    images, source = load_digits(), original()
    whole = torch.cat((images.train, images.test)).flatten(1)
    labels = torch.cat((images.train_labels, images.test_labels))
    rows = sorted((int(label), row.numpy().tobytes()) for label, row in zip(labels, whole, strict=True))
    expected = zip(source.target, source.images, strict=True)
    assert rows == sorted((int(label), image.astype(np.uint8).tobytes()) for label, image in expected)


def test_the_split_depends_on_position_and_class_alone():
    labels = np.arange(60, dtype=np.uint8) % 3
    held_out = held_out_positions(labels)
    assert torch.equal(held_out, held_out_positions(labels + 4))
    assert torch.bincount(torch.from_numpy(labels.astype(np.int64))[held_out]).tolist() == [4, 4, 4]
    # Written out, so that a change of the rule cannot pass unseen.
    keys = {at: hashlib.sha256(f"biases digits split 1:{at}".encode()).hexdigest() for at in range(0, 60, 3)}
    assert held_out[::3].nonzero().flatten().mul(3).tolist() == sorted(sorted(keys, key=keys.get)[:4])


@pytest.mark.parametrize(("module", "load"), [("sklearn", load_digits), ("PIL", load_image_folder)])
def test_a_missing_library_names_the_extra(monkeypatch, tmp_path, module, load):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.Image", raising=False)
    arguments = (tmp_path,) if load is load_image_folder else ()
    with pytest.raises(ImagesUnavailable, match=r"pip install 'attention-biases\[vision\]'"):
        load(*arguments)


# Folders

ROWS = [
    ("a/0.png", "a", "train"),
    ("b/0.png", "b", "train"),
    ("b/1.png", "b", "val"),
    ("a/1.png", "a", "test"),
    ("b/2.png", "b", "test"),
]


def csv_of(rows, header="path,label,split"):
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


@pytest.fixture
def tree(tmp_path):
    """A class a that is red, a class b that is blue, each image with a black frame beyond its central square."""
    root = tmp_path / "tree"
    for name, label, _ in ROWS:
        pixels = np.zeros((20, 40, 3), dtype=np.uint8)
        pixels[:, 10:30, 0 if label == "a" else 2] = 200
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "split.csv").write_text(csv_of(ROWS))
    return root


def test_a_folder_is_read(tree):
    told = []
    images = load_image_folder(tree, size=8, progress=lambda done, total: told.append((done, total)))
    assert images.classes == ("a", "b")
    assert images.train.shape == (2, 3, 8, 8)
    assert images.train_labels.tolist() == [0, 1]
    assert images.test_labels.tolist() == [0, 1]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    red = images.train[0].float()
    # The interior of the central square is flat; its outermost columns take in some of the frame.
    assert red[0, :, 2:-2].unique().tolist() == [200]
    assert red[1:].max() == 0
    assert images.test.float()[1, 2, :, 2:-2].unique().tolist() == [200]
    assert load_image_folder(tree, size=8, test_split="val").test_labels.tolist() == [1]
    assert load_images(tree).train.shape == (2, 3, 224, 224)


def test_json_and_csv_lists_say_the_same(tree):
    first = load_image_folder(tree, size=8)
    (tree / "split.csv").unlink()
    columns = ("path", "label", "split")
    (tree / "split.json").write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in ROWS]))
    second = load_image_folder(tree, size=8)
    assert first.sha256 == second.sha256
    assert torch.equal(first.train, second.train)


def test_the_hash_tells_files_labels_and_size_apart(tree):
    hashes = {load_image_folder(tree, size=8).sha256, load_image_folder(tree, size=9).sha256}
    swapped = [("a/1.png", "b", "test"), ("b/2.png", "a", "test")]
    (tree / "split.csv").write_text(csv_of([*ROWS[:3], *swapped]))
    hashes.add(load_image_folder(tree, size=8).sha256)
    (tree / "split.csv").write_text(csv_of(ROWS))
    Image.new("RGB", (9, 9)).save(tree / "a/0.png")
    hashes.add(load_image_folder(tree, size=8).sha256)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (20, 20)), ("RGBA", (5, 30)), ("P", (31, 7)), ("1", (3, 3)), ("I;16", (8, 8))]
)
def test_modes_and_shapes_become_rgb_squares(tree, mode, size):
    Image.new(mode, size).save(tree / "a/0.png")
    assert load_image_folder(tree, size=16).train.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")])
def test_sixteen_bits_keep_their_gradient(tree, mode, suffix):
    values = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    content = io.BytesIO()
    stored = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    Image.frombytes(mode, (16, 16), stored).save(content, format=suffix)
    assert Image.open(content).mode == mode
    (tree / "a/0.png").write_bytes(content.getvalue())
    image = load_image_folder(tree, size=16).train[0]
    for channel in image:
        assert channel.flatten().tolist() == list(range(256))


@pytest.mark.parametrize(("mode", "got"), [("I", "mode I,"), ("F", "mode F,"), ("I;12", "12,")])
def test_pixels_of_unknown_range_are_refused(tree, mode, got):
    content = io.BytesIO()
    if mode == "I;12":
        # Pillow reads such files and does not write them: two pixels of 12 bits in three bytes.
        tags = [(256, 8), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 1)]
        tags.append((279, 12))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        content.write(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes(12))
    else:
        Image.new(mode, (8, 8)).save(content, format="TIFF")
    (tree / "b/0.png").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=rf"line 3: expected .* in .*b/0\.png, got pixels of .*{got}.* range is not"):
        load_image_folder(tree, size=8)


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000)])
def test_a_thin_image_is_never_enlarged_as_a_whole(tree, monkeypatch, shape):
    width, height = shape
    middle = np.zeros((height, width, 3), dtype=np.uint8)
    middle[max(height // 2 - 4, 0) : height // 2 + 4, max(width // 2 - 4, 0) : width // 2 + 4] = 90
    Image.fromarray(middle).save(tree / "a/0.png")
    sides = []
    whole = Image.Image.resize

    def resize(self, *arguments, **options):
        result = whole(self, *arguments, **options)
        sides.extend(result.size)
        return result

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert (load_image_folder(tree, size=8).train[0] == 90).all()
    assert max(sides) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/9.png,a,train", r"split\.csv, line 7, path: expected a file below .*, got 'a/9\.png', which is missing"),
        ("a,a,train", r"line 7, path: .*'a', which is no file"),
        ("../outside.png,a,train", r"line 7, path: expected a file below .*, got '\.\./outside\.png', which is"),
        ("a/0.png,a,train", r"line 7: expected each image once, got 'a/0\.png' again, after .*line 2"),
        ("b/../a/0.png,a,test", r"line 7: expected each image once, got 'b/\.\./a/0\.png' again, after .*line 2"),
        ("a/2.png,a,trian", r"line 7, split: expected one of 'train', 'val', 'test', got 'trian' \(did you mean"),
        ("a/2.png,,train", r"line 7, label: expected the name of a class, got ''"),
        ("a/2.png,a", r"line 7: expected 3 fields, got 2"),
        ("a/2.png,c,test", r"line 7: expected a class with training images: one of 2, got 'c'"),
        ('"a/2.png,a,train', r"line 7: expected CSV, got unexpected end of data"),
        ("a/\0.png,a,train", r"line 7, path: expected a file below .*, got 'a/\\x00\.png'"),
    ],
)
def test_a_wrong_line_is_named(tree, line, message):
    Image.new("RGB", (9, 9)).save(tree / "a/2.png")
    Image.new("RGB", (9, 9)).save(tree.parent / "outside.png")
    (tree / "split.csv").write_text(csv_of(ROWS) + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_image_folder(tree, size=8)


def test_absolute_paths_and_links_out_of_the_tree_are_refused(tree):
    outside = tree.parent / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    (tree / "a/link.png").symlink_to(outside)
    for name in (str(outside), "a/link.png"):
        (tree / "split.csv").write_text(csv_of([*ROWS, (name, "a", "train")]))
        with pytest.raises(ValueError, match=f"expected a file below {tree}, got '{name}', which is {outside}"):
            load_image_folder(tree, size=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got"),
        ("{}", "expected an array of objects with path, label, split, got a dict"),
        ('[{"path": "a/0.png", "label": "a"}]', "entry 1: expected an object with path, label, split, got"),
        ('[{"path": "a/0.png", "label": 3, "split": "train"}]', "entry 1, label: expected a string, got 3"),
        ("[" * 100_000, "expected JSON, got"),
    ],
)
def test_a_wrong_json_list_is_named(tree, content, message):
    (tree / "split.json").write_text(content)
    with pytest.raises(ValueError, match=r"split\.json.*" + message):
        load_image_folder(tree, split_file=tree / "split.json", size=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected the header path,label,split, got ''"),
        (b"path,label\na/0.png,a\n", "line 1: expected the header path,label,split, got 'path,label'"),
        (b"path,label,split\n", "expected images of split 'train', got none"),
        (b"path,label,split\na/0.png,a,train\n", "expected images of split 'test', got none"),
        (b"path,label,split\n\xff,a,train\n", "expected UTF-8, got invalid start byte at byte 17"),
    ],
)
def test_a_wrong_csv_list_is_named(tree, content, message):
    (tree / "split.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_image_folder(tree, size=8)


def test_a_list_that_is_not_there_or_no_list_is_named(tree):
    for name, message in (("none.csv", "expected a file, got"), ("list.txt", r"expected a file \*.csv or \*.json")):
        with pytest.raises(ValueError, match=message):
            load_image_folder(tree, split_file=tree / name, size=8)
    (tree / "split.csv").unlink()
    with pytest.raises(ValueError, match=r"split\.csv or split\.json, got neither"):
        load_image_folder(tree, size=8)
    with pytest.raises(ValueError, match="images root: expected a directory"):
        load_image_folder(tree / "split.csv", size=8)
    with pytest.raises(ValueError, match="size: expected an integer of at least 1, got 0"):
        load_image_folder(tree, size=0)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_a_damaged_image_is_named_with_its_line(tree, suffix):
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format=suffix)
    raw = content.getvalue()
    for cut in (0, 1, 20, len(raw) // 4, len(raw) // 2, 3 * len(raw) // 4):
        (tree / "b/0.png").write_bytes(raw[:cut])
        with pytest.raises(ValueError, match=r"split\.csv, line 3: expected a whole image .*b/0\.png, got \S"):
            load_image_folder(tree, size=8)


def test_an_image_that_would_fill_the_memory_is_refused(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"line 2: expected a whole image .* exceeds limit"):
        load_image_folder(tree, size=8)


# The data set


def images_of(train, changes=None):
    labels = torch.arange(len(train)) % 2
    fields = {"train": train, "train_labels": labels, "test": train[:2], "test_labels": labels[:2]}
    return Images(**{"name": "made", "sha256": "0", "classes": ("a", "b"), **fields, **(changes or {})})


def test_statistics_are_of_the_training_split_alone():
    train = torch.randint(0, 256, (7, 2, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train[:, 1] = 9
    images = images_of(train, {"test": torch.full((2, 2, 5, 3), 255, dtype=torch.uint8)})
    values = train.double()
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    torch.testing.assert_close(images.mean.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(images.std[0].double(), expected[1][0], rtol=1e-6, atol=0)
    assert images.std[1] == 1
    normalised = images.normalise(train)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised[:, 0].mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(normalised[:, 0].std(correction=0), torch.tensor(1.0), rtol=1e-5, atol=0)
    assert (normalised[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": torch.zeros(4, 1, 8, 8)}, "training split: expected uint8 images"),
        ({"test": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "test split: expected uint8 images"),
        ({"test": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "as in training"),
        ({"train_labels": torch.tensor([0, 1, 2, 0])}, "expected 0 to 1, got 0 to 2"),
        ({"train_labels": torch.tensor([0, 1])}, r"expected int64 of shape \(4,\)"),
        ({"train_labels": torch.zeros(4, dtype=torch.int64)}, "training images of every class, got none of 'b'"),
    ],
)
def test_images_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        images_of(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), changes)


def test_unknown_names_are_refused(tmp_path):
    for name in ("digit", tmp_path):
        with pytest.raises(ValueError, match="images: expected one of 'digits', 'cifar10', an archive"):
            load_images(name)
    with pytest.raises(ValueError, match="expected an archive"):
        load_cifar10(tmp_path / "none.tar.gz")
