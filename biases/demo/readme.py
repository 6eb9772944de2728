"""The parts of the README that are generated: the table of biases and what the demo found.

``python -m biases.demo.readme`` writes them into ``README.md``; a test checks that they are up to date. Given the
folder of a run, as in ``python -m biases.demo.readme runs/demo``, it takes that run's results for the committed ones
first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biases import zoo
from biases._checks import fail
from biases._files import write_atomically
from biases.demo.run import headline
from biases.demo.summary import signed

RESULTS = Path("benchmarks/results/demo.json")
ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


def zoo_table() -> str:
    """The zoo as a Markdown table."""
    lines = ["| name | kind | what | added parameters | fast path | source |", "|---|---|---|---|---|---|"]
    for row in zoo.table():
        mark = " ⚠" if row["known_failures"] else ""
        source = ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", row["paper"] or "")
        cells = (row["summary"], row["parameters"], row["fast_path"] or "", source)
        lines.append(f"| `{row['name']}`{mark} | {row['kind']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def findings(results: Mapping[str, Any]) -> str:
    """What a run of the demo found, as Markdown."""
    ablation, bench = results["ablation"], results["bench"]
    rows = {row["name"]: row for row in ablation["contrasts"]}
    first = next(iter(rows.values()))
    lines = [
        f"| contrast, validation loss in nats per character, {first['n']} seeds | mean | 95 % interval | p | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in (*rows.values(), ablation["interaction"]):
        low, high = row["interval"]
        p = f"{row['p_sign_flip']:.3f}"
        lines.append(
            f"| {row['name']} | {signed(row['mean'])} | {signed(low)} to {signed(high)} | {p} | {row['verdict']} |"
        )
    leaks = []
    for arm, values in ablation["arms"].items():
        low, high = values["leak_interval"]
        leaks.append(f"`{arm}` {signed(low)} to {signed(high)}")
    lines += [
        "",
        f"p is an exact sign-flip p, of which {first['p_smallest']:.3f} is the smallest attainable. "
        "Loss on prefixes minus loss on whole windows, 95 % interval: " + "; ".join(leaks) + ".",
        "",
        f"| bias, {bench['config']['length']} tokens, {results['machine']['cpu']} | time ÷ floor, forward "
        "| forward + backward | peak memory ÷ floor's | dense formulas |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *_ratios(bench["rows"])])


def _ratios(rows: list[Mapping[str, Any]]) -> list[str]:
    by_case = {(row["name"], row["direction"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows if not row["name"].endswith(", plain")):
        forward, both = by_case[name, "forward"], by_case[name, "forward+backward"]
        plain = by_case[f"{name}, plain", "forward"]
        memory = forward["peak_bytes"] / forward["floor_peak_bytes"]
        squares = f"{plain['ratio']:.1f} × the time, {plain['peak_bytes'] / plain['floor_peak_bytes']:.0f} × the memory"
        lines.append(f"| {name} | {forward['ratio']:.2f} | {both['ratio']:.2f} | {memory:.1f} | {squares} |")
    return lines


def replace(text: str, block: str, content: str) -> str:
    """``text`` with what stands between the markers of ``block`` replaced.

    Raises:
        ValueError: the markers are not there.
    """
    start, end = f"<!-- begin {block} -->", f"<!-- end {block} -->"
    if start not in text or end not in text:
        fail("README", f"the markers {start} and {end}", "neither or one of them")
    head, _, rest = text.partition(start)
    return f"{head}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def generate(text: str, results: Mapping[str, Any]) -> str:
    """The README with its generated parts made anew."""
    return replace(replace(text, "zoo", zoo_table()), "findings", findings(results))


def main(arguments: Sequence[str]) -> int:
    """Rewrite ``README.md`` in the current folder, and the committed results if a run is named."""
    if arguments:
        results = headline(json.loads((Path(arguments[0]) / "results.json").read_text()))
        write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    readme = Path("README.md")
    readme.write_text(generate(readme.read_text(), json.loads(RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
