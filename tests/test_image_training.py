"""Training of image classifiers: what the seed decides, what augmentation may do, what is recorded."""

import json
import math
from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch
from torch import nn

from biases.ablation import Images, ImageTrainConfig, train_images
from biases.ablation.images.sampling import batches, flipped, shifted
from biases.ablation.training import generator
from biases.models import parameter_groups

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


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (2, False), (0, True), (2, True)])
def test_each_augmentation_draws_from_a_generator_of_its_own(shift, flip):
    images = made_images(mirrored=True)
    model = Recorder()
    train_images(model, images, replace(CONFIG, shift=shift, flip=flip, steps=3, warmup=0), seed=3)
    order = islice(batches(len(images.train), CONFIG.batch, generator(3, "batches")), 3)
    shifts, flips = generator(3, "shifts"), generator(3, "flips")
    assert len(model.seen) == 3
    for chosen, seen in zip(order, model.seen, strict=True):
        plain = images.train[chosen]
        x = shifted(plain, shift, shifts)
        assert torch.equal(x, plain) is (shift == 0)
        if flip:
            mirrored = flipped(x, flips)
            assert not torch.equal(mirrored, x)
            x = mirrored
        assert torch.equal(seen, images.normalise(x))


class Linear(nn.Module):
    """Logits linear in the pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 36))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), self.weight, self.bias)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_updates_are_those_of_adamw_by_hand(schedule):
    config = ImageTrainConfig(
        steps=6,
        batch=8,
        learning_rate=0.1,
        warmup=2,
        weight_decay=0.5,
        betas=(0.6, 0.8),
        clip=0.8,
        schedule=schedule,
        label_smoothing=0.1,
        evaluate_every=6,
    )
    factors = [0.5, 1.0, *([0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)])]
    if schedule == "constant":
        factors = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    start = torch.randn(3, 37, generator=torch.Generator().manual_seed(0)).double() / 2
    model = Linear()
    with torch.no_grad():
        model.weight.copy_(start[:, :36])
        model.bias.copy_(start[:, 36])
    value = torch.cat((model.weight, model.bias[:, None]), 1).detach().double()
    decay = torch.full_like(value, config.weight_decay)
    decay[:, 36] = 0
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    norms = []
    order = batches(len(IMAGES.train), config.batch, generator(5, "batches"))
    for step, factor in enumerate(factors, 1):
        chosen = next(order)
        x = nn.functional.pad(IMAGES.normalise(IMAGES.train[chosen]).flatten(1).double(), (0, 1), value=1.0)
        target = torch.full((8, 3), 0.1 / 3, dtype=torch.float64)
        target[torch.arange(8), IMAGES.train_labels[chosen]] += 0.9
        gradient = ((x @ value.T).softmax(1) - target).T @ x / 8
        norms.append(gradient.norm().item())
        gradient = gradient * min(1.0, config.clip / norms[-1])
        first = 0.6 * first + 0.4 * gradient
        second = 0.8 * second + 0.2 * gradient**2
        rate = config.learning_rate * factor
        value = value * (1 - rate * decay)
        value = value - rate * (first / (1 - 0.6**step)) / ((second / (1 - 0.8**step)).sqrt() + 1e-8)
    # Some gradients are clipped and some are not.
    assert min(norms) < config.clip < max(norms)
    train_images(model, IMAGES, config, seed=5)
    got = torch.cat((model.weight, model.bias[:, None]), 1).detach().double()
    # Rounding of float32; each setting that is ignored changes more than a hundredth.
    torch.testing.assert_close(got, value, rtol=0, atol=2e-4)


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
        "learned": {},
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
    decayed, kept = parameter_groups(model, 0.3, decay_vectors=False)
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


@pytest.mark.parametrize("shift", [5, 6, 60])
def test_a_shift_by_the_smaller_side_or_more_is_refused(shift):
    wide = replace(IMAGES, train=IMAGES.train[:, :, :5], test=IMAGES.test[:, :, :5])
    with pytest.raises(ValueError, match=f"shift with images 'made': expected less than .*5 pixels, got {shift}"):
        trained(replace(CONFIG, shift=shift), images=wide)
    assert trained(replace(CONFIG, shift=4, steps=5), images=wide)["status"] == "ok"


def test_a_trained_model_can_be_trained_on():
    torch.manual_seed(1)
    model = Net()
    before = train_images(model, IMAGES, CONFIG, seed=0)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    onward = train_images(model, IMAGES, CONFIG, seed=1, initialise=False)
    assert onward["curve"][0]["test_loss"] == before["metrics"]["test_loss"]
    assert onward["metrics"]["test_loss"] < before["metrics"]["test_loss"]
    model.load_state_dict(saved)
    redrawn = train_images(model, IMAGES, CONFIG, seed=1)
    assert redrawn["curve"][0]["test_loss"] != before["metrics"]["test_loss"]
