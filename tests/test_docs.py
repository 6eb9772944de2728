"""The pages in docs/: their code runs, their generated parts are up to date."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from biases.testing.adapters.adapter import how_to_install
from biases.testing.properties import table
from biases.traits import Traits

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_runs(block: str, tmp_path: Path) -> None:
    """In an empty folder, as a reader would paste it."""
    for package in ("timm", "transformers", "x_transformers"):
        if re.search(rf"^(from|import) {package}\b", block, re.M) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {how_to_install(package)}")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_table_of_properties_is_up_to_date() -> None:
    text = (DOCS / "checking.md").read_text()
    assert table.generate(text) == text, "run `python -m biases.testing.properties.table docs/checking.md`"


def test_every_trait_is_told() -> None:
    text = (DOCS / "checking.md").read_text()
    assert not [each.name for each in fields(Traits) if f"`{each.name}`" not in text]


def test_missing_marks_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        table.generate("no marks here")
