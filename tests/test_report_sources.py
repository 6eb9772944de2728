"""Where the dashboard's results come from: commands that make them again, origins, runs of one study, the package's."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from report_pages import Page, full_results, sample_results

from biases import cli
from biases.bench.command import plan_of
from biases.checking.command import document as check_document
from biases.report import render, sources
from biases.report.inputs import gather, gather_defaults
from biases.report.sections import SECTIONS
from biases.testing.result import Result

CHECKED = [Result("alibi", "shape", "A promise.", "passed")]
CHECK_COMMANDS = [
    "biases check alibi ega --property future-independence --property prefix-consistency --seed 3 --json",
    "biases check 'my pkg:make; ls' --option=-x=1 --trait 'causal=true' --widths 8:2 --dtype float32 --slow --json",
]
BENCH_COMMANDS = [
    "biases bench alibi --length 64 128 --direction forward --rounds 3 --quick --json",
    "biases bench --backend flex --json",
    "biases bench ega alibi --heads 4 --head-dim 32 --batch 3 --seed 7 --seconds 0.5 --dtype float64 --peers --json",
    "biases bench char-gpt --level training --length 64 --quick --json",
    "biases bench char-gpt --level model --length 1024 --rounds 15 --seconds 5.0 --quick --json",
]
STUDY = {
    "study": "sight (tiny)",
    "title": "sight (tiny)",
    "arms": {"ega": {"full": {"0": 1.5, "1": 1.6}, "statuses": {"ok": 2}}},
    "contrasts": [],
    "provenance": {"git": {"0123456789": 2}, "devices": {"a CPU": 2}},
}


def parsed(command: str) -> argparse.Namespace:
    return cli._parser().parse_args(shlex.split(command)[1:])


def dump(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("command", CHECK_COMMANDS)
def test_the_command_of_a_check_does_the_same_again(command: str) -> None:
    document = json.loads(json.dumps(check_document(parsed(command), CHECKED)))
    made = sources.check_command(document)
    assert made is not None
    assert vars(parsed(made)) == vars(parsed(command))
    del document["configuration"]["seed"]
    assert sources.check_command(document) is None


@pytest.mark.parametrize("command", BENCH_COMMANDS)
def test_the_command_of_a_benchmark_plans_the_same_again(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Layers are built to see whether they can be; none is measured here.
    monkeypatch.setattr("biases.zoo.trial", lambda name: None)
    plan = plan_of(parsed(command)).as_dict()
    own = {"heads", "head_dim"} if "char-gpt" in command else set()
    rows = [{"setting": {key: value for key, value in plan["settings"][0].items() if key not in own}}]
    made = sources.bench_command(json.loads(json.dumps({"configuration": plan, "rows": rows})))
    assert made is not None
    assert plan_of(parsed(made)).as_dict() == plan
    assert len(made) <= len(command)
    assert sources.bench_command({"configuration": {"seed": 0}, "rows": rows}) is None


def test_the_page_names_its_own_command_and_those_of_its_parts(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    dump(tmp_path / "c k.json", check_document(parsed(CHECK_COMMANDS[0]), CHECKED))
    dump(tmp_path / "old.json", {"results": [CHECKED[0].as_dict()]})
    command = "biases report 'c k.json' old.json --out 'my page.html' --title 'a; b' --no-gallery"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pages = []
    for _ in range(2):
        assert cli.main(shlex.split(command)[1:]) == 0
        pages.append((tmp_path / "my page.html").read_text())
    assert pages[0] == pages[1]
    text = Page(pages[0]).text()
    assert f"Created 2023-11-14T22:13:20+00:00 by {command} " in text
    assert f"Made by {CHECK_COMMANDS[0]} from c k.json." in text
    assert "Made by a run of biases check from old.json." in text
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert cli.main(shlex.split(command)[1:]) == 2
    assert "SOURCE_DATE_EPOCH: expected whole seconds since 1970, got 'yesterday'" in capsys.readouterr().err


def test_the_page_can_be_printed(tmp_path: Path, capfd) -> None:
    path = dump(tmp_path / "check.json", {"results": [CHECKED[0].as_dict()]})
    assert cli.main(["report", str(path), "--no-gallery", "--out", "/dev/stdout"]) == 0
    told = capfd.readouterr()
    assert told.out.startswith("<!DOCTYPE html>")
    assert told.out.rstrip().endswith("</html>")
    assert "results: 1 of verification" in told.err
    assert cli.main(["report", str(path), "--serve", "--port", "0", "--out", "/dev/stdout"]) == 2
    assert "--out with --serve: expected a file" in capfd.readouterr().err


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("biases.report.inputs.gather_defaults", lambda folder: pytest.fail("it was begun"))
    (tmp_path / "file").touch()
    assert cli.main(["report", "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert "--out: expected a file that can be written" in capsys.readouterr().err


def test_every_part_says_what_its_file_tells_of_its_origin() -> None:
    machine = {"cpu": "a CPU", "cuda_device": "a GPU", "torch": "2.9.0", "date": "2026-01-15T10:30:00+00:00"}
    results = full_results()
    results["bench"] |= {"machine": {**machine, "git_revision": "0123456789abcdef-dirty"}}
    results["bench"]["config"] = {"settings": [{"device": "cuda", "seed": 7}]}
    results["verification"] = results["verification"][0] | {"machine": machine}
    results["verification"]["configuration"] = {"device": "cpu", "seed": 3}
    results["ablation"] = results["ablation"][0] | {
        "provenance": {
            "git": {"0123456789abcdef": 5, "fedcba9876543210": 3},
            "versions": {"torch": {"2.9.0": 5, "2.13.0": 3}},
            "devices": {"a CPU": 8},
            "started": ["2026-01-15T10:30:00+00:00", "2026-01-16T10:30:00+00:00"],
        }
    }
    ends = [{"hash": "00000000", "date": 1.7e12}, {"hash": "0000000f", "date": 1.705e12}]
    results["history"] = {"machine": "box", "commits": ends}
    results["history"]["series"] = [{"benchmark": "a.time_call", "unit": "seconds", "values": [1.0, 2.0]}]
    text = Page(render(results)).text()
    for line in (
        "2026-01-15 · revision 01234567 with changes · torch 2.9.0 · cuda (a GPU) · seed 7 ",
        "2026-01-15 · torch 2.9.0 · cpu (a CPU) · seed 3 ",
        "2026-01-15 to 2026-01-16 · revisions 01234567, fedcba98 · torch 2.9.0, 2.13.0 · a CPU · seeds 0, 1, 2, 3 and ",
        "2023-11-14 to 2024-01-11 · revisions 00000000 to 0000000f ",
    ):
        assert line in text
    assert sources.origin({"commits": [{"hash": "0", "date": "new"}]}) == "revision 0"
    assert sources.origin({"machine": "bench-2c", "provenance": [], "config": {"seeds": 3}}) == ""


def test_a_file_of_another_schema_is_told(tmp_path: Path) -> None:
    found = gather([dump(tmp_path / "check.json", {"schema": 99, "results": [CHECKED[0].as_dict()]})])
    text = Page(render(found.sections)).text()
    assert "Written in schema 99; what is shown was read as schema 1." in text
    assert "Written in schema" not in Page(render(sample_results())).text()


def test_runs_of_a_study_with_other_cells_are_all_shown(tmp_path: Path) -> None:
    other = {**STUDY, "provenance": {"git": {"0123456789": 2}, "devices": {"a GPU": 2}}}
    again = {**STUDY, "contrasts": [{"name": "ega", "mean": 9.9}]}
    fewer = {**STUDY, "arms": {"ega": {"full": {"0": 1.5}, "statuses": {"ok": 1}}}}
    plain = {"arms": {"a": {}}, "contrasts": [], "study": "x"}
    documents = {"fewer": fewer, "one": STUDY, "other": other, "again": again, "copy": STUDY, "plain": plain}
    found = gather([dump(tmp_path / f"{name}.json", each) for name, each in documents.items()])
    shown = {Path(part["file"]).stem: part.get("title") for part in found.sections["ablation"]}
    assert shown == {
        **{name: f"sight (tiny), {tmp_path / f'{name}.json'}" for name in ("one", "other", "again")},
        "plain": None,
    }
    whole = f"the same results are shown from {tmp_path / 'one.json'}"
    assert sorted(found.skipped) == [(str(tmp_path / f"{name}.json"), whole) for name in ("copy", "fewer")]


def test_the_packages_own_studies_are_titled_so_and_count_for_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--json", "--no-gallery"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["sections"], told["packaged"]) == ({}, {"ablation": 4})
    text = Page((tmp_path / "report.html").read_text()).text()
    assert "No results were found: runs/ and benchmarks/results/ of the working directory hold none." in text
    assert "The package's own study: gate-sight (small)" in text
    assert "It comes with the package and was not run here." in text
    (tmp_path / "runs").mkdir()
    dump(tmp_path / "runs" / "mine.json", {**STUDY, "study": "gate-sight (small)"})
    found = gather_defaults(Path())
    assert found.counts() == {"ablation": 1}
    assert found.counts(packaged=True) == {"ablation": 3}
    titles = [part["title"] for part in found.sections["ablation"]]
    assert titles[0] == "sight (tiny)"
    assert all(title.startswith("The package's own study: ") for title in titles[1:])
    assert gather([tmp_path / "runs"]).counts(packaged=True) == {}


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    folder.mkdir()
    for index in range(6):
        dump(folder / f"{index}.json", {"about": "something else"})
    (folder / "alibi.1.pt.trace.json").write_text("not read")
    dump(folder / "check.json", {"results": [CHECKED[0].as_dict()]})
    found = gather([tmp_path])
    assert [part["file"] for part in found.sections["verification"]] == [str(folder / "check.json")]
    names = "0.json, 1.json, 2.json, 3.json, 4.json, 5.json, alibi.1.pt.trace.json"
    assert found.skipped == [(str(folder), f"no results of these commands: {names}")]


def test_views_that_cut_no_text_are_prepared_once(monkeypatch) -> None:
    seen: list[str] = []

    def watched(name: str, view):
        return lambda *arguments: (seen.append(name), view(*arguments))[1]

    for name in ("bench", "verification"):
        module = getattr(__import__("biases.report", fromlist=[name]), name)
        monkeypatch.setattr(module, "view", watched(name, module.view))
    results = sample_results()
    row = results["verification"]["results"][0] | {"status": "failed", "message": "x" * 9_000}
    results["verification"]["results"] = [row | {"subject": f"subject-{i}"} for i in range(600)]
    render(results)
    assert seen.count("verification") > 1
    assert seen.count("bench") == 1


def test_the_documented_commands_are_those_of_the_sections() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "report.md").read_text()
    for section in SECTIONS.values():
        assert f"`{section.made_by}`" in documented
