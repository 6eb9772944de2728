"""The GitHub action: its steps are run in bash as GitHub runs them, on a user's repository."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

from benchmarks.ci_check import ACTION, CASES, COMMITS, ROOT, added, faults, run_action, run_case  # noqa: E402
from benchmarks.compare_check import make_repository  # noqa: E402
from biases.bench.compare import Options, compare  # noqa: E402
from biases.ci.plan import plan_of  # noqa: E402
from biases.cli import _parser  # noqa: E402

TEXT = ACTION.read_text()
INPUTS = yaml.safe_load(TEXT)["inputs"]
STEPS = yaml.safe_load(TEXT)["runs"]["steps"]
KEPT = ROOT / "benchmarks" / "results" / "ci_check.json"


def test_inputs_are_described_and_all_are_used() -> None:
    assert all(each["description"].strip() and "default" in each for each in INPUTS.values())
    assert set(re.findall(r"inputs\.([\w-]+)", TEXT)) == set(INPUTS)


def test_no_input_is_pasted_into_a_script() -> None:
    """A branch name could otherwise be a command. Each step names its shell, as those of a composite action must."""
    assert STEPS
    for step in STEPS:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_it_installs_the_package_that_it_is_part_of() -> None:
    (install,) = (step["run"] for step in STEPS if "pip install" in step["run"])
    path = re.search(r'"\$GITHUB_ACTION_PATH/([./]+)\[([\w,]+)\]"', install)
    assert path
    assert (ACTION.parent / path[1]).resolve() == ROOT
    assert (ROOT / "pyproject.toml").is_file()


@pytest.fixture
def recorder(tmp_path: Path) -> dict[str, str]:
    """An environment with programs that write down their arguments, and end as they are told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("biases", "python"):
        (programs / name).write_text(
            f'#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\0" "$word"; done >> "{tmp_path}/calls"\n'
            f'printf "\\0" >> "{tmp_path}/calls"\necho said; exit "$CODE"\n'
        )
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin", "CODE": "0"}


def calls(folder: Path) -> list[list[str]]:
    return [call.split("\0") for call in (folder / "calls").read_text().split("\0\0")[:-1]]


def test_inputs_reach_the_command_as_they_are(tmp_path: Path, recorder: dict[str, str]) -> None:
    (tmp_path / "sub dir").mkdir()
    given = {
        "check": "a:b --option 'name=$(touch hacked)'\nc:d",
        "base": "origin/x;touch hacked",
        "compare": "--bench `touch hacked` --deterministic-only",
        "out": "my report",
        "working-directory": "sub dir",
        "install": "false",
    }
    run = run_action(tmp_path, given, recorder)
    assert (run.exit_code, run.output) == (0, "said\n")
    (call,) = calls(tmp_path)
    expected = [f"--{name}={given.get(name, '')}" for name in ("check", "base", "compare", "config", "out")]
    assert call == ["biases", "ci", *expected, "--annotations=github"]
    assert not list(tmp_path.rglob("hacked"))


