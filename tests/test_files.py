"""Writing files whole: through links, to what cannot be replaced, and what is refused before the work."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from biases._files import is_stream, remove_temporaries, writable_file, write_atomically


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, outer = tmp_path / "there" / "page", tmp_path / "link", tmp_path / "outer"
    link.symlink_to(Path("there", "page"))
    outer.symlink_to(link)
    # Nothing is behind the links yet.
    writable_file("--out", outer)
    assert not target.exists()
    for content in (b"first", b"second"):
        write_atomically(outer, content)
        assert target.read_bytes() == content
    assert link.is_symlink()
    assert outer.is_symlink()
    (tmp_path / "there" / ".page.1-abc.tmp").touch()
    remove_temporaries(outer)
    assert os.listdir(tmp_path / "there") == ["page"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    # Nobody reads yet: to open it would wait.
    writable_file("--out", pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"page")
    reader.join(10)
    assert read == [b"page"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_and_stays() -> None:
    controller, terminal = os.openpty()
    path = Path(os.ttyname(terminal))
    try:
        assert is_stream(path)
        writable_file("--out", path)
        write_atomically(path, b"page")
        assert os.read(controller, 100) == b"page"
        assert stat.S_ISCHR(path.stat().st_mode)
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors have no names here")
def test_an_open_descriptor_is_written_on_where_it_stands(tmp_path: Path) -> None:
    link = tmp_path / "link"
    with open(tmp_path / "log", "wb", buffering=0) as log:
        link.symlink_to(f"/proc/self/fd/{log.fileno()}")
        log.write(b"before, ")
        for path in (Path(f"/dev/fd/{log.fileno()}"), link):
            writable_file("--out", path)
            write_atomically(path, b"page, ")
        log.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before, page, page, after"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        write_atomically(Path(f"/dev/fd/{ours.fileno()}"), b"page")
        assert theirs.recv(100) == b"page"
        closed = f"/dev/fd/{ours.fileno()}"
    with pytest.raises(ValueError, match=r"--out: expected a file that can be written, got .* Bad file descriptor"):
        writable_file("--out", closed)


def test_what_is_neither_file_nor_stream_is_refused_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The path of a socket is short.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        os.mkdir("folder")
        for name, why in (("socket", "Neither a file nor a pipe"), ("folder", "Is a directory")):
            with pytest.raises(OSError, match=f"{why}.*{name}"):
                write_atomically(Path(name), b"page")
            with pytest.raises(ValueError, match=f"--out: expected a file that can be written, got .*{why}"):
                writable_file("--out", name)
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
    assert sorted(os.listdir()) == ["folder", "socket"]


def test_a_file_whose_folder_takes_no_other_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    (tmp_path / "page").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"--out: expected a file that can be written, got .*{tmp_path}"):
        writable_file("--out", tmp_path / "page")
    assert (tmp_path / "page").read_bytes() == b"mine"
