"""Downloads of known content: streamed to disk, hashed on the way, whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import secrets
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from biases._files import remove_temporaries
from biases.ablation import _locks
from biases.ablation.images.dataset import ImagesUnavailable, Progress

CHUNK = 1 << 20
TIMEOUT = 60.0
ELSEWHERE = "BIASES_CACHE names another folder"


@dataclass(frozen=True)
class Remote:
    """A file on the network whose content is known.

    Attributes:
        url: where.
        size: bytes.
        sha256: of the content, lower-case hexadecimal digits.
    """

    url: str
    size: int
    sha256: str


@contextmanager
def cached(remote: Remote, path: Path, progress: Progress | None = None) -> Iterator[IO[bytes]]:
    """The content, checked, for reading: the copy at ``path``, fetched if it is not there.

    Where nothing can be written beside ``path`` the content is fetched into memory, with a warning.

    Raises:
        ImagesUnavailable: no network, other content than expected (nothing is kept), no room on the disk, something
            else than a file at ``path``, or a copy there that is damaged (removed where that is allowed) or cannot be
            read.
    """
    try:
        writer = _writer(path)
    except OSError as error:
        warnings.warn(f"{path.name} cannot be cached in {path.parent}: {error}", stacklevel=4)
        memory = io.BytesIO()
        _download(remote, memory, progress)
        memory.seek(0)
        yield memory
        return
    if writer is None:
        _check_copy(remote, path)
    else:
        with writer:
            _download(remote, writer.file, progress)
            writer.keep(remote)
    try:
        copy = path.open("rb")
    except OSError as error:
        _unreadable(path, error)
    with copy:
        yield copy


def _writer(path: Path) -> _Writer | None:
    """To put something at ``path``; ``None`` where a file is already.

    Raises:
        ImagesUnavailable: something else is there.
        OSError: nothing can be written there.
    """
    if path.is_file():
        return None
    if path.exists():
        got = "a directory" if path.is_dir() else "no regular file"
        raise ImagesUnavailable(f"{path}: expected a copy of the data or nothing, got {got}; {ELSEWHERE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _Writer(path)


class _Writer:
    """A temporary file beside ``path`` that becomes ``path`` by :meth:`keep` and is removed otherwise.

    What killed processes left is removed by the first that comes after them: temporary files may be removed only while
    no other process writes one, which the lock tells. Who does not get the lock writes all the same.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, path.with_name(f".{path.name}.lock")
        self.alone = _locks.acquire(self.lock)
        try:
            if self.alone:
                remove_temporaries(path)
            self.temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            self.file = self.temporary.open("xb")
        except BaseException:
            self._unlock()
            raise

    def _unlock(self) -> None:
        if self.alone:
            _locks.release(self.lock)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        # Closing writes what is still buffered, which can fail on a full disk.
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink()
        self._unlock()

    def keep(self, remote: Remote) -> None:
        """Rename: from now on the content is at ``path``, whatever happens.

        Raises:
            ImagesUnavailable: it cannot be written or renamed.
        """
        try:
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temporary, self.path)
        except OSError as error:
            _not_kept(remote, error)


def _download(remote: Remote, file: IO[bytes], progress: Progress | None) -> None:
    """Write the content of ``remote`` to ``file`` and check it."""
    digest, done = hashlib.sha256(), 0
    for chunk in _chunks(remote):
        digest.update(chunk)
        done += len(chunk)
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            _not_kept(remote, error)
        if progress is not None:
            progress(min(done, remote.size), remote.size)
    if done != remote.size or digest.hexdigest() != remote.sha256:
        _mismatch(remote, remote.url, f"{'more' if done > remote.size else done}", digest, "nothing was kept")


def _chunks(remote: Remote) -> Iterator[bytes]:
    """The bytes as they arrive, at most a byte over the size: enough to know that the content is another."""
    left = remote.size + 1
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT) as response:
            while left and (chunk := response.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ImagesUnavailable(
            f"expected to fetch {remote.url}, got {error}; nothing was kept; "
            "a copy that you have can be given by its path"
        ) from error


def _check_copy(remote: Remote, path: Path) -> None:
    try:
        with path.open("rb") as file:
            digest, size = hashlib.file_digest(file, "sha256"), os.fstat(file.fileno()).st_size
    except OSError as error:
        _unreadable(path, error)
    if digest.hexdigest() != remote.sha256:
        try:
            path.unlink()
            advice = "the damaged copy was removed, run again to fetch it anew"
        except OSError as error:
            advice = f"the damaged copy could not be removed ({error})"
        _mismatch(remote, f"cached copy {path}", str(size), digest, advice)


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise ImagesUnavailable(f"cached copy {path}: expected to read it, got {error}; {ELSEWHERE}") from error


def _not_kept(remote: Remote, error: OSError) -> NoReturn:
    raise ImagesUnavailable(
        f"{remote.url}: expected room for {remote.size} bytes in the cache, got {error}; nothing was kept; {ELSEWHERE}"
    ) from error


def _mismatch(remote: Remote, what: str, size: str, digest: hashlib._Hash, advice: str) -> NoReturn:
    raise ImagesUnavailable(
        f"{what}: expected {remote.size} bytes of SHA-256 {remote.sha256}, got {size} of {digest.hexdigest()}; {advice}"
    )
