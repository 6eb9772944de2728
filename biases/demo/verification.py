"""First part of the demo: properties over every layer of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from biases import zoo

PROPERTIES = (
    "shape-dtype-device",
    "finite-output",
    "deterministic",
    "input-unchanged",
    "batch-independence",
    "future-independence",
    "future-gradient",
    "prefix-consistency",
    "map-sizes",
    "map-layout",
    "finite-gradient",
    "float64-agreement",
)
EXAMPLES = 6
LEAK = ("ega", "future-independence")


def verify(
    names: Sequence[str] | None = None, *, progress: Callable[[int, int, str], None]
) -> Iterator[dict[str, Any]]:
    """Run the battery over the layers; yields all results so far, as the report takes them, after each layer.

    Args:
        names: layers; all of the zoo's if ``None``.
        progress: called with (done, total, name) before each layer.
    """
    subjects = list(names or zoo.names("layer"))
    # Examples are a few tokens long: more threads would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _verify(subjects, progress)
    finally:
        torch.set_num_threads(threads)


def _verify(subjects: Sequence[str], progress: Callable[[int, int, str], None]) -> Iterator[dict[str, Any]]:
    from biases.testing import check_attention

    results: list[dict[str, Any]] = []
    for done, name in enumerate(subjects):
        progress(done, len(subjects), name)
        variant = zoo.get(name)
        known = {key: reason for key, reason in variant.known_failures.items() if key in PROPERTIES}
        found = check_attention(
            zoo.factory(name),
            name=name,
            properties=PROPERTIES,
            known_failures=known,
            max_examples=EXAMPLES,
            how_to_build=zoo.how_to_build(name),
        )
        results += [result.as_dict() for result in found]
        yield {"results": results}
    progress(len(subjects), len(subjects), "")


def leak_of(results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The result that shows the published EGA's leak, if it was found."""
    for result in results:
        if (result["subject"], result["property"]) == LEAK and result["counterexample"]:
            return result
    return None
