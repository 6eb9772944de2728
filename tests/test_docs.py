"""The pages in docs/ and the README: their blocks run, their links lead somewhere, what is generated is up to date."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import doc_session
import pytest
from doc_session import DOCS, ROOT, Block, Session, blocks, execute

from biases.cli import _parser
from biases.registry import VARIANTS
from biases.testing.adapters.adapter import how_to_install
from biases.testing.properties import table
from biases.traits import Traits

PAGES = sorted(DOCS.rglob("*.md"))
# Read from top to bottom, each in a folder of its own; the blocks of the others stand for themselves.
SESSIONS = [page for page in PAGES if page.parent != DOCS or page.name == "tutorial.md"]
ALONE = [page for page in PAGES if page not in SESSIONS]

WINDOW_OF_4 = "--as mask --trait causal=true --trait alignment=upper-left --trait window=4"


@dataclass(frozen=True)
class Small:
    """How a command is run.

    Attributes:
        appended: options that make it small.
        code: how it ends.
        reads: files that it reads, each with the command that prints it.
        slow: it takes seconds all the same.
    """

    appended: str = ""
    code: int = 0
    reads: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False


# Commands that are run, in a folder as `prepared` makes it.
RUN = {
    "biases ablate benchmarks/ablations/gate-sight-small.toml": Small("--dry-run"),
    "biases ablate benchmarks/ablations/gate-sight-paper.toml --device cuda": Small(
        "--dry-run --device cpu --out runs/none"
    ),
    "biases stats runs/gate-sight-small": Small(),
    "biases stats runs/gate-sight-small --a ega --b ega-token --metric truncated": Small(),
    "mkdir mine": Small(),
    "biases stats runs/gate-sight-paper --json > mine/gate-sight-paper.json": Small(),
    "biases claims": Small("--paper 2104.09864"),
    "biases claims ega-causal mope-eq-33": Small(),
    "biases claims ega-causal": Small(),
    "biases claims --paper 2606.01258 --verdict fails --json": Small(),
    "biases claims ega-gain --results DIR": Small(),
    "biases claims --results mine": Small("ega-gain"),
    f"biases check mypkg.masks:window_of_4 {WINDOW_OF_4}": Small("--max-examples 5", code=1),
    "biases check torch.nn.functional:scaled_dot_product_attention --as operator --trait normalisation=row": Small(
        "--max-examples 5"
    ),
    "biases check mypkg.attention:make_layer --trait causal=true --junit results.xml": Small("--max-examples 1"),
    "biases bench alibi ega --length 1024 4096 --peers": Small(
        "--length 16 --rounds 3 --seconds 0.1 --direction forward", slow=True
    ),
    "biases profile alibi": Small("--length 16"),
    "biases profile ega --length 4096": Small("--length 16"),
    "biases profile char-gpt --level training": Small("--length 16 --steps 1", slow=True),
    "biases profile rotary": Small("--length 16 --steps 1", slow=True),
    "biases profile manhattan --forward-only --device cuda --dtype bfloat16": Small("--length 16 --device cpu"),
    "biases profile mypkg.attention:make_layer --option window=64 --heads 4 --head-dim 32": Small("--length 16"),
    "biases report": Small(slow=True),
    "biases report benchmarks/results --out report.html": Small(slow=True),
    "biases report runs/gate-sight-small check.json claims.json --out report.html": Small(
        reads={
            "check.json": "biases check alibi --property shape-dtype-device --max-examples 1 --json",
            "claims.json": "biases claims rope-relative --json",
        }
    ),
}
# Of the shell scripts of sessions, run there after the blocks above them, with these options appended.
IN_SESSION = {
    "biases check squared-distance": "--max-examples 1 --property future-independence",
    "biases bench squared-distance": "--length 16 --rounds 3",
    "biases mutants normalised-values": "--max-examples 3",
}
# What is not run from its page, by the beginning of the command, and why. Its options are checked all the same.
NOT_RUN = {
    "biases ablate study.toml ": "it needs Slurm, or a cluster of Ray; tests/test_ray_executor.py starts one here",
    "biases compare ": "it measures two commits of a repository; tests/test_compare_command.py makes one",
    "biases report benchmarks/results --serve": "it serves until it is stopped; tests/test_report_inputs.py",
    "pip install ": "it needs a network",
    "python -m http.server ": "it serves until it is stopped; tests/test_asv_site.py serves the pages to a browser",
    "tensorboard ": "it serves until it is stopped; tests/test_profile.py asks the plug-in instead",
    "biases ci ": "it needs a repository with a base and a suite; tests/test_ci.py makes one",
    "make ": "it sets up an environment; each is what a developer runs by hand",
    "python -c 'from biases.bench.compare": "it measures two commits; tests/test_compare.py",
    "python -m biases.demo.readme": "it writes the README; tests/test_readme.py makes the text",
    "python -m biases.testing.properties.table": "it writes the page; the table is made below",
    "python benchmarks/false_alarms.py": "it takes an hour; its result is committed",
    ".venv/bin/python -m benchmarks.gpu ": "it takes minutes; tests/test_gpu_entry.py",
}
LANGUAGES = {"python", "console", "sh", "toml", "text", "yaml"}


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Where a command stands that no session runs, and the command without its comment."""
    for block in blocks(page):
        if block.language == "sh" or (block.language == "console" and page not in SESSIONS):
            for command, _ in block.commands:
                yield block.where, re.sub(r"\s+# .*", "", command)


