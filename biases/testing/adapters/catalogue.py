"""All third-party subjects by name, and why the others are not there."""

from __future__ import annotations

import importlib

from biases.testing.adapters import flex, huggingface_subjects, pytorch, timm, x_transformers
from biases.testing.adapters.adapter import Adapter, how_to_install

SUBJECTS = {
    **pytorch.SUBJECTS,
    **flex.SUBJECTS,
    **huggingface_subjects.SUBJECTS,
    **timm.SUBJECTS,
    **x_transformers.SUBJECTS,
}


def peers() -> dict[str, Adapter]:
    """The subjects whose package can be imported, by their names in kebab-case, such as ``"torch-sdpa-causal"``."""
    absent = missing()
    return {name: each for name, each in SUBJECTS.items() if name not in absent}


def missing() -> dict[str, str]:
    """The other subjects, by name, and why: a package is not installed, or it is and cannot be imported."""
    reasons = {package: _reason(package) for package in sorted({each.package for each in SUBJECTS.values()})}
    return {name: reason for name, each in SUBJECTS.items() if (reason := reasons[each.package])}


def _reason(package: str) -> str:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"{package} is not installed: {how_to_install(package)}"
        return f"{package} cannot be imported: {error}"
    except Exception as error:
        # A package that breaks when it is imported must not hide the others.
        return f"{package} cannot be imported: {type(error).__name__}: {error}"
    return ""
