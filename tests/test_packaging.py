"""The package: what importing it costs, and which way its imports run."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import biases

PACKAGE = Path(biases.__file__).parent
OPTIONAL = (
    *("asv", "hypothesis", "jinja2", "PIL", "plotly", "pytest", "ray", "rich", "scipy", "sklearn"),
    *("tensorboard", "torch_tb_profiler", "triton"),
)

# Lower numbers lie lower; a module imports from its own row and those below. Only the faces in the top row may use the
# public names of the whole package, as a user does.
ROWS = {
    **dict.fromkeys(
        ("_cache", "_checks", "_exit_codes", "_files", "_markup", "_memory", "_signals", "traits", "registry"), 0
    ),
    "backends": 1,
    **dict.fromkeys(("_calls", "attention", "axial", "positions", "decays", "gates", "windows"), 2),
    "layers": 3,
    "models": 4,
    "zoo": 5,
    **dict.fromkeys(("ablation", "testing", "bench", "stats"), 6),
    "claims": 7,
    **dict.fromkeys(("__main__", "report", "ci", "cli", "demo", "checking", "listing"), 8),
}
TOP = max(ROWS.values())
BOTTOM = {room for room, row in ROWS.items() if row == 0}
INDEPENDENT = ("testing", "stats")

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(source: str, package: str) -> set[str]:
    """Modules of this project that the source of a module in ``package`` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {module if exists(module) else base for module in inside}
    return {name for name in found if name.split(".")[0] == "biases"}


def imports_of(path: Path) -> set[str]:
    module = dotted(path)
    return imported(path.read_text(), module if path.name == "__init__.py" else module.rpartition(".")[0])


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_downwards(path):
    own = room(dotted(path))
    assert own in ROWS, f"{dotted(path)}: a room without a row"
    for module in imports_of(path):
        used = room(module)
        if not used:
            assert ROWS[own] == TOP, f"{dotted(path)} imports the whole package, which lies above it"
            continue
        assert used in ROWS, f"{dotted(path)} imports {module}, a room without a row"
        assert ROWS[used] <= ROWS[own], f"{dotted(path)} imports {module}, which lies above it"


@pytest.mark.parametrize("path", [p for p in MODULES if room(dotted(p)) in INDEPENDENT], ids=dotted)
def test_battery_and_statistics_work_on_anybodys_code(path):
    """They know nothing of the zoo, nor of anything but the traits at the bottom."""
    own = room(dotted(path))
    assert {room(module) for module in imports_of(path)} <= BOTTOM | {own}


def test_every_way_of_writing_an_import_is_seen():
    source = """
import torch, biases.zoo
from biases import attend, layers
from .. import models
from ..gates.output import HeadNorm
from . import rotary

def late():
    from biases.testing import check_attention
"""
    assert imported(source, "biases.positions") == {
        "biases",
        "biases.zoo",
        "biases.layers",
        "biases.models",
        "biases.gates.output",
        "biases.positions.rotary",
        "biases.testing",
    }


def test_importing_needs_torch_and_numpy_only():
    code = f"import sys, biases; print([m for m in {OPTIONAL!r} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_the_tools_load_their_libraries_when_used():
    tools = [name for name in ("testing", "stats", "bench", "ablation", "claims", "report") if exists(f"biases.{name}")]
    code = f"import sys; {'; '.join(f'import biases.{tool}' for tool in tools)}\n"
    assert run(code + f"print([m for m in {OPTIONAL!r} if m in sys.modules])").strip() == "[]"


def test_importing_draws_no_random_number():
    code = (
        "import torch; before = torch.get_rng_state(); import biases; print(torch.equal(before, torch.get_rng_state()))"
    )
    assert run(code).strip() == "True"


def test_public_names_exist_and_are_documented():
    assert len(set(biases.__all__)) == len(biases.__all__)
    for name in biases.__all__:
        assert getattr(biases, name).__doc__, name


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("folder", ["backends", "bench", "decays", "gates", "layers", "models", "positions", "testing"])
def test_what_a_room_lists_exists(folder):
    module = importlib.import_module(f"biases.{folder}")
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_metadata_agrees_with_the_package():
    path = PACKAGE.parent / "pyproject.toml"
    if not path.is_file():
        pytest.skip("the package is installed without its source tree")
    project = tomllib.loads(path.read_text())["project"]
    assert project["version"] == biases.__version__
    assert project["name"] == "attention-biases"
    assert {re.split(r"[<>=]", each)[0] for each in project["dependencies"]} == {"numpy", "torch"}
    assert (PACKAGE / "py.typed").is_file()


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PACKAGE / "__main__.py"), run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out) == (0, f"biases {biases.__version__}\n")