COMMANDS = [pytest.param(text, id=where) for page in [ROOT / "README.md", *PAGES] for where, text in commands(page)]


@pytest.mark.parametrize("page", SESSIONS, ids=lambda path: path.stem)
def test_sessions_do_as_they_say(page: Path, tmp_path: Path) -> None:
    wrong = Session(tmp_path, IN_SESSION).run(blocks(page))
    assert not wrong, "\n\n".join(wrong)


def test_a_session_sees_what_is_wrong(tmp_path: Path) -> None:
    said = [
        ("python", "# layer.py\nsize = 1\n"),
        ("python", "import layer\nprint(layer.size)\n"),
        ("text", "1\n"),
        ("python", "# layer.py\nsize = 2\n"),
        ("python", "import layer\nprint(layer.size)\n"),
        ("text", "1\n"),
        ("console", "$ biases list alibi\nnothing of the kind\n$ biases list alib\n"),
        ("console", "$ biases list alib\nbiases: ...did you mean...\n$ echo $?\n0\n"),
        ("console", "$ biases list alibi\n...\n"),
        ("python", "from biases.registry import VARIANTS\nVARIANTS.clear()\nraise LookupError\n"),
    ]
    wrong = Session(tmp_path).run([Block("page", line, *each) for line, each in enumerate(said)])
    assert [each.partition("\n")[0] for each in wrong] == [
        "page:5: expected",
        "page:6: $ biases list alibi: expected",
        "page:6: $ biases list alib: expected exit code 0, got 2",
        "page:7: exit code of $ biases list alib: expected",
        "page:8: $ biases list alibi: expected something beside ...",
        "page:9: raised",
    ]
    assert VARIANTS
    assert "layer" not in sys.modules
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in ALONE
        for number, block in enumerate(each for each in blocks(page) if each.language == "python")
    ],
)
def test_code_runs(block: Block, tmp_path: Path) -> None:
    """In an empty folder, as a reader would paste it."""
    libraries = re.findall(r"^(?:from|import) (timm|transformers|x_transformers)\b", block.text, re.M)
    for package in libraries:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {how_to_install(package)}")
    if libraries:
        # What a large library changes in its process is not to reach the other tests.
        command = [sys.executable, "-c", block.text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return
    wrong = Session(tmp_path).run_alone(block)
    assert not wrong, wrong[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_run_or_left_out_for_a_reason(command: str) -> None:
    reasons = [why for start, why in NOT_RUN.items() if f"{command} ".startswith(start)]
    tables = (command in RUN) + (command in IN_SESSION) + len(reasons)
    assert tables == 1, f"{command!r}: put it into one of RUN, IN_SESSION and NOT_RUN"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist(command: str) -> None:
    for part in re.split(r"\s(?:>|&&|\|\|)\s", command):
        words = shlex.split(part)
        if words[0] == "biases":
            with contextlib.redirect_stderr(io.StringIO()) as told:
                try:
                    _parser().parse_args(words[1:])
                except SystemExit:
                    pytest.fail(told.getvalue())
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"no target {words[1]}"


def test_no_reason_is_left_over() -> None:
    found = [each.values[0] for each in COMMANDS]
    assert not [start for start in NOT_RUN if not any(f"{command} ".startswith(start) for command in found)]
    assert set(RUN) <= set(found)
    of_sessions = {command for page in SESSIONS for _, command in commands(page)}
    assert set(IN_SESSION) <= of_sessions
    assert not set(RUN) & of_sessions
    assert all((ROOT / path).is_file() for why in NOT_RUN.values() for path in re.findall(r"tests/\w+\.py", why))


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Path]:
    """The folder of a reader who has a package of their own, and results of a study; entered."""
    (block,) = (each for each in blocks(DOCS / "checking.md") if "def window_of_4" in each.text)
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "masks.py").write_text(block.text.partition("traits =")[0])
    (package / "attention.py").write_text(
        "from biases import zoo\n\n\ndef make_layer(dim, heads, window=8):\n"
        '    return zoo.layer(f"swat[window={window}]", dim=dim, heads=heads)\n'
    )
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for size in ("small", "paper"):
        shutil.copytree(ROOT / "benchmarks/results/ablations/gate-sight-small", tmp_path / f"runs/gate-sight-{size}")
    shutil.copytree(ROOT / "biases/claims/data", tmp_path / "DIR")
    with doc_session.apart(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] if how.slow else []) for name, how in RUN.items()]
)
def test_small_commands_end_as_they_should(command: str, prepared: Path) -> None:
    how = RUN[command]
    if "mine" in command and command != "mkdir mine":
        shutil.copytree("DIR", "mine")
    for file, made_by in how.reads.items():
        assert execute(f"{made_by} > {file}")[0] == 0
    code, printed = execute(f"{command} {how.appended}")
    assert code == how.code, printed


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.where)
        for page in [ROOT / "README.md", *PAGES]
        for block in blocks(page)
        if block.language == "sh"
    ],
)
def test_shell_scripts_are_parsed(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_blocks_are_of_languages_that_are_checked(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, block.where
        if block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = doc_session.FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aimed = page if not path else (page.parent / path).resolve()
        assert aimed.is_file(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(aimed), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and MyST make them."""
    text = doc_session.FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each) for each in re.findall(r"^#+ (.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", each.strip().lower()).replace(" ", "-") for each in headings}


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    trees = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", index, re.S))
    listed = set(re.findall(r"^(?:.*<)?([\w/-]+)>?$", trees, re.M))
    assert {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"} <= listed


def test_the_table_of_properties_is_up_to_date() -> None:
    text = (DOCS / "checking.md").read_text()
    assert table.generate(text) == text, "run `python -m biases.testing.properties.table docs/checking.md`"


def test_the_page_of_the_plug_in_loads_from_the_host_that_is_told() -> None:
    spec = importlib.util.find_spec("torch_tb_profiler")
    if spec is None or spec.origin is None:
        pytest.skip("torch_tb_profiler is not installed: pip install 'attention-biases[profile]'")
    page = (Path(spec.origin).parent / "static" / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"""src\s*=\s*["']https://([^/]+)/""", page)) == {"www.gstatic.com"}
    assert "`www.gstatic.com`" in (DOCS / "profiling.md").read_text()


def test_every_trait_is_told() -> None:
    text = (DOCS / "checking.md").read_text()
    assert not [each.name for each in fields(Traits) if f"`{each.name}`" not in text]


def test_missing_marks_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        table.generate("no marks here")
