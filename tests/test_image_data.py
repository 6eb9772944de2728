"""Images: digits and their splits, statistics, names."""

import hashlib

import numpy as np
import pytest
import torch

from biases.ablation import Images, ImagesUnavailable, load_cifar10, load_digits, load_image_folder, load_images
from biases.ablation.images.digits import held_out_positions


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
