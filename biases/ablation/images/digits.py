"""The handwritten digits that scikit-learn carries: 1797 images of 8 x 8 pixels, no network needed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from biases._checks import fail
from biases.ablation.images.dataset import Images, ImagesUnavailable

COUNT = 1797
WHITE = 16
TEST_SHARE = 0.2
SPLIT = "biases digits split 1"
"""What the split is drawn from; see :func:`load_digits`."""


def load_digits() -> Images:
    """The digits with a fixed split, stratified by class: 20 % of each class, rounded, for testing.

    The split depends on the position in scikit-learn's order and on nothing else: the images of a class are ordered by
    the SHA-256 of ``"biases digits split 1:<position>"``, and the first fifth of them is the test split. Both splits
    keep scikit-learn's order. They share writers: accuracy here is on new digits, not on new hands.

    Values are 0 (background) to 16, one channel. ``sha256`` is that of all pixels (row-major, one byte each) followed
    by all labels (one byte each), before the split.

    Raises:
        ValueError: scikit-learn is missing, or carries other data.
    """
    pixels, labels = _read()
    held_out = held_out_positions(labels)
    images = torch.from_numpy(pixels).unsqueeze(1)
    targets = torch.from_numpy(labels.astype(np.int64))
    return Images(
        name="digits",
        sha256=hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(),
        classes=tuple(map(str, range(10))),
        train=images[~held_out],
        train_labels=targets[~held_out],
        test=images[held_out],
        test_labels=targets[held_out],
    )


def held_out_positions(labels: np.ndarray) -> torch.Tensor:
    """Which images are the test split: labels (N,) -> boolean (N,)."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=_key)
        held_out[members[: round(TEST_SHARE * len(members))]] = True
    return held_out


def _key(position: int) -> bytes:
    return hashlib.sha256(f"{SPLIT}:{position}".encode()).digest()


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 8, 8) and labels (N,), both uint8."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImagesUnavailable(
            f"images 'digits': expected scikit-learn, which carries them, got {error}; "
            "pip install 'attention-biases[vision]'"
        ) from error
    found = datasets.load_digits()
    images, labels = np.asarray(found.images), np.asarray(found.target)
    if images.shape != (COUNT, 8, 8) or labels.shape != (COUNT,):
        fail("scikit-learn's digits", f"{COUNT} images of 8 x 8 with a label each", f"{images.shape}, {labels.shape}")
    pixels = images.astype(np.uint8)
    if not np.array_equal(pixels, images) or pixels.max() > WHITE:
        fail("scikit-learn's digits", f"integers from 0 to {WHITE}", f"{images.min()} to {images.max()}")
    if set(labels.tolist()) != set(range(10)):
        fail("scikit-learn's digits", "labels 0 to 9", sorted(set(labels.tolist())))
    return pixels, labels.astype(np.uint8)
