"""Training of image classifiers: what the seed decides, what augmentation may do, what is recorded."""

import json
import math
from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch
from torch import nn

from biases.ablation import Images, ImageTrainConfig, train_images
from biases.ablation.image_training import parameter_groups
from biases.ablation.images.sampling import batches, flipped, shifted
from biases.ablation.training import generator

CONFIG = ImageTrainConfig(steps=24, batch=8, learning_rate=1e-2, warmup=4, evaluate_every=12, shift=1)


class Net(nn.Module):
    """Convolution, normalisation, dropout and a head; ``extra`` is drawn before what it shares with the plain one."""

    def __init__(self, classes=3, extra=False):
        super().__init__()
        if extra:
            self.extra = nn.Linear(4, 4)
        self.convolution = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        x = nn.functional.relu(self.norm(self.convolution(images)))
        return self.head(self.dropout(x.mean((2, 3))))

    def initial_std(self, name):
        return 0.5 if name in ("convolution.weight", "head.weight") else None


def made_images(seed=0, mirrored=False):
    """Three classes: a bright spot, a horizontal bar, a full square."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    pixels = torch.randint(0, 40, (60, 1, 6, 6), generator=draw)
    pixels[labels == 0, :, 2:3, 2:3] += 200
    pixels[labels == 1, :, 2:3] += 200
    pixels[labels == 2] += 150
    pixels = pixels.to(torch.uint8)
    return Images(
        name="made",
        sha256="0" * 64,
        classes=("spot", "bar", "square"),
        train=pixels[:45],
        train_labels=labels[:45],
        test=pixels[45:],
        test_labels=labels[45:],
        mirrored=mirrored,
    )


IMAGES = made_images()


def trained(config=CONFIG, seed=0, images=IMAGES, build=Net, **options):
    torch.manual_seed(1)
    return train_images(build(), images, config, seed=seed, **options)


def test_a_small_net_learns_and_the_result_says_so():
    result = trained(replace(CONFIG, steps=120, evaluate_every=50))
    assert result["status"] == "ok"
    assert result["error"] is None
    metrics = result["metrics"]
    assert metrics["test_accuracy"] == 1.0
    assert metrics["train_accuracy"] == 1.0
    assert metrics["test_images"] == 15
    assert metrics["epochs"] == 120 * 8 / 45
    assert metrics["parameters"] == sum(p.numel() for p in Net().parameters())
    assert [point["step"] for point in result["curve"]] == [0, 50, 100, 120]
    assert result["curve"][0]["train_loss"] is None
    assert result["curve"][-1]["test_accuracy"] == metrics["test_accuracy"]
    assert result["curve"][-1]["test_loss"] == metrics["test_loss"] < result["curve"][0]["test_loss"]
    json.dumps(result, allow_nan=False)


def test_metrics_are_those_of_the_whole_split():
    model = Net()
    metrics = train_images(model, IMAGES, CONFIG, seed=0)["metrics"]
    model.eval()
    for split, images, labels in (
        ("test", IMAGES.test, IMAGES.test_labels),
        ("train", IMAGES.train, IMAGES.train_labels),
    ):
        with torch.no_grad():
            logits = model(IMAGES.normalise(images))
        assert metrics[f"{split}_accuracy"] == (logits.argmax(1) == labels).double().mean().item()
        expected = nn.functional.cross_entropy(logits.double(), labels).item()
        assert metrics[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_seed_decides_everything():
    first = trained()
    torch.manual_seed(99)
    torch.rand(7)
    assert trained() == first
    other = trained(seed=1)
    assert other["curve"][0] != first["curve"][0]
    assert other["metrics"]["test_loss"] != first["metrics"]["test_loss"]


def test_the_callers_random_state_is_left_alone():
    model = Net()
    before = torch.get_rng_state()
    train_images(model, IMAGES, CONFIG, seed=0)
    assert torch.equal(before, torch.get_rng_state())


class Recorder(Net):
    """Keeps what it is given in training and what it starts from."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []
        self.start = None

    def forward(self, images):
        if self.start is None:
            self.start = {name: value.clone() for name, value in self.state_dict().items()}
        if self.training:
            self.seen.append(images.clone())
        return super().forward(images)


def recorded(seed=0, config=CONFIG, **options):
    model = Recorder(**options)
    train_images(model, IMAGES, config, seed=seed)
    return model


def test_two_models_of_a_seed_see_the_same_images_and_start_from_the_same_values():
    torch.manual_seed(0)
    plain, wide = recorded(), recorded(extra=True)
    assert len(plain.seen) == CONFIG.steps
    for a, b in zip(plain.seen, wide.seen, strict=True):
        assert torch.equal(a, b)
    for name in ("convolution.weight", "head.weight"):
        assert torch.equal(plain.start[name], wide.start[name])
    assert not torch.equal(plain.start["convolution.bias"], wide.start["convolution.bias"])
    other = recorded(seed=1)
    assert not torch.equal(plain.seen[0], other.seen[0])
    assert not torch.equal(plain.start["head.weight"], other.start["head.weight"])