def test_defaults_leave_everything_to_the_table(tmp_path: Path, recorder: dict[str, str]) -> None:
    assert run_action(tmp_path, {}, recorder).exit_code == 0
    install, command = calls(tmp_path)
    assert install[:4] == ["python", "-m", "pip", "install"]
    empty = [f"--{name}=" for name in ("check", "base", "compare", "config")]
    assert command == ["biases", "ci", *empty, "--out=biases-report", "--annotations=github"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_exit_code_is_that_of_the_command(tmp_path: Path, recorder: dict[str, str], code: int) -> None:
    assert run_action(tmp_path, {"install": "false"}, {**recorder, "CODE": str(code)}).exit_code == code


def test_what_the_action_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inputs: expected some of"):
        run_action(tmp_path, {"chek": "a:b"})


PAGE = (ROOT / "docs" / "ci.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_workflow_of_the_page_uses_the_action_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workflow, all_of_a_push, gitlab = (yaml.safe_load(block) for block in blocks("yaml"))
    assert set(all_of_a_push) == {"base"} < set(INPUTS)
    used = f"OWNER/REPOSITORY/{ACTION.parent.relative_to(ROOT)}@REF"
    (step,) = (each for each in workflow["jobs"]["attention"]["steps"] if each.get("uses") == used)
    assert set(step["with"]) <= set(INPUTS)
    words = [f"--{name}={step['with'][name]}" for name in ("check", "base", "compare")]
    plan = plan_of(_parser().parse_args(["ci", *words]))
    assert len(plan.checks) == 2
    assert plan.compare.deterministic_only
    (command,) = (line for line in gitlab["attention"]["script"] if line.startswith("biases ci"))
    assert _parser().parse_args(shlex.split(command)[1:]).out == "biases-report"
    assert gitlab["attention"]["artifacts"]["reports"]["junit"] == "biases-report/junit.xml"


def test_the_table_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (table,) = blocks("toml")
    (tmp_path / "pyproject.toml").write_text(table)
    plan = plan_of(_parser().parse_args(["ci"]))
    assert (len(plan.checks), plan.base, plan.compare.deterministic_only) == (2, "HEAD^1", True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_on_a_repository(name: str, tmp_path: Path) -> None:
    """Equal code passes; whatever is planted is found, and told where a user looks."""
    commits = make_repository(tmp_path, COMMITS)
    run = run_case(name, tmp_path, commits)
    assert list(faults(name, run)) == []
    left = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(left.stdout.splitlines()) == 1


@pytest.mark.slow
def test_the_suite_of_the_page_counts_what_is_fixed(tmp_path: Path) -> None:
    (suite,) = blocks("python")
    make_repository(tmp_path, {"one": {"benchmarks/attention_counts.py": suite}})
    found = compare("HEAD", repository=tmp_path, options=Options(deterministic_only=True))
    tracks = ("track_graph_breaks", "track_operators", "track_peak_bytes")
    assert {row.name: row.verdict for row in found.rows} == {
        f"attention_counts.Layer.{track}({length})": "no change" for track in tracks for length in (256, 1024)
    }
    assert all(row.head > 0 for row in found.rows if "graph_breaks" not in row.name)


@pytest.fixture(scope="module")
def kept() -> dict:
    if not KEPT.is_file():
        pytest.skip(f"no {KEPT.name}: python -m benchmarks.ci_check --summary {KEPT.relative_to(ROOT)} writes it")
    return json.loads(KEPT.read_text())


def test_the_kept_results_hold_what_is_claimed(kept: dict) -> None:
    """Twenty passes on equal code, everything planted found."""
    assert kept["faults"] == []
    codes: dict[str, list[int]] = {}
    for run in kept["runs"]:
        codes.setdefault(run["case"], []).append(run["exit_code"])
    assert codes == {name: [case.exit_code] * (20 if name == "unchanged" else 1) for name, case in CASES.items()}


def test_runs_of_some_cases_leave_those_of_the_others_as_they_are(kept: dict) -> None:
    run = {"case": "slower", "seed": 0, "exit_code": 0, "verdicts": {}}
    new = {"faults": ["slower 0: expected"], "runs": [run], "machine": {"cores": 3}, "seconds": 1.0}
    merged = added({**kept, "faults": ["slower 0: earlier", "bytes 0: earlier"]}, new, ["slower"])
    assert merged["faults"] == ["bytes 0: earlier", "slower 0: expected"]
    assert merged["runs"] == [each for each in kept["runs"] if each["case"] != "slower"] + [run]
    assert merged["added"][-1] == {"cases": ["slower"], "machine": {"cores": 3}, "seconds": 1.0}
    assert {**merged, **dict.fromkeys(("faults", "runs", "added"))} == {
        **kept,
        **dict.fromkeys(("faults", "runs", "added")),
    }
