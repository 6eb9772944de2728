"""What the tests of ``biases ablate`` share: a study of two arms and two seeds, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from biases.cli import main

SPEC = """
schema = 1
name = "tiny"
size = "test"
question = "Does it run?"
data = {data!r}
seeds = 2

[model]
layers = 1
heads = 2
dim = 8
context = 16
dropout = 0.0

[train]
steps = {steps}
batch = 4
warmup = 1
evaluate_every = {steps}
evaluation_windows = 4
truncated_positions = 8

[arms.standard]

[arms.ega]
attention = "ega"
{more}
[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01

[[contrasts]]
name = "ega - standard"
a = "ega"
b = "standard"

[execution]
gpus_per_cell = {gpus}
"""


def write_spec(path: Path, *, data: str = "pydoc", steps: int = 4, more: str = "", gpus: float = 0) -> Path:
    """Write the study; ``more`` are lines of the arm ``ega``."""
    path.write_text(SPEC.format(data=data, steps=steps, more=more, gpus=gpus))
    return path


def ablate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main(["ablate", *map(str, arguments)])
    return (code, *capsys.readouterr())
