"""Whether CI can rely on the action: its steps are run on a user's repository, without and with planted faults.

    python -m benchmarks.ci_check --summary benchmarks/results/ci_check.json
    python -m benchmarks.ci_check --case varying --summary benchmarks/results/ci_check.json

A repository is made with an attention layer and an asv-style suite, and the steps of the action in `.github/actions`,
all but the installation of this package, are run in bash as GitHub runs them. Equal code must pass, every time; a layer
that reads the future must fail with an annotation of its line and be named in every report; attention that stores the
weights, or that is computed twice, must fail by bytes and operations alone, and by time; a graph break, and bytes that
grow with every call, must fail by fixed quantities; and where no benchmark matches the verdict must be refused. With
`--case` the runs of the other cases stay in the summary. Exit code 0: all of that; 1: not all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare_check import BYTES, OPERATIONS, SUITE, faults_of, make_repository
from biases._files import write_atomically
from biases.bench import facts

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / ".github" / "actions" / "biases" / "action.yml"
ATTENTION = """
import torch.nn.functional as F
from torch import nn


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.inner, self.outer = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.inner(x).chunk(3, -1))
        return self.outer(attend(q, k, v).transpose(1, 2).flatten(2))


def make_layer(dim, heads):
    return Layer(dim, heads)
"""
TWICE = ATTENTION.replace("    return F.", "    F.scaled_dot_product_attention(q, k, v, is_causal=True)\n    return F.")
SQUARE = ATTENTION.replace(
    "    return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
    "    later = q.new_full((q.shape[-2], k.shape[-2]), float('-inf')).triu(1)\n"
    "    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + later).softmax(-1) @ v",
)
# Between two operators: one at the end of a graph would leave a single graph.
BREAKING = ATTENTION.replace("    return F.", "    k = k * 1\n    torch._dynamo.graph_break()\n    return F.").replace(
    "import torch.nn", "import torch\nimport torch.nn"
)
# Nobody empties the list.
KEEPING = ATTENTION.replace(
    "    return F.", "    KEPT.append(q)\n    torch.cat([each.flatten() for each in KEPT])\n    return F."
).replace(
    "import torch.nn.functional as F\nfrom torch import nn\n",
    "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\nKEPT = []\n",
)
GRAPHS = """
import torch
from attention import attend


def track_graph_breaks():
    inputs = [torch.randn(1, 4, 16, 8) for _ in range(3)]
    return torch._dynamo.explain(attend)(*inputs).graph_break_count
