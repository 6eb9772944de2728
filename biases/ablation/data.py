"""Texts for character models: tokens, vocabulary, split and the hash that says which text it was."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biases._checks import fail
from biases._files import write_atomically

DATASETS = ("pydoc", "tinyshakespeare")
TRAIN_SHARE = 0.9

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class TextUnavailable(ValueError):
    """The text asked for cannot be had here (no network, damaged copy); another name or file would work."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text as one token a character.

    Attributes:
        name: the dataset's name, or the path as it was given.
        sha256: of the text's UTF-8 bytes. Python's topics differ between versions of Python; this tells.
        vocabulary: its characters in code-point order; a token is an index into them.
        tokens: int64, (n,).
    """

    name: str
    sha256: str
    vocabulary: tuple[str, ...]
    tokens: Tensor

    @classmethod
    def from_string(cls, name: str, content: str) -> Text:
        """Build from the characters themselves.

        Raises:
            ValueError: it is too short to leave 2 characters (one prediction) to the validation split.
        """
        raw = content.encode("utf-8")
        points = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
        if len(points) - int(TRAIN_SHARE * len(points)) < 2:
            fail(f"text {name!r}", "at least 11 characters", len(points))
        characters, tokens = np.unique(points, return_inverse=True)
        return cls(
            name=name,
            sha256=hashlib.sha256(raw).hexdigest(),
            vocabulary=tuple(map(chr, characters.tolist())),
            tokens=torch.from_numpy(tokens.reshape(-1).astype(np.int64)),
        )

    @cached_property
    def train(self) -> Tensor:
        """The first ``int(0.9 n)`` tokens."""
        return self.tokens[: int(TRAIN_SHARE * len(self.tokens))]

    @cached_property
    def validation(self) -> Tensor:
        """The remaining tokens."""
        return self.tokens[int(TRAIN_SHARE * len(self.tokens)) :]

    def decode(self, tokens: Tensor | None = None) -> str:
        """The characters of ``tokens``; of the whole text by default."""
        return "".join(self.vocabulary[i] for i in (self.tokens if tokens is None else tokens).tolist())


def load_text(name_or_path: str | os.PathLike[str] = "pydoc") -> Text:
    """Load a dataset by name, or a UTF-8 text file.

    Args:
        name_or_path: ``"pydoc"``, the topics of Python's own ``help()`` (English, no network);
            ``"tinyshakespeare"``, fetched once and cached (:func:`~biases.ablation.data.cache_directory`); or
            a file. A path object, or a string with a directory in it, is always a file.

    Raises:
        ValueError: no such file, not UTF-8, or too short; as :class:`TextUnavailable` where a dataset cannot
            be had.
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and name == "pydoc":
        return Text.from_string(name, _pydoc_topics())
    if isinstance(name_or_path, str) and name == "tinyshakespeare":
        return Text.from_string(name, _tinyshakespeare().decode("utf-8"))
    expected = f"a UTF-8 text file or one of {', '.join(map(repr, DATASETS))}"
    try:
        raw = Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"text: expected {expected}, got {name!r} ({reason})") from error
    try:
        return Text.from_string(name, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        got = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise ValueError(f"text {name!r}: expected UTF-8, got {got}") from error


def _pydoc_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextUnavailable(
            "text 'pydoc': expected this Python to carry its help topics (pydoc_data.topics), got a Python "
            "without them; give a UTF-8 text file instead (--text FILE)"
        ) from error
    return "\n".join(topics[key] for key in sorted(topics))


def cache_directory() -> Path:
    """``$BIASES_CACHE``, else ``$XDG_CACHE_HOME/biases``, else ``~/.cache/biases``."""
    if own := os.environ.get("BIASES_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative values ignored.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "biases"


def _tinyshakespeare() -> bytes:
    path = cache_directory() / "tinyshakespeare.txt"
    try:
        raw = path.read_bytes()
    except OSError:
        raw = _fetch_tinyshakespeare()
        try:
            write_atomically(path, raw)
        except OSError as error:
            warnings.warn(f"tinyshakespeare could not be cached in {path}: {error}", stacklevel=3)
        return raw
    if got := _wrong_hash(raw):
        path.unlink(missing_ok=True)
        raise TextUnavailable(
            f"cached text {path}: expected SHA-256 {SHAKESPEARE_SHA256}, got {got}; "
            "the damaged copy was removed, run again to fetch it anew"
        )
    return raw


def _fetch_tinyshakespeare() -> bytes:
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            raw = response.read(SHAKESPEARE_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise TextUnavailable(
            f"text 'tinyshakespeare': expected to fetch {SHAKESPEARE_URL}, got {error}; without network use "
            "the dataset 'pydoc', or a file of your own (--text FILE)"
        ) from error
    if got := _wrong_hash(raw):
        raise TextUnavailable(f"{SHAKESPEARE_URL}: expected SHA-256 {SHAKESPEARE_SHA256}, got {got}; nothing was kept")
    return raw


def _wrong_hash(raw: bytes) -> str | None:
    got = hashlib.sha256(raw).hexdigest()
    return None if got == SHAKESPEARE_SHA256 else f"{got} ({len(raw)} bytes)"
