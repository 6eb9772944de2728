"""What a study declares before it is run: its metric, the smallest effect of interest, and its contrasts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from biases._checks import fail, one_of
from biases.ablation._cells import checked_count, checked_name, checked_number
from biases.stats import attainable_seeds


@dataclass(frozen=True)
class Quantity:
    """What a metric measures: metrics of one quantity share unit, margin and direction.

    Attributes:
        name: of the quantity.
        larger_is_better: ``None`` where only a study can say.
    """

    name: str
    larger_is_better: bool | None


LOSS, ACCURACY = Quantity("loss", larger_is_better=False), Quantity("accuracy", larger_is_better=True)
LEAK_METRICS = ("truncated", "full_at_truncated", "leak")
METRICS: Mapping[str, Mapping[str, Quantity]] = {
    "text": dict.fromkeys(("full", *LEAK_METRICS, "train"), LOSS),
    "images": {"test_accuracy": ACCURACY, "test_loss": LOSS, "train_accuracy": ACCURACY, "train_loss": LOSS},
}
"""Kind of study -> the metrics that contrasts may be of; those of the leak need ``truncated_positions`` above 0."""

LEARNED = re.compile(r"learned\.(.+)\.(mean|minimum|maximum)")
"""A metric made of what a model learned: the name of values in a result's ``"learned"``, and what is taken of them."""

