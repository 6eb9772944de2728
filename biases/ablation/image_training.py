"""Training an image classifier, so that the models of one seed differ in the model and in nothing else.

Under one seed all models see the same images in the same order with the same augmentation, and start from equal values
in every parameter that has the same name and shape and of which they declare a distribution. Arithmetic is float32
throughout; the reported accuracies are those after the last update, never the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import fail, one_of, positive_int
from biases.ablation.evaluation import evaluating
from biases.ablation.images import Images
from biases.ablation.images.sampling import batches, flipped, shifted
from biases.ablation.spec import SCHEDULES, checked_count, checked_number
from biases.ablation.training import (
    REPORT_EVERY,
    Diverged,
    Progress,
    check_device,
    generator,
    initialise,
    learning_rate,
)


@dataclass(frozen=True)
class ImageTrainConfig:
    """How every model is trained and evaluated.

    Weight decay and label smoothing are those of Swin's and RMT's training; the rest is sized for small images.

    Attributes:
        steps: updates.
        batch: images an update.
        learning_rate: peak of the schedule.
        warmup: updates of linear warm-up, fewer than ``steps``.
        weight_decay: AdamW's, on what :func:`parameter_groups` says.
        betas: AdamW's.
        clip: largest gradient norm; ``None`` for no clipping.
        schedule: ``"cosine"`` (to 0 at the last update) or ``"constant"``, after the warm-up.
        label_smoothing: share of the target spread over all classes, [0, 1); in training only.
        shift: largest random shift of a training image, in pixels, in each direction; what comes in is 0.
        flip: mirror a training image left to right with probability 1/2; only for data whose classes allow it.
        evaluate_every: updates between two points of the curve.

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

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every"):
            positive_int(f"ImageTrainConfig {name}", getattr(self, name))
        if checked_count("ImageTrainConfig warmup", self.warmup) >= self.steps:
            fail("ImageTrainConfig warmup", f"fewer updates than steps={self.steps}", self.warmup)
        checked_count("ImageTrainConfig shift", self.shift)
        one_of("ImageTrainConfig schedule", self.schedule, SCHEDULES)
        if not isinstance(self.flip, bool):
            fail("ImageTrainConfig flip", "True or False", repr(self.flip))
        self._set(
            "learning_rate", checked_number("ImageTrainConfig learning_rate", self.learning_rate, 0, open_low=True)
        )
        self._set("weight_decay", checked_number("ImageTrainConfig weight_decay", self.weight_decay, 0))
        self._set("label_smoothing", checked_number("ImageTrainConfig label_smoothing", self.label_smoothing, 0, 1))
        if self.clip is not None:
            self._set("clip", checked_number("ImageTrainConfig clip", self.clip, 0, open_low=True))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            fail("ImageTrainConfig betas", "two numbers", repr(self.betas))
        self._set("betas", tuple(checked_number("ImageTrainConfig betas", beta, 0, 1) for beta in self.betas))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def build_image_model(name: str, images: Images, seed: int) -> nn.Module:
    """The zoo's model ``name`` for these images' classes and channels, built under ``seed``.

    The caller's random state is left as it was.

    Raises:
        ValueError: unknown name or option, no image model.
    """
    from biases import zoo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.model(name, classes=len(images.classes), channels=images.channels)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: the model's own where it has ``parameter_groups(weight_decay)``.

    Otherwise parameters with fewer than two axes (biases, normalisations, scales) and those that a module names in
    ``no_weight_decay`` are not decayed.
    """
    own = getattr(model, "parameter_groups", None)
    if own is not None:
        return cast(Any, own)(weight_decay)
    decayed, kept = list[nn.Parameter](), list[nn.Parameter]()
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim < 2 or name in getattr(module, "no_weight_decay", ())
    }
    for parameter in model.parameters():
        (kept if id(parameter) in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class _Run:
    """The state of one training."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        config: ImageTrainConfig,
        seed: int,
        device: str,
        progress: Progress | None,
    ) -> None:
        self.model, self.images, self.config, self.device, self.progress = model, images, config, device, progress
        if hasattr(model, "initial_std"):
            initialise(model, seed)
        model.to(device)
        groups = parameter_groups(model, config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        self.order = batches(len(images.train), config.batch, generator(seed, "batches"))
        # Generators of their own: one augmentation does not change what another draws.
        self.shifts, self.flips = generator(seed, "shifts"), generator(seed, "flips")
        self.curve: list[dict[str, float | int | None]] = []
        self.losses: list[Tensor] = []
        self.latest: tuple[float, float] = (math.nan, math.nan)

    def event(self, kind: str, **values: Any) -> None:
        if self.progress is not None:
            self.progress({"event": kind, "steps": self.config.steps, **values})

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

    def recent(self, step: int, since: int) -> list[float]:
        """Training losses of the updates after ``since``, checked."""
        values = torch.stack(self.losses).tolist() if self.losses else []
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise Diverged("training loss", since + index + 1)
        if values:
            self.event("step", step=step, loss=values[-1])
        self.losses.clear()
        return values

    def evaluate(self, step: int, train_losses: list[float]) -> None:
        self.latest = self.measure(self.images.test, self.images.test_labels, step)
        accuracy, loss = self.latest
        train = sum(train_losses) / len(train_losses) if train_losses else None
        self.curve.append({"step": step, "train_loss": train, "test_loss": loss, "test_accuracy": accuracy})
        self.event("evaluation", step=step, train_loss=train, test_loss=loss, test_accuracy=accuracy)

    def update(self, step: int) -> None:
        config = self.config
        chosen = next(self.order)
        x = shifted(self.images.train[chosen], config.shift, self.shifts)
        if config.flip:
            x = flipped(x, self.flips)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        labels = self.images.train_labels[chosen].to(self.device)
        loss = F.cross_entropy(self.logits(x), labels, label_smoothing=config.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimiser.step()
        self.losses.append(loss.detach())

    def train(self) -> None:
        config = self.config
        self.model.train()
        self.evaluate(0, [])
        seen, since_evaluation = 0, list[float]()
        for step in range(1, config.steps + 1):
            self.update(step)
            due = step % config.evaluate_every == 0 or step == config.steps
            if due or step - seen == REPORT_EVERY:
                since_evaluation += self.recent(step, seen)
                seen = step
            if due:
                self.evaluate(step, since_evaluation)
                since_evaluation = []

    def metrics(self) -> dict[str, Any]:
        """Values after the last update, whose evaluation is the latest; see :func:`train_images`."""
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and evaluate a freshly built model, in place. The caller's random state is left as it was.

    Args:
        model: maps normalised images (N, channels, H, W) to logits (N, classes). Parameters of which it declares a
            distribution (``initial_std(name)``, the standard deviation of a normal; ``None`` for the others) are drawn
            anew from ``seed``, name and shape; the others start as they are. See also :func:`parameter_groups`.
        images: all of the test split is evaluated.
        config: the same for every model of a comparison.
        seed: of the order, the augmentation, the initial weights and dropout; at least 0.
        device: where to train; order, augmentation and initial weights are drawn on the CPU and do not depend on it.
        progress: called with ``{"event": "step" | "evaluation", "step", "steps", ...}``; an exception that it raises
            ends the training.

    Returns:
        ``{"status", "error", "metrics", "curve"}``. ``status`` is ``"ok"``, or ``"diverged"`` where a loss was not
        finite (``error`` then says which and when, ``metrics`` is ``{"diverged_at": step}``). ``metrics``, without
        augmentation or smoothing, losses in nats: ``test_accuracy``, ``test_loss``, ``train_accuracy``, ``train_loss``
        (each of the whole split), ``test_images``, ``epochs``, ``parameters``. ``curve``: ``step``, ``train_loss``
        (mean of the updates since the last point, with augmentation, smoothing and dropout; ``None`` at step 0),
        ``test_loss`` and ``test_accuracy``.

    Raises:
        ValueError: a flip of images that do not allow it, a negative seed, a device that is not here, images or logits
            that do not fit the model.
    """
    checked_count("seed", seed)
    if config.flip and not images.mirrored:
        fail(
            f"ImageTrainConfig flip with images {images.name!r}", "False: a mirror image may be of another class", True
        )
    device = check_device(device)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        run = _Run(model, images, config, seed, device, progress)
        torch.manual_seed(seed)
        try:
            run.train()
            outcome: Mapping[str, Any] = {"status": "ok", "error": None, "metrics": run.metrics()}
        except Diverged as diverged:
            reached = {"diverged_at": diverged.step}
            outcome = {"status": "diverged", "error": str(diverged), "metrics": reached}
    return {**outcome, "curve": run.curve}
