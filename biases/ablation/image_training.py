"""Training an image classifier, so that the models of one seed differ in the model and in nothing else.

Under one seed all models see the same images in the same order with the same augmentation, and start from equal values
in every parameter that has the same name and shape and of which they declare a distribution. Arithmetic is float32
unless the configuration asks for less precise updates; the reported accuracies are those after the last update, never
the best, and are always evaluated in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import fail, one_of
from biases.ablation._cells import ADDED, checked_count, checked_number
from biases.ablation._loop import Diverged, Progress, Training, arithmetic, check_device, own_random_state
from biases.ablation.evaluation import evaluating
from biases.ablation.images import Images
from biases.ablation.images.sampling import batches, flipped, shifted
from biases.ablation.spec import PRECISIONS, Optimisation
from biases.ablation.training import generator
from biases.ablation.training import initialise as redraw


@dataclass(frozen=True)
class ImageTrainConfig(Optimisation):
    """How every model is trained and evaluated.

    Weight decay and label smoothing are those of Swin's and RMT's training; the rest is sized for small images.

    Attributes:
        steps: updates.
        batch: images an update.
        learning_rate: peak of the schedule.
        warmup: updates of linear warm-up, fewer than ``steps``.
        weight_decay: AdamW's; see :func:`train_images` for what is decayed.
        betas: AdamW's.
        clip: largest gradient norm; ``None`` for no clipping.
        schedule: ``"cosine"`` (to 0 at the last update) or ``"constant"``, after the warm-up.
        label_smoothing: share of the target spread over all classes, [0, 1); in training only.
        shift: largest random shift of a training image, in pixels, in each direction; what comes in is 0.
        flip: mirror a training image left to right with probability 1/2; only for data whose classes allow it.
        evaluate_every: updates between two points of the curve.
        precision: of the updates: ``"float32"``, or ``"bfloat16"`` by autocast, where weights, optimiser and evaluation
            stay float32.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    schedule: str = "cosine"
    label_smoothing: float = 0.1
    shift: int = 0
    flip: bool = False
    evaluate_every: int = 250
    precision: str = field(default="float32", metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing = checked_number("ImageTrainConfig label_smoothing", self.label_smoothing, 0, 1)
        object.__setattr__(self, "label_smoothing", smoothing)
        checked_count("ImageTrainConfig shift", self.shift)
        if not isinstance(self.flip, bool):
            fail("ImageTrainConfig flip", "True or False", repr(self.flip))
        one_of("ImageTrainConfig precision", self.precision, PRECISIONS)


def build_image_model(name: str, images: Images, seed: int, **options: Any) -> nn.Module:
    """The zoo's model ``name`` for these images' classes and channels, with ``options``, built under ``seed``.

    The caller's random state is left as it was.

    Raises:
        ValueError: unknown name or option, no image model.
    """
    from biases import zoo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.model(name, classes=len(images.classes), channels=images.channels, **options)


def check_augmentation(config: ImageTrainConfig, images: Images) -> None:
    """Check that the images may be varied as the training does.

    Raises:
        ValueError: a flip of images that do not allow it, a shift by their smaller side or more.
    """
    if config.flip and not images.mirrored:
        fail(
            f"ImageTrainConfig flip with images {images.name!r}", "False: a mirror image may be of another class", True
        )
    smaller = min(images.train.shape[2:])
    if config.shift >= smaller:
        expected = f"less than the smaller side, {smaller} pixels"
        fail(f"ImageTrainConfig shift with images {images.name!r}", expected, config.shift)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: the model's own, or else by :func:`biases.models.parameter_groups`."""
    from biases.models import parameter_groups

    own = getattr(model, "parameter_groups", None)
    if own is not None:
        return cast(Any, own)(weight_decay)
    return parameter_groups(model, weight_decay, decay_vectors=False)


class _ImageTraining(Training):
    def __init__(
        self,
        model: nn.Module,
        images: Images,
        config: ImageTrainConfig,
        seed: int,
        device: str,
        progress: Progress | None,
    ) -> None:
        self.images, self.device = images, device
        model.to(device)
        super().__init__(model, _groups(model, config.weight_decay), config, seed, progress=progress, names={})
        self.order = batches(len(images.train), config.batch, generator(seed, "batches"))
        # Generators of their own: one augmentation does not change what another draws.
        self.shifts, self.flips = generator(seed, "shifts"), generator(seed, "flips")
        self.smoothing, self.shift, self.flip = config.label_smoothing, config.shift, config.flip
        self.precision = config.precision
        self.latest: tuple[float, float] = (math.nan, math.nan)

    def logits(self, images: Tensor) -> Tensor:
        """Bytes (N, channels, H, W) -> (N, classes), float32."""
        logits = self.model(self.images.normalise(images.to(self.device)))
        expected = (len(images), len(self.images.classes))
        if tuple(logits.shape) != expected:
            fail("model output", f"logits of shape {expected}", tuple(logits.shape))
        return logits.float()

    def measure(self, images: Tensor, labels: Tensor, step: int) -> tuple[float, float]:
        """Accuracy and mean cross-entropy over a whole split, without augmentation or smoothing."""
        losses, right = [], 0
        with evaluating(self.model):
            for x, y in zip(images.split(self.config.batch), labels.split(self.config.batch), strict=True):
                logits, y = self.logits(x), y.to(self.device)
                losses.append(F.cross_entropy(logits, y, reduction="none").cpu().double())
                right += int((logits.argmax(1) == y).sum())
        loss = torch.cat(losses)
        if not loss.isfinite().all():
            raise Diverged("evaluation loss", step)
        return right / len(images), loss.mean().item()

    def loss(self) -> Tensor:
        chosen = next(self.order)
        x = shifted(self.images.train[chosen], self.shift, self.shifts)
        if self.flip:
            x = flipped(x, self.flips)
        labels = self.images.train_labels[chosen].to(self.device)
        with arithmetic(self.device, self.precision):
            logits = self.logits(x)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def evaluate(self, step: int, train_loss: float | None) -> dict[str, float | int | None]:
        self.latest = self.measure(self.images.test, self.images.test_labels, step)
        accuracy, loss = self.latest
        return {"train_loss": train_loss, "test_loss": loss, "test_accuracy": accuracy}

    def metrics(self) -> dict[str, Any]:
        """See :func:`train_images`."""
        accuracy, loss = self.latest
        images, config = self.images, self.config
        train_accuracy, train_loss = self.measure(images.train, images.train_labels, config.steps)
        return {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "train_accuracy": train_accuracy,
            "train_loss": train_loss,
            "test_images": len(images.test),
            "epochs": config.steps * config.batch / len(images.train),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def train_images(
    model: nn.Module,
    images: Images,
    config: ImageTrainConfig,
    *,
    seed: int,
    device: str = "cpu",
    initialise: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and evaluate a model, in place. The caller's random state is left as it was.

    Args:
        model: maps normalised images (N, channels, H, W) to logits (N, classes). AdamW's groups are its own where it
            has ``parameter_groups(weight_decay)``, and :func:`biases.models.parameter_groups` (biases, normalisations
            and what a module exempts are not decayed) otherwise.
        images: all of the test split is evaluated.
        config: the same for every model of a comparison.
        seed: of the order, the augmentation, the initial weights and dropout; at least 0.
        device: where to train; order, augmentation and initial weights are drawn on the CPU and do not depend on it.
        initialise: redraw the parameters of which the model declares a distribution (``initial_std(name)``, the
            standard deviation of a normal; ``None`` for the others) from ``seed``, name and shape, so that models of a
            seed start equal where they can; the others start as they are. ``False`` leaves all as they are: for a model
            that was trained before, whose weights would be lost.
        progress: called with ``{"event": "step" | "evaluation", "step", "steps", ...}``; an exception that it raises
            ends the training.

    Returns:
        ``{"status", "error", "metrics", "learned", "curve"}``. ``status`` is ``"ok"``, or ``"diverged"`` where a loss
        was not finite (``error`` then says which and when, ``metrics`` is ``{"diverged_at": step}``). ``metrics``,
        without augmentation or smoothing, losses in nats: ``test_accuracy``, ``test_loss``, ``train_accuracy``,
        ``train_loss`` (each of the whole split), ``test_images``, ``epochs``, ``parameters``. ``learned``: see
        :func:`~biases.ablation._loop.learned_values`. ``curve``: ``step``, ``train_loss`` (mean of the updates since
        the last point, with augmentation, smoothing and dropout; ``None`` at step 0), ``test_loss`` and
        ``test_accuracy``.

    Raises:
        ValueError: a flip of images that do not allow it, a shift by their smaller side or more, a negative seed, a
            device that is not here, images or logits that do not fit the model.
    """
    checked_count("seed", seed)
    check_augmentation(config, images)
    device = check_device(device)
    with own_random_state(device, seed):
        if initialise and hasattr(model, "initial_std"):
            redraw(model, seed)
        return _ImageTraining(model, images, config, seed, device, progress).run()
