"""Order and augmentation of training images."""

from itertools import islice

import pytest
import torch
from torch import nn

from biases.ablation.images.sampling import batches, flipped, shifted
from biases.ablation.training import generator


def test_every_image_is_seen_once_in_every_epoch():
    order = torch.cat(list(islice(batches(10, 4, generator(0, "batches")), 10)))
    for epoch in order.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    larger = next(batches(3, 7, generator(0, "batches")))
    assert torch.bincount(larger).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_shift_moves_whole_images_by_at_most_its_limit(limit):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (400, 2, 5, 4), dtype=torch.uint8, generator=draw)
    moved = shifted(images, limit, draw)
    padded = nn.functional.pad(images, (limit,) * 4)
    offsets = set()
    for image, source in zip(moved, padded, strict=True):
        found = [
            (down, right)
            for down in range(2 * limit + 1)
            for right in range(2 * limit + 1)
            if torch.equal(image, source[:, down : down + 5, right : right + 4])
        ]
        assert len(found) == 1
        offsets |= set(found)
    assert len(offsets) == (2 * limit + 1) ** 2


def test_a_flip_mirrors_about_half_of_the_images():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 2, 5, 4), dtype=torch.uint8, generator=draw)
    result = flipped(images, draw)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    same = (result == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    # Six standard deviations of 400 fair coins.
    assert abs(int(mirrored.sum()) - 200) < 60
