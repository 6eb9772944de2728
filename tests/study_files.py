"""What the tests of studies share: their files, of texts and of images, and changes of them."""

from __future__ import annotations

from pathlib import Path

TEXT = """
schema = 1
name = "tiny"
size = "test"
question = "Does the gate help?"
notes = ["nothing was left out"]
data = "pydoc"
seeds = 3

[model]
layers = 2
dim = 16
heads = 2
context = 16
options.attention = {low = 1, high = 2}

[train]
steps = 20
warmup = 2

[arms.plain]

[arms.other]
attention = "ega"
options.attention.high = 3

[factors]
attention = ["standard", "ega"]
place = ["learned", "scaled"]

[levels.place.learned]

[levels.place.scaled]
position = "sinusoidal"
options.position.amplitude = 0.02

[[left_out]]
arm = "ega+scaled"
why = "not asked"

[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01

[[contrasts]]
name = "gate"
a = "other"
b = "plain"

[[contrasts]]
name = "gate on prefixes"
a = "other"
b = "plain"
metric = "truncated"
margin = 0.02

[[exploratory]]
name = "rate"
a = "other"
b = "plain"
metric = "learned.blocks.0.attention.key_gate.tau.mean"
unit = "1"
margin = 0.5
larger_is_better = true

[execution]
workers = 2
together = 4
gpus_per_cell = 0.5
"""
IMAGES = """
schema = 1
name = "seen"
size = "test"
question = "Does it see?"
kind = "images"
data = "digits"
seeds = [4, 2]

[model]
name = "rmt-digits"

[arms.decay]

[arms.flat]
options.attention_options = {initial = 30.0, span = 0.0}

[arms.swin]
name = "swin-digits"

[statistics]
metric = "test_loss"
unit = "nats"
smallest_effect = 0.02
"""


def changed(text: str, old: str, new: str) -> str:
    """``text`` with another part, which must be there once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def write_study(folder: Path, text: str, name: str = "spec.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path
