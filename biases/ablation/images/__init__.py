"""Images for classifiers: scikit-learn's digits, CIFAR-10, folders of files."""

from __future__ import annotations

import os
from pathlib import Path

from biases._checks import fail
from biases.ablation.images.cifar import ARCHIVE, BATCHES, FOLDER, load_cifar10
from biases.ablation.images.dataset import Images, ImagesUnavailable, Progress
from biases.ablation.images.digits import load_digits
from biases.ablation.images.folder import LISTS, load_image_folder

__all__ = [
    "IMAGE_DATASETS",
    "Images",
    "ImagesUnavailable",
    "Progress",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_images",
]

IMAGE_DATASETS = ("digits", "cifar10")


def load_images(name_or_path: str | os.PathLike[str] = "digits", *, progress: Progress | None = None) -> Images:
    """Load a data set by name, or from files.

    Args:
        name_or_path: ``"digits"`` (needs scikit-learn, no network); ``"cifar10"``, fetched once and cached; an archive
            of CIFAR-10 (``*.tar.gz``) or a directory with its batches; or a directory of images with ``split.csv`` or
            ``split.json`` in it, of which :func:`load_image_folder` says more. A path object, or a string with a
            directory in it, is always a path.
        progress: called with (done, total): bytes of a download, files of a folder.

    Raises:
        ValueError: nothing there that can be read, or damaged files; as :class:`ImagesUnavailable` where a data set
            cannot be had.
    """
    if isinstance(name_or_path, str):
        if name_or_path == "digits":
            return load_digits()
        if name_or_path == "cifar10":
            return load_cifar10(progress=progress)
    path = Path(name_or_path)
    if any((path / name).is_file() for name in LISTS):
        return load_image_folder(path, progress=progress)
    batches = [folder / batch for folder in (path, path / FOLDER) for batch in BATCHES]
    if not (path.is_file() or any(batch.is_file() for batch in batches)):
        known = ", ".join(map(repr, IMAGE_DATASETS))
        expected = f"one of {known}, an archive {ARCHIVE}, or a directory of images with {' or '.join(LISTS)}"
        fail("images", expected, repr(os.fspath(name_or_path)))
    return load_cifar10(path)
