"""Trees of image files with a list that says the class and the split of each, as Mini-ImageNet comes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from biases._checks import fail, one_of, positive_int
from biases.ablation.images.dataset import Images, ImagesUnavailable, Progress

if TYPE_CHECKING:
    import PIL.Image

COLUMNS = ("path", "label", "split")
SPLITS = ("train", "val", "test")
LISTS = ("split.csv", "split.json")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SIZE = 224
BITS_PER_SAMPLE = 258
"""TIFF's tag."""


@dataclass(frozen=True)
class Entry:
    """One image of the list.

    Attributes:
        where: the list's file and the line (CSV) or entry (JSON) in it.
        name, label, split: as written there.
        path: of the file.
    """

    where: str
    name: str
    label: str
    split: str
    path: Path


def load_image_folder(
    root: str | os.PathLike[str],
    *,
    split_file: str | os.PathLike[str] | None = None,
    size: int = SIZE,
    test_split: str = "test",
    mirrored: bool = True,
    progress: Progress | None = None,
) -> Images:
    """Images below a directory, with classes and splits as a file lists them.

    The list is CSV in UTF-8 with the header ``path,label,split`` (columns in any order), or JSON: an array of objects
    with these three keys. Paths are relative to ``root``; splits are ``train``, ``val`` and ``test``. Every listed file
    must be there; files that are not listed are not used.

    Each image is converted to RGB of 8 bits (transparency and the orientation in EXIF are ignored; grey of 16 bits is
    divided by 257) and its central square is resized to ``size`` pixels a side (bicubic). All are held in memory:
    3 ``size * size`` bytes each.

    Args:
        root: the directory.
        split_file: the list; ``split.csv`` or else ``split.json`` in ``root`` if ``None``.
        size: side of the squares.
        test_split: the split that becomes ``Images.test``, ``"test"`` or ``"val"``; the other one is not read.
        mirrored: see :class:`Images`.
        progress: called with (files, files in all).

    Returns:
        classes in alphabetical order, images in the list's order. ``sha256`` is that of ``size`` and, in that order, of
        path, label, split and the SHA-256 of the file of every image that is used. Decoded JPEG files can differ by
        version of Pillow.

    Raises:
        ValueError: a list that cannot be read, an entry with an unknown split, without a label, twice, or with a path
            that is missing, no file, or outside ``root``; a split without images, a class without training images, a
            file that is no whole image or has pixels of 32 bits, whose range is not known. The message names the list
            and the line, or the image.
    """
    _require_pillow()
    positive_int("images size", size)
    one_of("images test_split", test_split, ("test", "val"))
    folder = Path(root)
    if not folder.is_dir():
        fail("images root", "a directory", repr(os.fspath(root)))
    listed = Path(split_file) if split_file is not None else _find_list(folder)
    entries = [entry for entry in _entries(listed, folder) if entry.split in ("train", test_split)]
    classes = _classes(listed, entries, test_split)
    digest = hashlib.sha256(f"{size}\n".encode())
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for split in ("train", test_split):
        count = sum(entry.split == split for entry in entries)
        parts[split] = torch.empty(count, 3, size, size, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    filled = dict.fromkeys(parts, 0)
    for done, entry in enumerate(entries, 1):
        raw = _read(entry)
        for text in (entry.name, entry.label, entry.split):
            digest.update(text.encode() + b"\0")
        digest.update(hashlib.sha256(raw).digest())
        images, labels = parts[entry.split]
        images[filled[entry.split]] = _square(raw, size, entry)
        labels[filled[entry.split]] = classes.index(entry.label)
        filled[entry.split] += 1
        if progress is not None:
            progress(done, len(entries))
    return Images(
        name=os.fspath(root),
        sha256=digest.hexdigest(),
        classes=classes,
        train=parts["train"][0],
        train_labels=parts["train"][1],
        test=parts[test_split][0],
        test_labels=parts[test_split][1],
        mirrored=mirrored,
    )


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImagesUnavailable(
            f"images of a folder: expected Pillow, which decodes them, got {error}; "
            "pip install 'attention-biases[vision]'"
        ) from error


def _find_list(folder: Path) -> Path:
    found = [folder / name for name in LISTS if (folder / name).is_file()]
    if not found:
        fail(f"images root {folder}", f"a list of the images, {' or '.join(LISTS)}", "neither")
    return found[0]


def _entries(listed: Path, folder: Path) -> list[Entry]:
    """The list, every entry checked."""
    readers = {".csv": _csv_rows, ".json": _json_rows}
    if listed.suffix.lower() not in readers:
        fail("images split_file", "a file *.csv or *.json", repr(str(listed)))
    try:
        text = listed.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{listed}: expected UTF-8, got {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ValueError(f"images split_file: expected a file, got {str(listed)!r} ({error.strerror})") from error
    root, seen, entries = folder.resolve(), dict[Path, str](), []
    for where, row in readers[listed.suffix.lower()](listed, text):
        entry = _entry(where, row, root)
        if entry.path in seen:
            fail(where, "each image once", f"{entry.name!r} again, after {seen[entry.path]}")
        seen[entry.path] = where
        entries.append(entry)
    return entries


def _csv_rows(listed: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if sorted(header) != sorted(COLUMNS):
            fail(f"{listed}, line 1", f"the header {','.join(COLUMNS)}", repr(",".join(header)))
        for row in reader:
            where = f"{listed}, line {reader.line_num}"
            if len(row) != len(header):
                fail(where, f"{len(header)} fields", f"{len(row)}: {row}")
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{listed}, line {reader.line_num}: expected CSV, got {error}") from error


def _json_rows(listed: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        rows: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{listed}: expected JSON, got {error}") from error
    if not isinstance(rows, list):
        fail(f"{listed}", f"an array of objects with {', '.join(COLUMNS)}", f"a {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        where = f"{listed}, entry {number}"
        if not isinstance(row, dict) or sorted(row) != sorted(COLUMNS):
            fail(where, f"an object with {', '.join(COLUMNS)}", json.dumps(row))
        for column, value in row.items():
            if not isinstance(value, str):
                fail(f"{where}, {column}", "a string", json.dumps(value))
        yield where, row


def _entry(where: str, row: dict[str, str], root: Path) -> Entry:
    """Check one row; ``root`` is resolved."""
    name, label, split = (row[column] for column in COLUMNS)
    one_of(f"{where}, split", split, SPLITS)
    if not label.strip():
        fail(f"{where}, label", "the name of a class", repr(label))
    try:
        path = (root / name).resolve()
        present = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}, path: expected a file below {root}, got {name!r} ({error})") from error
    if not path.is_relative_to(root):
        fail(f"{where}, path", f"a file below {root}", f"{name!r}, which is {path}")
    if not present:
        fail(
            f"{where}, path", f"a file below {root}", f"{name!r}, which is {'no file' if path.exists() else 'missing'}"
        )
    return Entry(where, name, label, split, path)


def _classes(listed: Path, entries: list[Entry], test_split: str) -> tuple[str, ...]:
    for split in ("train", test_split):
        if not any(entry.split == split for entry in entries):
            fail(f"{listed}", f"images of split {split!r}", "none")
    trained = {entry.label for entry in entries if entry.split == "train"}
    for entry in entries:
        if entry.label not in trained:
            fail(entry.where, f"a class with training images: one of {len(trained)}", repr(entry.label))
    return tuple(sorted(trained))


def _read(entry: Entry) -> bytes:
    try:
        return entry.path.read_bytes()
    except OSError as error:
        raise ValueError(f"{entry.where}: expected to read {entry.path}, got {error.strerror}") from error


def _square(raw: bytes, size: int, entry: Entry) -> Tensor:
    """Decode and resize the central square: (3, size, size), uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            image.load()
            colour = _rgb(image)
    # Decoders raise what they like on damaged input: SyntaxError, struct.error, EOFError and others.
    except Exception as error:
        _damaged(entry, error)
    width, height = colour.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Of the central square alone: the whole of a thin image would become as long as it is thin.
    scaled = colour.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(scaled, dtype=np.uint8)).permute(2, 0, 1)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """In 8 bits a channel; Pillow itself would cut off what is over 255 in modes of more.

    Raises:
        ValueError: pixels whose range is not known.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # TIFF of 12 bits has this mode too, unscaled.
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        if bits != (16,):
            raise ValueError(f"pixels of {bits} bits in mode {image.mode}, whose range is not known")
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is not known")
    return image.convert("RGB")


def _damaged(entry: Entry, error: Exception) -> NoReturn:
    expected = f"a whole image ({', '.join(FORMATS)})"
    raise ValueError(f"{entry.where}: expected {expected} in {entry.path}, got {error}") from error