def test_one_augmentation_does_not_change_the_other_nor_the_order():
    images = made_images(mirrored=True)
    order = list(islice(batches(len(images.train), CONFIG.batch, generator(3, "batches")), 2))
    whole = replace(CONFIG, shift=0, flip=False, steps=2, warmup=0)
    model = Recorder()
    train_images(model, images, whole, seed=3)
    for chosen, seen in zip(order, model.seen, strict=True):
        assert torch.equal(seen, images.normalise(images.train[chosen]))
    both, flips = Recorder(), Recorder()
    train_images(both, images, replace(whole, shift=1, flip=True), seed=3)
    train_images(flips, images, replace(whole, shift=0, flip=True), seed=3)
    draw = generator(3, "flips")
    for chosen, seen, alone in zip(order, both.seen, flips.seen, strict=True):
        state = draw.get_state()
        assert torch.equal(alone, images.normalise(flipped(images.train[chosen], draw)))
        draw.set_state(state)
        which = torch.randint(0, 2, (len(chosen), 1, 1, 1), generator=draw).bool().flatten()
        assert seen.shape == alone.shape
        assert which.any()
        assert not which.all()


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


def test_flips_are_refused_where_they_change_the_class():
    with pytest.raises(ValueError, match="flip with images 'made': expected False"):
        trained(replace(CONFIG, flip=True))
    flippable = made_images(mirrored=True)
    assert trained(replace(CONFIG, flip=True), images=flippable)["status"] == "ok"


def test_a_loss_that_is_not_finite_is_a_result():
    result = trained(replace(CONFIG, learning_rate=1e30, clip=None, steps=60, evaluate_every=60))
    assert result["status"] == "diverged"
    step = result["metrics"]["diverged_at"]
    assert 1 < step <= 60
    assert result["error"] in (f"{what} loss is not finite at step {step}" for what in ("training", "evaluation"))
    assert list(result["metrics"]) == ["diverged_at"]
    assert [point["step"] for point in result["curve"]] == [0]


def test_a_model_that_starts_from_nan_is_a_result():
    class Broken(Net):
        def forward(self, images):
            return super().forward(images) * math.nan

    result = trained(build=Broken)
    assert result == {
        "status": "diverged",
        "error": "evaluation loss is not finite at step 0",
        "metrics": {"diverged_at": 0},
        "curve": [],
    }


def test_progress_is_told_and_can_end_it():
    events = []
    trained(progress=events.append)
    assert [(e["event"], e["step"]) for e in events] == [
        ("evaluation", 0),
        ("step", 12),
        ("evaluation", 12),
        ("step", 24),
        ("evaluation", 24),
    ]
    assert {event["steps"] for event in events} == {CONFIG.steps}

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(progress=stop)


def test_what_is_decayed():
    class Exempt(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 3))
            self.no_weight_decay = ("table",)

    model = Exempt()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0
    assert {names[id(p)] for p in decayed["params"]} == {"convolution.weight", "head.weight"}
    rest = {"convolution.bias", "norm.weight", "norm.bias", "head.bias", "table"}
    assert {names[id(p)] for p in kept["params"]} == rest

    class Own(Net):
        def parameter_groups(self, weight_decay):
            return [{"params": [self.head.weight], "weight_decay": weight_decay}]

    before = Own()
    start = before.head.bias.clone()
    train_images(before, IMAGES, CONFIG, seed=0)
    assert torch.equal(before.head.bias, start)


def test_label_smoothing_is_for_training_only():
    config = replace(CONFIG, steps=100, evaluate_every=50)
    plain, smoothed = (trained(replace(config, label_smoothing=share)) for share in (0.0, 0.5))
    assert plain["curve"][0] == smoothed["curve"][0]
    # The cross-entropy to a target is at least the target's entropy: 0.5 of it is spread over three classes.
    target = torch.tensor([2 / 3, 1 / 6, 1 / 6])
    entropy = -(target * target.log()).sum().item()
    assert plain["curve"][-1]["train_loss"] < entropy
    for point in smoothed["curve"][1:]:
        assert point["train_loss"] > entropy
    assert smoothed["metrics"]["test_loss"] < entropy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"batch": 2.5}, "batch: expected an integer of at least 1"),
        ({"warmup": 1000}, "warmup: expected fewer updates than steps=1000"),
        ({"shift": -1}, "shift: expected an integer of at least 0"),
        ({"flip": 1}, "flip: expected True or False, got 1"),
        ({"schedule": "cosin"}, "schedule: expected one of 'cosine', 'constant'"),
        ({"learning_rate": 0}, r"learning_rate: expected a number in \(0, inf\), got 0"),
        ({"weight_decay": -1}, "weight_decay: expected a number in"),
        ({"label_smoothing": 1}, r"label_smoothing: expected a number in \[0, 1\), got 1"),
        ({"clip": 0.0}, "clip: expected a number in"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"ImageTrainConfig {message}"):
        ImageTrainConfig(**changes)


def test_a_configuration_survives_json():
    config = ImageTrainConfig(learning_rate=1, clip=None, betas=[0.5, 0.6])
    again = ImageTrainConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"seed": 0, "device": "cuda:99"}, "device: expected one that PyTorch can use here, got 'cuda:99'"),
    ],
)
def test_bad_seeds_and_devices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_images(Net(), IMAGES, CONFIG, **options)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"model output: expected logits of shape \(8, 3\), got \(8, 4\)"):
        train_images(Net(classes=4), IMAGES, CONFIG, seed=0)
