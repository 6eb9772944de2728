"""Labelled images in memory, split into training and test, as every reader here returns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from biases._checks import fail

Progress = Callable[[int, int], None]
"""Called with (done, total) while a reader works: bytes of a download, files of a folder."""


class ImagesUnavailable(ValueError):
    """A data set that cannot be had here (no network, damaged copy, missing library)."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images of two disjoint splits with one label each.

    Attributes:
        name: the data set's name, or the path as it was given.
        sha256: of the bytes that the images were read from; each reader says which these are.
        classes: their names; a label is an index into them.
        train, test: (N, channels, H, W), uint8, of one shape per image.
        train_labels, test_labels: (N,), int64.
        mirrored: whether the mirror image of every image is of the same class, so that training may flip it.

    Raises:
        ValueError: shapes, dtypes or labels that do not fit, an empty split, a class without training images.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mirrored: bool = False

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("training", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            what = f"images {self.name!r}, {split} split"
            if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
                fail(what, "uint8 images of shape (N, channels, H, W)", f"{images.dtype} of {tuple(images.shape)}")
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                got = f"{labels.dtype} of {tuple(labels.shape)}"
                fail(f"{what} labels", f"int64 of shape ({len(images)},)", got)
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                fail(f"{what} labels", f"0 to {len(self.classes) - 1}", f"{low} to {high}")
        if self.train.shape[1:] != self.test.shape[1:]:
            expected = f"test images of {tuple(self.train.shape[1:])}, as in training"
            fail(f"images {self.name!r}", expected, tuple(self.test.shape[1:]))
        counts = torch.bincount(self.train_labels, minlength=len(self.classes)).tolist()
        unseen = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if unseen:
            fail(f"images {self.name!r}", "training images of every class", f"none of {', '.join(map(repr, unseen))}")

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean of each channel over the training split, (channels,), float32, in units of the stored bytes."""
        return self._moments[0]

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation (over N, H and W, biased) of each channel over the training split, (channels,), float32.

        A channel that is constant there has 1, so that it can be divided by.
        """
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Exact: sums of bytes over a histogram of 256 values."""
        value = torch.arange(256, dtype=torch.float64)
        means, stds = [], []
        for channel in self.train.unbind(1):
            share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
            mean = share @ value
            means.append(mean)
            stds.append((share @ (value - mean).square()).sqrt())
        std = torch.stack(stds)
        return torch.stack(means).float(), torch.where(std > 0, std, 1.0).float()

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the training split's mean and divide by its standard deviation, channel by channel.

        Args:
            images: (N, channels, H, W), uint8 or floating, in units of the stored bytes.

        Returns:
            the same shape, float32, on the same device.
        """
        mean, std = (moment.to(images.device)[:, None, None] for moment in (self.mean, self.std))
        return (images.float() - mean) / std
