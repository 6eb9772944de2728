"""Downloads of images: what is kept, refused, and left behind."""

import errno
import http.client
import io
import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pytest
from cifar_files import ARCHIVE, EDITION, URL, check_cifar, files_in
from downloads import disconnect, own_cache, serve

from biases.ablation import ImagesUnavailable, load_cifar10
from biases.ablation.images import _fetch, cifar

cache = pytest.fixture(own_cache)


@pytest.fixture
def served(monkeypatch):
    """Serve ARCHIVE in pieces, and list the downloads."""
    monkeypatch.setattr(_fetch, "CHUNK", 4096)
    return serve(monkeypatch, ARCHIVE)


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
    serve(monkeypatch, content)
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
    disconnect(monkeypatch)
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
