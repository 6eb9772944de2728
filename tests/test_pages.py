"""What `python benchmarks/pages.py` makes: what is kept of committed results, tables, pictures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import claim_tables, kept, pages, study_tables
from benchmarks.forest import forest
from benchmarks.markdown_tables import escaped, table
from biases.ablation import (
    Contrast,
    ImageModelConfig,
    ImageTrainConfig,
    ModelConfig,
    Statistics,
    TrainConfig,
    load_study,
)
from biases.ablation.contrasts import METRICS
from biases.ablation.results import write_result
from biases.ablation.study import KEYS, Execution, check_models
from biases.claims import CLAIMS, VERDICTS, run_claims
from biases.claims.ledger import APART, FAILS, STATEMENTS

DOCS = kept.ROOT / "docs"
COMMITTED = {row["id"]: row for row in kept.kept_ledger()["claims"]}
REDO = "run `python benchmarks/pages.py`"


def run_of(name: str, runs: Path, *, seeds: int = 8) -> Path:
    """A run of a committed study with made-up results."""
    study = load_study(kept.SPECS / f"{name}.toml")
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study.source)
    for cell in study.grid.cells():
        if cell.seed >= seeds:
            continue
        arm = list(study.grid.arms).index(cell.arm)
        loss = 1.8 + 0.05 * arm + 0.002 * ((7 * cell.seed + 3 * arm) % 5)
        leak = 0.25 + 0.001 * cell.seed if cell.arm.startswith("ega") else 0.0
        metrics = {"full": loss, "truncated": loss + leak, "full_at_truncated": loss, "leak": leak, "train": 1.5}
        metrics |= {"leak_standard_error": 0.002, "positions": 2048, "windows": 871, "parameters": 1000}
        result = {"schema": 1, "id": cell.id, "arm": cell.arm, "seed": cell.seed, "config": cell.config}
        result |= {"status": "ok", "metrics": metrics, "curve": [], "data": {"name": "t", "sha256": "0"}}
        write_result(folder, result)
    return folder


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    run_of("gate-sight-small", runs)
    run_of("superadditivity-small", runs, seeds=3)
    return kept.made_analyses(runs)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.name)
def test_the_pages_show_what_is_committed(page):
    assert pages.PAGES[page](page.read_text()) == page.read_text(), REDO


def test_the_pictures_show_what_is_committed():
    made = pages.pictures()
    assert {path for path in (DOCS / "images").glob("*-*.svg")} == set(made), REDO
    for path, drawn in made.items():
        assert path.read_text() == drawn, REDO


def test_the_analyses_of_the_package_are_those_of_the_committed_runs():
    assert kept.same(kept.made_analyses(), kept.kept_analyses()), REDO


def test_committed_runs_are_of_the_committed_studies():
    studies = {study.folder: study for study in kept.studies()}
    assert {path.stem for path in kept.SPECS.glob("*.toml")} == set(studies)
    for path in kept.RUNS.glob("*/study.toml"):
        study, declared = load_study(path), studies[path.parent.name]
        assert study.identity == declared.identity
        assert (study.family, study.statistics) == (declared.family, declared.statistics)


def test_the_committed_ledger_has_every_claim():
    assert list(COMMITTED) == [row["id"] for row in kept.kept_ledger()["claims"]]
    assert set(COMMITTED) == set(CLAIMS), REDO
    assert set(claim_tables.TELLING) <= set(COMMITTED)


@pytest.mark.parametrize("id", CLAIMS)
def test_the_committed_verdict_is_what_the_test_says(id):
    (row,) = run_claims([id])
    made = {key: row.as_dict()[key] for key in ("paper", "location", "kind", "statement", "status")}
    assert made == {key: COMMITTED[id][key] for key in made}, REDO


def test_analyses_are_written_when_they_changed(tmp_path):
    runs, data = tmp_path / "runs", tmp_path / "data"
    folder = run_of("gate-sight-small", runs, seeds=2)
    data.mkdir()
    (path,) = kept.refresh_analyses(runs, data)
    assert path == data / "gate-sight-small.json"
    assert kept.refresh_analyses(runs, data) == []
    cell = next((folder / "cells").glob("*.json"))
    result = json.loads(cell.read_text())
    result["metrics"]["full"] += 1e-6
    cell.write_text(json.dumps(result))
    assert kept.refresh_analyses(runs, data) == [path]
    shutil.rmtree(folder)
    assert kept.refresh_analyses(runs, data) == [path]
    assert not path.exists()


def test_a_run_in_a_folder_of_another_name_is_an_error(tmp_path):
    run_of("gate-sight-small", tmp_path, seeds=2).rename(tmp_path / "gate-sight-paper")
    with pytest.raises(ValueError, match="expected a folder called gate-sight-small"):
        kept.made_analyses(tmp_path)


def test_the_ledger_is_written_when_more_than_rounding_changed(tmp_path):
    path = tmp_path / "claims.json"
    rows = [{"id": "x", "status": "holds", "evidence": {"text": "Off by 3.1e-16 at 0.25.", "error": 3.1e-16}}]

    def ledger(text, status="holds"):
        return {"schema": 1, "claims": [{**rows[0], "status": status, "evidence": {"text": text, "error": 1e-17}}]}

    assert kept.refresh_ledger(lambda: {"schema": 1, "claims": rows}, path) == [path]
    before = path.read_bytes()
    assert kept.refresh_ledger(lambda: ledger("Off by 0e+00 at 0.25."), path) == []
    assert path.read_bytes() == before
    assert kept.refresh_ledger(lambda: ledger("Off by 3.1e-16 at 0.26."), path) == [path]
    assert kept.refresh_ledger(lambda: ledger("Off by 3.1e-16 at 0.26.", "fails"), path) == [path]
    assert kept.refresh_ledger(lambda: ledger("Off by 3.1e-3 at 0.26.", "fails"), path) == [path]


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ({"x": [1.0, None]}, {"x": [1.0 + 1e-12, None]}, True),
        ({"x": 1.0}, {"x": 1.00001}, False),
        ({"x": 1.0}, {"x": None}, False),
        ({"x": 1}, {"y": 1}, False),
        ([1, 2], [1], False),
        (True, 1, False),
        (0, 1, False),
    ],
)
def test_what_counts_as_the_same(a, b, equal):
    assert kept.same(a, b) is equal


def test_a_ledger_that_cannot_be_run_is_told_and_nothing_is_written(monkeypatch, capsys):
    def broken():
        raise RuntimeError("claim x: no such layer")

    monkeypatch.setattr(kept, "refresh_ledger", broken)
    monkeypatch.setattr(kept, "refresh_analyses", list)
    monkeypatch.setattr(pages, "write_pages", lambda: pytest.fail("pages were written"))
    assert pages.main() == 1
    assert "no such layer" in capsys.readouterr().err


def test_the_readme_has_interval_n_and_p_beside_every_verdict(analyses):
    block = study_tables.readme_block(kept.studies(), analyses)
    rows = [line.split(" | ") for line in block.splitlines() if re.search(r"\| (better|worse|equivalent|incon)", line)]
    assert len(rows) == 4
    for row in rows:
        assert re.fullmatch(r"[+-]\d\.\d{4} to [+-]\d\.\d{4}", row[2])
        assert row[3] == "8"
        assert 0 < float(row[4]) <= 1
    assert "signific" not in block
    assert "| published gate - standard, whole windows | +0.0" in block
    assert "`ega` +0.25" in block
    assert "**incomplete: 54 of 144 cells**" in block
    assert block.count("| refused |") == study_tables.SHOWN
    assert "2 of superadditivity are only on that page" in block
    assert "Not run yet: `mope-controls-small`, `vision-small`." in block
    assert "Not run, as they need a GPU: `gate-sight-paper`, " in block


def test_the_page_has_every_contrast_and_arm(analyses):
    block = study_tables.page_block(kept.studies(), analyses)
    for name, analysis in analyses.items():
        assert f"](images/{name}.svg)" in block
        for row in analysis["contrasts"]:
            assert f"| {escaped(row['name'])}" in block
        for arm in analysis["arms"]:
            assert f"| `{arm}` | " in block
    explored = block.partition("| explored, not tested |")[2].partition("\n\n")[0]
    assert not re.search("better|worse|equivalent|inconclusive|refused", explored)


def test_without_results_nothing_is_shown():
    block = study_tables.readme_block(kept.studies(), {})
    assert block.startswith("Not run yet: `gate-sight-small`")
    assert "|" not in block
    assert study_tables.page_block(kept.studies(), {}) == block


def test_the_picture_shows_every_contrast_where_it_is(analyses):
    for analysis in analyses.values():
        drawing = ElementTree.fromstring(forest(analysis))
        tag = "{http://www.w3.org/2000/svg}"
        marks = drawing.findall(f"{tag}circle")
        assert len(marks) == len(analysis["contrasts"])
        zero = float(next(line for line in drawing.iter(f"{tag}line") if line.get("stroke-dasharray")).get("x1"))
        for mark, row in zip(marks, analysis["contrasts"], strict=True):
            assert (mark.get("fill") != "none") == row["family"]
            offset = float(mark.get("cx")) - zero
            assert offset * row["mean"] > 0 or abs(offset) < 2
        words = " ".join(text.text for text in drawing.iter(f"{tag}text"))
        assert "refused" in words or "higher" in words


def test_contrasts_without_a_mean_are_drawn_without_a_mark(tmp_path):
    run_of("gate-sight-small", tmp_path, seeds=0)
    (tmp_path / "gate-sight-small" / "cells").mkdir()
    (analysis,) = kept.made_analyses(tmp_path).values()
    drawing = forest(analysis)
    assert "<circle" not in drawing
    assert drawing.count(">refused<") == analysis["family"]["size"]


def test_claims_are_counted_and_shown():
    rows = list(COMMITTED.values())
    lines = (line.removeprefix("| ").removesuffix(" |").split(" | ") for line in claim_tables.counts(rows).splitlines())
    counts = {name: [int(cell.strip() or 0) for cell in cells] for name, *cells in list(lines)[2:]}
    groups = {f"apart: {kind}": [row for row in rows if row["kind"] == kind] for kind in APART}
    groups["all that was executed"] = [row for row in rows if row["kind"] in STATEMENTS]
    for name, group in groups.items():
        limited = sum(row["status"] == FAILS and bool(row["evidence"]["conditions"]) for row in group)
        numbers = [sum(row["status"] == verdict for row in group) for verdict in VERDICTS]
        place = VERDICTS.index(FAILS)
        numbers[place : place + 1] = [numbers[place] - limited, limited]
        assert counts[name] == [len(group), *numbers]
    papers = [numbers for name, numbers in counts.items() if name.startswith("[")]
    assert [sum(column) for column in zip(*papers, strict=True)] == counts["all that was executed"]
    assert len(claim_tables.telling(rows).splitlines()) == 2 + len(claim_tables.TELLING)
    page = claim_tables.ledger(rows)
    assert all(page.count(f"\n| `{id}` |") == 1 for id in COMMITTED)


def test_conditions_are_told():
    conditional = next(row for row in COMMITTED.values() if row["evidence"]["conditions"])
    assert claim_tables.brief(conditional, 0).startswith("*Condition: ")


def test_the_setting_is_told_in_full_on_the_page_alone():
    row = {
        "evidence": {"text": "Found.", "conditions": "by less; size small: layers 4 (published 6)", "interval": None}
    }
    assert claim_tables.brief(row, 0) == "*Condition: by less; size small: layers 4 (published 6).* Found."
    short = "*Condition: by less; size small, not the published setting.* Found."
    assert claim_tables.brief(row, 0, in_full=False) == short


def test_evidence_is_cut_after_its_interval():
    text = "From Fig. 1. Mean 0.1 in 8 seeds, 95 % interval [0, 0.2]. More of it."
    row = {"evidence": {"text": text, "conditions": "", "interval": [0, 0.2]}}
    assert claim_tables.brief(row, 0) == escaped(text.removesuffix(" More of it."))
    assert claim_tables.brief(row, 99) == escaped(text)
    row["evidence"]["interval"] = None
    assert claim_tables.brief(row, 0) == "From Fig. 1."


def test_markdown_in_texts_is_escaped():
    assert escaped("-|s| |d|\n of `a|b_c` z(b)* <x>") == r"-\|s\| \|d\| of `a\|b_c` z(b)\* \<x>"
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_the_study_of_the_page_can_be_run(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", (DOCS / "ablations.md").read_text(), re.S)
    path = tmp_path / "study.toml"
    path.write_text(block)
    study = load_study(path)
    check_models(study)
    assert set(study.grid.arms) == {"standard+learned", "standard+none", "g1+learned", "g1+none", "head-gate"}


def test_every_key_of_a_study_is_told():
    text = (DOCS / "ablations.md").read_text()
    told = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    configs = (ModelConfig, ImageModelConfig, TrainConfig, ImageTrainConfig, Statistics, Contrast, Execution)
    assert {field.name for config in configs for field in fields(config)} <= told
    assert set(KEYS) <= told
    assert {metric for names in METRICS.values() for metric in names} <= told


def test_commands_of_the_pages_exist():
    text = (DOCS / "ablations.md").read_text() + (DOCS / "claims.md").read_text()
    for spec in re.findall(r"benchmarks/ablations/[\w-]+\.toml", text + (kept.ROOT / "README.md").read_text()):
        assert (kept.ROOT / spec).is_file(), spec
    for id in re.findall(r"biases claims ([a-z][\w-]+(?: [a-z][\w-]+)*)", text):
        assert set(id.split()) <= set(CLAIMS)
