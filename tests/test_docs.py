"""The pages in docs/ and the README: their blocks run, their links lead somewhere, what is generated is up to date."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
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

# What is not run from its page, by the beginning of the command, and why. Its options are checked all the same.
NOT_RUN = {
    "biases ablate ": "it trains for minutes to hours; tests/test_ablate_command.py runs small studies",
    "biases stats ": "it reads such a run; tests/test_study.py makes one",
    "biases claims ": "its tests are run one by one by tests/test_pages.py",
    "biases bench ": "it measures for a minute; tests/test_bench_command.py",
    "biases compare ": "it measures two commits; tests/test_compare.py",
    "biases profile ": "it measures; tests/test_profile.py",
    "biases report ": "it reads results that are not there, or serves until it is stopped; tests/test_report.py",
    "pip install ": "it needs a network",
    "tensorboard ": "it serves until it is stopped",
    "biases ci ": "it needs a repository with a base; tests/test_ci.py",
    "biases check mypkg.": "mypkg is the reader's; the tutorial has one that is run",
    "biases check squared-distance": "its file is made by the page, outside of the package",
    "biases mutants normalised-values": "its file is made by the page, outside of the package",
    "make ": "it sets up an environment; each is what a developer runs by hand",
    "asv ": "it reads or makes results of asv; tests/test_asv.py",
    "python -c 'from biases.bench.compare": "it measures two commits; tests/test_compare.py",
    "python -m biases.demo.readme": "it writes the README; tests/test_readme.py makes the text",
    "python -m biases.testing.properties.table": "it writes the page; the table is made below",
    "python benchmarks/false_alarms.py": "it takes an hour; its result is committed",
    ".venv/bin/python -m benchmarks.gpu ": "it takes minutes; tests/test_gpu_entry.py",
}
WINDOW_OF_4 = "--as mask --trait causal=true --trait alignment=upper-left --trait window=4"
# Commands that are run, and how they end.
RUN = {
    "biases claims ega-causal mope-eq-33": 0,
    "biases claims ega-causal": 0,
    f"biases check mypkg.masks:window_of_4 {WINDOW_OF_4}": 1,
    "biases check torch.nn.functional:scaled_dot_product_attention --as operator --trait normalisation=row": 0,
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
    wrong = Session(tmp_path).run(blocks(page))
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
    assert command in RUN or len(reasons) == 1, f"{command!r}: put it into RUN or NOT_RUN"


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
    assert all((ROOT / path).is_file() for why in NOT_RUN.values() for path in re.findall(r"tests/\w+\.py", why))


@pytest.mark.parametrize("command", RUN)
def test_small_commands_end_as_they_should(command: str, tmp_path: Path) -> None:
    (block,) = (each for each in blocks(DOCS / "checking.md") if "def window_of_4" in each.text)
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "masks.py").write_text(block.text.partition("traits =")[0])
    with doc_session.apart(tmp_path):
        code, printed = execute(f"{command} --max-examples 5" if " check " in command else command)
    assert code == RUN[command], printed


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


def test_every_trait_is_told() -> None:
    text = (DOCS / "checking.md").read_text()
    assert not [each.name for each in fields(Traits) if f"`{each.name}`" not in text]


def test_missing_marks_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        table.generate("no marks here")
