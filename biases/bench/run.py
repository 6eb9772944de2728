"""Workloads of the zoo, one after the other, each with its floor and, if asked for, its peers in the same rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from biases._checks import one_of, positive_int
from biases.bench.ceilings import Ceilings, ceilings
from biases.bench.peers import CannotRun, peers_of
from biases.bench.rounds import together
from biases.bench.rows import Row, raised
from biases.bench.timing import Progress
from biases.bench.workloads import LEVELS, Setting, has_own_heads, prepare
from biases.registry import get


@dataclass(frozen=True)
class Plan:
    """What to measure: every name at every setting.

    Attributes:
        level: one of :data:`biases.bench.workloads.LEVELS`.
        names: of the zoo.
        settings: see :class:`~biases.bench.workloads.Setting`.
        backend: of ``attend``.
        peers: whether released libraries are measured too.
        rounds: timed rounds of each.
        seconds: budget of the timed rounds of each, see :func:`biases.bench.interleaved`.

    Raises:
        ValueError: unknown level or name, rounds below 1.
    """

    level: str
    names: Sequence[str]
    settings: Sequence[Setting]
    backend: str = "auto"
    peers: bool = False
    rounds: int = 15
    seconds: float | None = None

    def __post_init__(self) -> None:
        one_of("level", self.level, LEVELS)
        kind = "layer" if self.level in ("operator", "layer") else "model"
        for name in self.names:
            one_of(f"kind of {name!r} at level {self.level!r}", get(name).kind, (kind,))
        positive_int("rounds", self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **vars(self),
            "names": list(self.names),
            "settings": [setting.as_dict() for setting in self.settings],
        }


def bench(plan: Plan, progress: Progress | None = None) -> Iterator[tuple[list[Row], Mapping[str, Ceilings]]]:
    """Measure, one workload after the other.

    Args:
        plan: what.
        progress: called as ``progress(what, done, total)`` before each workload.

    Yields:
        The rows of a workload, its own first, and the ceilings measured so far, by dtype.
    """
    rates: dict[str, Ceilings] = {}
    pairs = [(setting, name) for setting in plan.settings for name in plan.names]
    for done, (setting, name) in enumerate(pairs):
        if progress is not None:
            progress(f"{name}, {setting.length} tokens, {setting.direction}", done, len(pairs))
        if str(setting.dtype) not in rates:
            rates[str(setting.dtype)] = ceilings(setting.device, setting.torch_dtype)
        yield measure(plan, name, setting, rates[str(setting.dtype)]), rates


def measure(plan: Plan, name: str, setting: Setting, rates: Ceilings) -> list[Row]:
    """The rows of one workload and of its peers."""
    stated = setting.as_dict()
    if has_own_heads(plan.level, name):
        del stated["heads"], stated["head_dim"]
    blank = Row(name=name, level=plan.level, setting=stated, backend=plan.backend)
    try:
        workload = prepare(plan.level, name, setting, backend=plan.backend)
    except ValueError as unfit:
        return [replace(blank, status="skipped", message=str(unfit))]
    except Exception as error:
        return [raised(blank, error)]
    blank = replace(blank, causal=workload.causal)
    entries = [(replace(blank, checked=workload.checked), workload)]
    for peer in peers_of(plan.level, name) if plan.peers else []:
        row = replace(blank, peer=peer.name, backend="")
        try:
            run, check = peer.prepare(name, setting)
        except CannotRun as reason:
            entries.append((replace(row, status="skipped", message=str(reason)), workload))
        except Exception as error:
            entries.append((raised(row, error), workload))
        else:
            theirs = replace(workload, run=run, check=check, formulations=lambda: ())
            entries.append((replace(row, checked=workload.checked), theirs))
    return together(entries, rates, rounds=plan.rounds, seconds=plan.seconds)