CORNERS = ("y00", "y10", "y01", "y11")
FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """How the contrasts of a study are judged.

    Attributes:
        metric: of the contrasts that name none; of :data:`METRICS` or of the form :data:`LEARNED`.
        unit: of the metric, shown with every number.
        smallest_effect: the smallest difference of interest, in that unit: the margin of equivalence, and the effect
            that the required number of seeds is for.
        larger_is_better: ``None`` for the metric's own, which losses and accuracies have; of what is learned it must be
            given.
        confidence: of the intervals; 1 - confidence is the level of the tests.
        minimum_seeds: paired seeds below which a verdict is refused, at least 2.
        power: chance of finding the smallest effect that the required number of seeds is for.

    Raises:
        ValueError: a value outside its range, a direction that is not the metric's, or none where it must be given.
    """

    metric: str
    unit: str
    smallest_effect: float
    larger_is_better: bool | None = None
    confidence: float = 0.95
    minimum_seeds: int = 8
    power: float = 0.8

    def __post_init__(self) -> None:
        what = "statistics"
        checked_name(f"{what} metric", self.metric)
        checked_name(f"{what} unit", self.unit)
        effect = checked_number(f"{what} smallest_effect", self.smallest_effect, 0, open_low=True)
        object.__setattr__(self, "smallest_effect", effect)
        object.__setattr__(self, "larger_is_better", _direction(what, self.metric, self.larger_is_better))
        for name in ("confidence", "power"):
            checked = checked_number(f"{what} {name}", getattr(self, name), 0, 1, open_low=True)
            object.__setattr__(self, name, checked)
        if checked_count(f"{what} minimum_seeds", self.minimum_seeds) < FEWEST_SEEDS:
            fail(f"{what} minimum_seeds", f"at least {FEWEST_SEEDS}", self.minimum_seeds)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A difference a - b of two arms, or the interaction (y11 - y10) - (y01 - y00) of four.

    Attributes:
        name: for people; unique in its study.
        a, b: names of arms; or else
        y00, y10, y01, y11: names of arms: neither factor, the first alone, the second alone, both.
        metric, margin, unit, larger_is_better: ``None`` for the study's. A metric of another quantity than the study's
            needs its own unit and margin, and another unit its own margin; its direction is the metric's, and must be
            given of what is learned.

    Raises:
        ValueError: neither or both of the two forms, an arm twice, a value outside its range.
    """

    name: str
    a: str | None = None
    b: str | None = None
    y00: str | None = None
    y10: str | None = None
    y01: str | None = None
    y11: str | None = None
    metric: str | None = None
    margin: float | None = None
    unit: str | None = None
    larger_is_better: bool | None = None

    def __post_init__(self) -> None:
        checked_name("contrast name", self.name)
        what = f"contrast {self.name!r}"
        given = [key for key in ("a", "b", *CORNERS) if getattr(self, key) is not None]
        if given not in (["a", "b"], list(CORNERS)):
            fail(what, f"arms a and b, or {', '.join(CORNERS)}", ", ".join(given) or "no arms")
        for key in given:
            checked_name(f"{what} {key}", getattr(self, key))
        if len(set(self.arms.values())) < len(self.arms):
            fail(what, "each arm once", ", ".join(self.arms.values()))
        for key in ("metric", "unit"):
            if getattr(self, key) is not None:
                checked_name(f"{what} {key}", getattr(self, key))
        if self.margin is not None:
            object.__setattr__(self, "margin", checked_number(f"{what} margin", self.margin, 0, open_low=True))
        if self.larger_is_better is not None:
            _flag(f"{what} larger_is_better", self.larger_is_better)

    @property
    def arms(self) -> dict[str, str]:
        """``{"a": arm, "b": arm}``, or the four corners of an interaction."""
        keys = ("a", "b") if self.a is not None else CORNERS
        return {key: getattr(self, key) for key in keys}

    @property
    def is_interaction(self) -> bool:
        return self.a is None

    def resolved(self, statistics: Statistics) -> Contrast:
        """The contrast with what it leaves open taken from the study.

        Raises:
            ValueError: another quantity than the study's and no unit of it, another unit and no margin in it, a
                direction that is not the metric's, or none where it must be given.
        """
        what = f"contrast {self.name!r}"
        metric = self.metric or statistics.metric
        of, of_study = quantity(metric), quantity(statistics.metric)
        if of != of_study and self.unit is None:
            fail(f"{what} unit", f"the unit of {metric}, as the study's is that of {statistics.metric}", "none")
        if (of != of_study or self.unit not in (None, statistics.unit)) and self.margin is None:
            fail(f"{what} margin", f"a margin in its unit, {self.unit}", "none")
        given = self.larger_is_better
        if given is None and of == of_study:
            given = statistics.larger_is_better
        return replace(
            self,
            metric=metric,
            margin=statistics.smallest_effect if self.margin is None else self.margin,
            unit=self.unit or statistics.unit,
            larger_is_better=_direction(what, metric, given),
        )


def check_contrasts(
    statistics: Statistics,
    family: Sequence[Contrast],
    exploratory: Sequence[Contrast],
    *,
    arms: Collection[str],
    metrics: Collection[str],
) -> None:
    """Check that the contrasts can be computed from the study's arms and metrics.

    Raises:
        ValueError: an unknown arm or metric, a name that two contrasts have, what :meth:`Contrast.resolved` refuses.
    """
    check_metric("statistics metric", statistics.metric, metrics)
    names = set[str]()
    for contrast in (*family, *exploratory):
        what = f"contrast {contrast.name!r}"
        if contrast.name in names:
            fail(what, "a name that no other contrast has", "another of that name")
        names.add(contrast.name)
        for key, arm in contrast.arms.items():
            one_of(f"{what} {key}", arm, arms)
        if contrast.metric is not None:
            check_metric(f"{what} metric", contrast.metric, metrics)
        contrast.resolved(statistics)


def first_metric(kind: str) -> str:
    """The metric that every finished cell of a kind has and that is shown where none is asked for."""
    return next(iter(METRICS[kind]))


def quantity(metric: str) -> Quantity:
    """What a metric measures; one of no study measures itself."""
    for metrics in METRICS.values():
        if metric in metrics:
            return metrics[metric]
    learned = LEARNED.fullmatch(metric)
    return Quantity(f"learned.{learned[1]}" if learned else metric, larger_is_better=None)


def check_metric(what: str, metric: object, metrics: Collection[str]) -> None:
    """Check for one of ``metrics``, or for the form :data:`LEARNED`.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(metric, str) or not metric.startswith("learned."):
        one_of(what, metric, metrics)
    elif not LEARNED.fullmatch(metric):
        fail(what, "learned.NAME.mean, .minimum or .maximum", repr(metric))


def seeds_for_verdicts(statistics: Statistics, family_size: int) -> int:
    """Fewest paired seeds with which every contrast of a family can get a verdict.

    Raises:
        ValueError: the family is so large, or the confidence so high, that 20 seeds would not do.
    """
    return max(statistics.minimum_seeds, attainable_seeds(statistics.confidence, max(1, family_size)))


def _direction(what: str, metric: str, given: bool | None) -> bool | None:
    """The direction of ``metric``: ``given``, or its own where that is ``None``."""
    if given is not None:
        _flag(f"{what} larger_is_better", given)
    own = quantity(metric).larger_is_better
    if own is None and given is None and LEARNED.fullmatch(metric):
        fail(f"{what} larger_is_better", f"true or false, which {metric} does not tell", "nothing")
    if own is not None and given not in (None, own):
        fail(f"{what} larger_is_better", f"{str(own).lower()}, the direction of {metric}", str(given).lower())
    return given if own is None else own


def _flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        fail(what, "true or false", repr(value))