"""
GRAPH_BREAKS = ("graphs.track_graph_breaks",)
COMMITS = {
    "start": {
        "attention/__init__.py": ATTENTION,
        "benchmarks/operators.py": SUITE,
        ".gitignore": "__pycache__/\n.hypothesis/\nbiases-report/\n",
    },
    "unchanged": {"README": "A file that nothing reads.\n"},
    "twice": {"attention/__init__.py": TWICE},
    "square": {"attention/__init__.py": SQUARE},
    "future": {"attention/__init__.py": ATTENTION.replace(", is_causal=True", "")},
    "breaking": {"attention/__init__.py": BREAKING, "benchmarks/graphs.py": GRAPHS},
    "keeping": {"attention/__init__.py": KEEPING},
}
CHECK = "attention:make_layer --trait causal=true --max-examples 5"
LINE = ATTENTION[: ATTENTION.index("def make_layer")].count("\n") + 1
EXPRESSION = re.compile(r"\$\{\{\s*inputs\.([\w-]+)\s*\}\}")


@dataclass(frozen=True)
class Case:
    """What is planted, and what must come of it.

    Attributes:
        commit: that is checked out.
        exit_code: of the action.
        compare: options of the comparison with the first commit; ``None`` = only the battery is run.
        check: whether the battery is run.
        regressions: benchmarks that must be called a regression, where only deterministic quantities are compared.
        why: in the reason of each of them.
    """

    commit: str
    exit_code: int
    compare: str | None = "--deterministic-only"
    check: bool = True
    regressions: tuple[str, ...] = ()
    why: str = ""


CASES = {
    "unchanged": Case("unchanged", 0, "--rounds {rounds} --seed {seed}"),
    "future": Case("future", 1, None),
    "bytes": Case("square", 1, regressions=BYTES),
    "operations": Case("twice", 1, regressions=OPERATIONS),
    "slower": Case("twice", 1, "--rounds {rounds} --seed {seed}", check=False),
    "graph-break": Case("breaking", 1, check=False, regressions=GRAPH_BREAKS, why="0 -> 1"),
    "varying": Case("keeping", 1, check=False, regressions=BYTES, why="varies at head"),
    "nothing": Case("unchanged", 3, "--bench no_such_benchmark", check=False),
}


@dataclass(frozen=True)
class Run:
    """One run of the action.

    Attributes:
        exit_code: of the first step that failed, else 0.
        output: what the steps printed.
        summary: of the job.
        report: name -> content of the files in its folder.
    """

    exit_code: int
    output: str
    summary: str
    report: dict[str, str] = field(default_factory=dict)

    @property
    def annotations(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("::error ")]

    @property
    def comparison(self) -> dict[str, Any]:
        return json.loads(self.report["comparison.json"])


def run_action(checkout: Path, inputs: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Run:
    """Run the steps of the action in bash, with what GitHub gives them.

    Args:
        checkout: the user's.
        inputs: of the action; the others have their defaults.
        environment: of the steps, over that of this process.

    Raises:
        ValueError: an input that the action does not have, or an expression that is not one input.
    """
    action = yaml.safe_load(ACTION.read_text())
    given = {name: str(each.get("default", "")) for name, each in action["inputs"].items()}
    if unknown := set(inputs) - set(given):
        raise ValueError(f"inputs: expected some of {sorted(given)}, got {sorted(unknown)}")
    given |= inputs
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.md"
        summary.touch()
        github = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTION_PATH": str(ACTION.parent)}
        code, output = 0, ""
        for step in action["runs"]["steps"]:
            if not _wanted(step.get("if"), given):
                continue
            script = Path(folder) / "step.sh"
            script.write_text(step["run"])
            own = {name: _filled(value, given) for name, value in step.get("env", {}).items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
                cwd=checkout / _filled(step.get("working-directory", "."), given),
                env={**os.environ, **(environment or {}), **github, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            code, output = done.returncode, output + done.stdout
            if code:
                break
        out = checkout / given["working-directory"] / given["out"]
        report = {path.name: path.read_text() for path in out.iterdir()} if out.is_dir() else {}
        return Run(code, output, summary.read_text(), report)


def _wanted(condition: str | None, inputs: Mapping[str, str]) -> bool:
    if condition is None:
        return True
    found = re.fullmatch(r"inputs\.([\w-]+) == '([^']*)'", condition)
    if found is None:
        raise ValueError(f"if: expected inputs.NAME == 'VALUE', got {condition}")
    return inputs[found[1]] == found[2]


def _filled(text: str, inputs: Mapping[str, str]) -> str:
    filled = EXPRESSION.sub(lambda found: inputs[found[1]], text)
    if "${{" in EXPRESSION.sub("", text):
        raise ValueError(f"expression: expected inputs.NAME, got {text}")
    return filled


def run_case(name: str, checkout: Path, commits: Mapping[str, str], *, rounds: int = 60, seed: int = 0) -> Run:
    """Check the commit of a case out, and run the action as its user's workflow would."""
    case = CASES[name]
    subprocess.run(["git", "checkout", "--quiet", "--detach", commits[case.commit]], cwd=checkout, check=True)
    inputs = {"install": "false", "check": CHECK if case.check else ""}
    if case.compare is not None:
        inputs |= {"base": commits["start"], "compare": case.compare.format(rounds=rounds, seed=seed)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return run_action(checkout, inputs, {"PATH": path, "OMP_NUM_THREADS": "1"})


def faults(name: str, run: Run) -> Iterator[str]:
    """What is not as it must be in one run of a case."""
    case = CASES[name]
    if run.exit_code != case.exit_code:
        yield f"expected exit code {case.exit_code}, got {run.exit_code}: {run.output[-2000:]}"
        return
    if bool(run.annotations) != bool(case.exit_code):
        yield f"expected annotations just where it fails, got {run.annotations}"
    if name == "future":
        yield from _faults_of_a_broken_promise(run)
    elif name in ("unchanged", "slower"):
        yield from faults_of("unchanged" if name == "unchanged" else "twice", run.comparison)
    else:
        rows = {row["name"]: row for row in run.comparison["rows"]}
        if bool(rows) != bool(case.regressions) or not set(rows) <= {*BYTES, *OPERATIONS, *GRAPH_BREAKS}:
            yield f"expected deterministic quantities only, got {sorted(rows)}"
        found = {name for name, row in rows.items() if row["verdict"] == "regression" and case.why in row["reason"]}
        missed = [each for each in case.regressions if each not in found]
        missed += [each for each in case.regressions if each not in run.summary]
        if missed:
            yield f"expected regressions, in the summary too, of {case.regressions}, missed {missed}"


def _faults_of_a_broken_promise(run: Run) -> Iterator[str]:
    start = (
        f"::error file=attention/__init__.py,line={LINE},title=attention%3Amake_layer%3A future-independence failed::"
    )
    if not any(line.startswith(start) for line in run.annotations):
        yield f"expected an annotation {start}, got {run.annotations}"
    results = json.loads(run.report["results.sarif"])["runs"][0]["results"]
    if "future-independence" not in [each["ruleId"] for each in results]:
        yield f"expected future-independence in the SARIF, got {results}"
    for where, text in (("summary of the job", run.summary), *run.report.items()):
        if where != "comparison.json" and "future-independence" not in text:
            yield f"expected future-independence in the {where}"


def added(kept: Mapping[str, Any], document: Mapping[str, Any], cases: Collection[str]) -> dict[str, Any]:
    """Earlier results with the runs of ``cases`` in place of their own, and on what machine those were made."""
    names = ("machine", "seconds")
    return {
        **kept,
        "faults": [each for each in kept["faults"] if each.partition(" ")[0] not in cases] + document["faults"],
        "runs": [each for each in kept["runs"] if each["case"] not in cases] + document["runs"],
        "added": [*kept.get("added", []), {"cases": list(cases), **{name: document[name] for name in names}}],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unchanged", type=int, default=20, metavar="N", help="runs on equal code")
    parser.add_argument("--rounds", type=int, default=60, help="for each benchmark")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the results here (JSON)")
    options = parser.parse_args()
    begin, runs, found = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        commits = make_repository(Path(folder), COMMITS)
        for name in options.case or CASES:
            count = options.unchanged if name == "unchanged" else 1
            for seed in range(count):
                run = run_case(name, Path(folder), commits, rounds=options.rounds, seed=seed)
                wrong = [f"{name} {seed}: {fault}" for fault in faults(name, run)]
                found += wrong
                rows = run.comparison["rows"] if "comparison.json" in run.report else []
                verdicts = {row["name"]: row["verdict"] for row in rows}
                runs.append({"case": name, "seed": seed, "exit_code": run.exit_code, "verdicts": verdicts})
                said = "as it should be" if not wrong else "; ".join(wrong)
                print(f"{name} {seed + 1}/{count} {time.monotonic() - begin:.0f} s {said}", flush=True)
    document = {
        "schema": 1,
        "asked": {"unchanged": options.unchanged, "rounds": options.rounds},
        "machine": facts(),
        "faults": found,
        "seconds": round(time.monotonic() - begin, 1),
        "runs": runs,
    }
    if options.case and options.summary and options.summary.exists():
        document = added(json.loads(options.summary.read_text()), document, options.case)
    if options.summary:
        write_atomically(options.summary, (json.dumps(document, indent=1) + "\n").encode())
    print("\n".join(found) or "all as it should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
