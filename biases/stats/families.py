"""Verdicts on a family of contrasts that was declared before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from biases._checks import fail
from biases.stats._inputs import integer
from biases.stats.compare import t_interval
from biases.stats.multiplicity import holm
from biases.stats.results import Inference


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A member of a family.

    Attributes:
        inference: the contrast by itself. Its own verdict knows nothing of the family and is replaced by ``verdict``;
            where that is ``"refused"`` its p-values are ``None``.
        family_size: declared contrasts m.
        p_holm: its sign-flip p, adjusted; ``None`` if refused.
        p_holm_smallest: what ``p_holm`` cannot fall below, whatever the data; ``None`` if the inference was refused.
        p_equivalence_holm: its TOST p, adjusted; ``None`` without a margin or if refused.
        interval_simultaneous: Student t interval at 1 - (1 - confidence) / m: those of all m cover their means
            together with the inference's confidence (Bonferroni). ``None`` for one seed.
        verdict: ``"better"``, ``"worse"``, ``"equivalent"``, ``"inconclusive"`` or ``"refused"``.
        reason: why, in words.
    """

    inference: Inference
    family_size: int
    p_holm: float | None
    p_holm_smallest: float | None
    p_equivalence_holm: float | None
    interval_simultaneous: tuple[float, float] | None
    verdict: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The inference's values with the family's verdict and reason, and the family's values, for JSON."""
        simultaneous = self.interval_simultaneous
        return {
            **self.inference.as_dict(),
            "family_size": self.family_size,
            "p_holm": self.p_holm,
            "p_holm_smallest": self.p_holm_smallest,
            "p_equivalence_holm": self.p_equivalence_holm,
            "interval_simultaneous": None if simultaneous is None else list(simultaneous),
            "verdict": self.verdict,
            "reason": self.reason,
        }


def family(contrasts: Mapping[str, Inference], *, size: int | None = None) -> dict[str, Judged]:
    """Judge the members of a family together.

    Holm's correction is applied to the sign-flip p-values, and a second time, by itself, to the TOST p-values. A
    contrast is

    * ``"refused"`` where its inference was, or where its seeds are too few for an adjusted sign-flip p of
      1 - confidence even if every member had the smallest p of its seeds;
    * ``"equivalent"`` where the adjusted TOST p is at most 1 - confidence;
    * ``"better"`` or ``"worse"`` where the adjusted sign-flip p is, and the interval excludes 0;
    * ``"inconclusive"`` otherwise.

    The inferences' intervals stay unadjusted; ``interval_simultaneous`` is the adjusted one.

    Note:
        Two kinds of false claim are bounded, each at 1 - confidence over the whole family: of a difference where there
        is none, and of equivalence where the difference reaches the margin (Holm 1979; the size of TOST is that of its
        one-sided tests, Schuirmann 1987, Berger 1982). A true mean can make only one of the two false, but a family
        with means of both sorts can have a false claim of either kind with at most twice 1 - confidence.

    Args:
        contrasts: name -> inference, all of one confidence.
        size: declared members, if more than have an inference; the others count as p = 1, as refused ones do.

    Raises:
        ValueError: different confidences, or a size below the number of contrasts.
    """
    m = len(contrasts) if size is None else integer("size", size, len(contrasts))
    if not contrasts:
        return {}
    confidences = {inference.confidence for inference in contrasts.values()}
    if len(confidences) > 1:
        fail("family", "contrasts of one confidence", ", ".join(f"{each:g}" for each in sorted(confidences)))
    level = 1 - confidences.pop()

    def adjusted(p: Mapping[str, float | None]) -> dict[str, float]:
        told = (p[name] for name in contrasts)
        values = [1.0 if each is None else each for each in told] + [1.0] * (m - len(contrasts))
        return dict(zip(contrasts, holm(values), strict=False))

    refused = {name for name, each in contrasts.items() if each.verdict == "refused"}
    smallest = adjusted({name: None if name in refused else each.p_smallest for name, each in contrasts.items()})
    silent = refused | {name for name, p in smallest.items() if p > level}
    difference = adjusted({name: None if name in silent else each.p_sign_flip for name, each in contrasts.items()})
    equivalence = adjusted({name: None if name in silent else each.p_equivalence for name, each in contrasts.items()})

    judged = {}
    for name, inference in contrasts.items():
        values: dict[str, Any] = {
            "inference": inference,
            "family_size": m,
            "p_holm": None,
            "p_holm_smallest": None if name in refused else smallest[name],
            "p_equivalence_holm": None,
            "interval_simultaneous": _simultaneous(inference, level, m),
        }
        if name in refused:
            values |= {"verdict": "refused", "reason": inference.reason}
        elif name in silent:
            values["inference"] = replace(inference, p_sign_flip=None, p_t=None, p_equivalence=None)
            reason = f"n = {inference.n} in a family of {m} cannot reach an adjusted p of {level:.3g}"
            values |= {"verdict": "refused", "reason": reason}
        else:
            p, p_equivalence = difference[name], None if inference.p_equivalence is None else equivalence[name]
            verdict, reason = _verdict(inference, p, p_equivalence, level)
            values |= {"p_holm": p, "p_equivalence_holm": p_equivalence, "verdict": verdict, "reason": reason}
        judged[name] = Judged(**values)
    return judged


def _simultaneous(inference: Inference, level: float, m: int) -> tuple[float, float] | None:
    if inference.sd is None or m == 1:
        return inference.interval
    return t_interval(inference.mean, inference.sd, inference.n, 1 - level / m)


def _verdict(inference: Inference, p: float, p_equivalence: float | None, level: float) -> tuple[str, str]:
    assert inference.interval is not None
    low, high = inference.interval
    excludes = low > 0 or high < 0
    position = f"interval {'excludes' if excludes else 'includes'} 0"
    if p_equivalence is not None and p_equivalence <= level:
        within = f"within the margin {inference.margin:g}: adjusted equivalence p <= {level:.3g}"
        return "equivalent", f"{within}; {position}"
    if p > level:
        return "inconclusive", f"{position}; adjusted sign-flip p > {level:.3g}"
    if not excludes:
        return "inconclusive", f"{position}; adjusted sign-flip p <= {level:.3g}"
    verdict = "better" if (low > 0) == inference.larger_is_better else "worse"
    return verdict, f"{position} and adjusted sign-flip p <= {level:.3g}"
