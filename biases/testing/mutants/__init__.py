"""Subjects that are right, and subjects with one planted fault each: the proof that the battery has teeth.

``biases mutants`` puts them to the properties and prints which property caught what.
"""

from biases.testing.mutants import (
    conventions,
    decoders,
    encodings,
    execution,
    forms,
    gates,
    generators,
    gradients,
    images,
    layers,
    length,
    lifecycle,
    masks,
    mixing,
    operator_values,
    operators,
    padding,
    slopes,
    surfaces,
    tables,
    windows,
)
from biases.testing.mutants.base import MUTANTS, SOUND, Mutant, Sound, mutant, sound
from biases.testing.mutants.run import Row, exit_code, run_mutants

__all__ = [
    "MUTANTS",
    "SOUND",
    "Mutant",
    "Row",
    "Sound",
    "conventions",
    "decoders",
    "encodings",
    "execution",
    "exit_code",
    "forms",
    "gates",
    "generators",
    "gradients",
    "images",
    "layers",
    "length",
    "lifecycle",
    "masks",
    "mixing",
    "mutant",
    "operator_values",
    "operators",
    "padding",
    "run_mutants",
    "slopes",
    "sound",
    "surfaces",
    "tables",
    "windows",
]
