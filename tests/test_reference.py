"""The reference: it has every public name, and builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_packaging import ROWS

import biases
from biases.cli import _parser

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.rst")))
ROOMS = re.findall(r"^\.\. automodule:: (\S+)$", TEXT, re.M)
# Reached by the names of `biases`, and by commands.
WITHOUT_ENTRY = {"attention", "checking", "ci", "cli", "demo", "listing"}


def public(room: str) -> dict[str, object]:
    """What a room lists, or else defines, modules aside, which are listed by themselves; by full name."""
    module = importlib.import_module(room)
    own = [name for name, each in vars(module).items() if name[0] != "_" and getattr(each, "__module__", "") == room]
    found = {f"{room}.{name}": getattr(module, name) for name in getattr(module, "__all__", own)}
    return {name: each for name, each in found.items() if not inspect.ismodule(each)}


def excluded(room: str) -> set[str]:
    """What the entry of a room leaves to another place."""
    (options,) = re.findall(rf"automodule:: {re.escape(room)}\n((?:   :.*\n)*)", TEXT)
    if ":no-members:" in options:
        return set(public(room))
    names = re.search(r":exclude-members: (.*)", options)
    return {f"{room}.{name}" for name in names[1].split(", ")} if names else set()


def test_every_room_has_its_entry() -> None:
    assert {room for room in ROWS if room[0] != "_" and f"biases.{room}" not in ROOMS} == WITHOUT_ENTRY


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_its_entry(room: str) -> None:
    """By the room, where it has a docstring; or in another room; or an entry of its own."""
    left = excluded(room)
    for name, found in public(room).items():
        if name not in left:
            assert inspect.isclass(found) or inspect.isroutine(found), f"{name}: give it an entry of its own"
            assert found.__doc__, name
            continue
        others = (each for other in ROOMS for at, each in public(other).items() if at not in excluded(other))
        assert re.search(rf"(py:data|autofunction):: {re.escape(name)}\n", TEXT) or any(
            found is each for each in others
        ), f"{name}: it is in no room of the reference"


def test_a_role_that_names_nothing_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="pip install 'attention-biases[docs]'")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    assert conf._named("biases.attend", []) is biases.attend
    assert conf._named("but", conf._parents("biases.traits.Traits.as_dict")) is biases.Traits.but
    assert conf._named("torch.Tensor", ["biases"]) is not None
    for nothing in ("biases.attention.attends", "no_such_module.thing", "Trait.but"):
        assert conf._named(nothing, ["biases.traits"]) is None


@pytest.mark.slow
def test_it_builds_without_warnings(tmp_path: Path) -> None:
    """With every public name at an address."""
    for package in ("sphinx", "myst_parser", "furo", "sphinxarg"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the documentation is not built without {package}: pip install 'attention-biases[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "html")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    pages = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "html" / "reference").glob("*.html"))
    for room in ROOMS:
        assert not [name for name in public(room) if name not in excluded(room) and f'id="{name}"' not in pages]
    page = (tmp_path / "html" / "reference" / "command-line.html").read_text(encoding="utf-8")
    (commands,) = (each.choices for each in _parser()._actions if each.dest == "command")
    assert commands
    assert not [each for each in commands if f"biases {each}" not in page]
    assert biases.__version__ in page
