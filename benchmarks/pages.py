"""All that is made from committed results: ``python benchmarks/pages.py`` writes it, tests check that it is up to date.

That is the generated parts of the README and of docs/, the pictures of the studies, the analyses that come with the
package, and the verdicts of the ledger, whose tests it runs (half a minute). What has not changed is not written.
Exit code 1: a test of the ledger could not be run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# As a script, Python looks for modules beside it and not in the checkout.
sys.path.insert(0, str(ROOT))

from benchmarks import claim_tables, kept, study_tables  # noqa: E402
from benchmarks.forest import forest  # noqa: E402
from benchmarks.result_tables import alarms_table, cost_table, digits_table  # noqa: E402
from biases._files import write_atomically  # noqa: E402
from biases.demo.readme import replace  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LENGTHS = (1024, 4096)
DIRECTIONS = ("forward", "forward+backward")
# Rows of the table of ratios -> subjects of `make gpu`.
ON_GPU = {
    "gate, not renormalised": "gate-folded",
    "gate, renormalised": "key-bias",
    "EGA, causal (`ega`)": "ega-token",
    "ALiBi, causal (`alibi`)": "alibi",
    "ALiBi, symmetric (`alibi-symmetric`)": "alibi-symmetric",
    "ALiBi, symmetric, learned slopes": "alibi-learned",
    "Manhattan (`manhattan`)": "manhattan",
    "Manhattan, learned rates": "manhattan-learned",
    "sigmoid, ALiBi, decay": "sigmoid-decay",
    "retention (`retention`)": "retention",
}


def read(name: str) -> dict[str, Any]:
    """The committed results ``name``."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_evidence(name: str) -> dict[str, Any] | None:
    """The committed results ``name``; ``None`` if there are none, or only those of a trial run."""
    if not (RESULTS / f"{name}.json").exists():
        return None
    found = read(name)
    trial = found.get("made_by", {}).get("quick", False) if name.startswith("ratios") else not found.get("evidence")
    return None if trial else found


def ratios_table(results: dict[str, Any] | None, gpu: dict[str, Any] | None) -> str:
    """What every bias costs at two lengths on the CPU and, where it was measured, on a GPU."""
    lines = [
        "| bias | bar | " + " | ".join(f"{n} tokens, forward | + backward" for n in LENGTHS) + " | beyond results at "
        f"{LENGTHS[-1]}, the floor's | growth | by | CUDA, bfloat16, {LENGTHS[-1]}: forward | + backward |",
        "|---|" + "---|" * 10,
    ]
    rows = _pieces(results, "biases")
    for name, of_name in rows.items():
        bar = next(iter(of_name.values()))["bar"]
        cells = [_ratio_cell(of_name.get((n, d)), bar) for n in LENGTHS for d in DIRECTIONS]
        cuda = [_gpu_cell(gpu, ON_GPU.get(name), direction) for direction in DIRECTIONS]
        lines.append(f"| {' | '.join([name, f'{bar:.2f}', *cells, *_memory_cells(of_name), _by(of_name), *cuda])} |")
    if results is None:
        return _measured_with(results)
    return "\n".join([*lines, "", _measured_with(results), *_left_out(results)])


def prices_table(results: dict[str, Any] | None) -> str:
    """The ratios of :func:`ratios_table` alone."""
    if results is None:
        return _measured_with(results)
    lines = [
        "| bias | " + " | ".join(f"{n} tokens, forward | + backward" for n in LENGTHS) + " |",
        "|---|" + "---|" * 4,
    ]
    for name, of_name in _pieces(results, "biases").items():
        bar = next(iter(of_name.values()))["bar"]
        cells = [_ratio_cell(of_name.get((n, d)), bar).partition(" (")[0] for n in LENGTHS for d in DIRECTIONS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*lines, "", _measured_with(results)])


def small_table(results: dict[str, Any] | None, table: str) -> str:
    """The stages of RMT, or windows, with the plain formulation beside."""
    rows = _pieces(results, table)
    if not rows:
        return _measured_with(results)
    lines = ["| shape | bar | forward | + backward | plain: forward | + backward | beyond results, the floor's | by |"]
    lines += ["|---|" + "---|" * 7]
    for name, of_name in rows.items():
        found = {direction: piece for (_, direction), piece in of_name.items()}
        bar = next(iter(found.values()))["bar"]
        ours = [_ratio_cell(found.get(direction), bar) for direction in DIRECTIONS]
        plain = [_ratio_cell(found.get(direction), None, "plain_ratio") for direction in DIRECTIONS]
        lines.append(
            f"| {' | '.join([name, f'{bar:.2f}', *ours, *plain, _beyond(found.get(DIRECTIONS[1])), _by(of_name)])} |"
        )
    return "\n".join(lines)


def _pieces(results: dict[str, Any] | None, table: str) -> dict[str, dict[tuple[int, str], dict[str, Any]]]:
    """Row -> (tokens, direction) -> what was measured, or why not."""
    rows: dict[str, dict[tuple[int, str], dict[str, Any]]] = {}
    for name, piece in (results or {"pieces": {}})["pieces"].items():
        if piece["table"] == table:
            _, length, direction = name.rsplit("/", 2)
            rows.setdefault(piece["subject"], {})[int(length), direction] = piece
    return rows


def _left_out(results: dict[str, Any]) -> list[str]:
    """What is in no table: pieces that were wrong or raised, and those that are not there."""
    found = results["pieces"]
    bad = [f"{name}: {each['status']}, {each['message'].strip()}" for name, each in found.items() if not _ok(each)]
    missing = [f"{name}: not measured" for name in results["asked"] if name not in found]
    # On one line each, so that no message ends the list.
    return ["", *(f"- {' '.join(line.split())}" for line in (*bad, *missing))] if bad or missing else []


def _ok(piece: dict[str, Any]) -> bool:
    return bool(piece["status"] == "ok")


def _ratio_cell(piece: dict[str, Any] | None, bar: float | None, which: str = "ratio") -> str:
    if piece is not None and not _ok(piece):
        return str(piece["status"])
    ratio = None if piece is None else piece[which]
    if ratio is None:
        return "-"
    over = " †" if bar is not None and ratio["value"] > bar else ""
    return f"{ratio['value']:.2f}{over} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _memory_cells(of_name: dict[tuple[int, str], dict[str, Any]]) -> list[str]:
    """Bytes beyond the results, forward and backward, and how they grow with four times the tokens."""
    short, long = (of_name.get((n, DIRECTIONS[1])) for n in LENGTHS)
    if long is None or short is None or not (_ok(long) and _ok(short)) or not short["extra_bytes"]:
        return [_beyond(long), "-"]
    return [_beyond(long), f"x {long['extra_bytes'] / short['extra_bytes']:.1f}"]


def _beyond(piece: dict[str, Any] | None) -> str:
    if piece is None or not _ok(piece):
        return "-"
    return f"{piece['extra_bytes'] / 2**20:.2f} MiB, {piece['floor_extra_bytes'] / 2**20:.2f}"


def _by(of_name: dict[tuple[int, str], dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(name for piece in of_name.values() for name in piece.get("formulations", ())))


def _gpu_cell(gpu: dict[str, Any] | None, name: str | None, direction: str) -> str:
    """The fastest backend that was right."""
    cell = (gpu or {"cells": {}})["cells"].get(f"{name}/{LENGTHS[-1]}/bfloat16/{direction}", {})
    ratios = {each: found["ratio"]["value"] for each, found in cell.get("backends", {}).items() if "ratio" in found}
    if not ratios:
        return "not measured"
    best = min(ratios, key=ratios.__getitem__)
    return f"{ratios[best]:.2f} ({best}, memory {cell['backends'][best]['memory_ratio']:.2f})"


def _measured_with(results: dict[str, Any] | None) -> str:
    if results is None:
        return "Not measured: `python benchmarks/ratios.py` does, then `python benchmarks/pages.py` writes the table."
    machine = results["machine"]
    rounds = sorted(p["ratio"]["rounds"] for p in results["pieces"].values() if p["status"] == "ok")
    spent = f"{rounds[0]} to {rounds[-1]}" if rounds else "no"
    revision = str(machine["git_revision"])
    revision = revision[:12] + (" with changes" if revision.endswith("-dirty") else "")
    return (
        f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"float32, {machine['date'][:10]}, revision {revision}; {spent} rounds a piece; "
        "medians, quartiles in brackets; † is over its bar."
    )


def performance_page(text: str) -> str:
    """docs/performance.md with its generated parts made anew."""
    results, gpu = read_evidence("ratios_cpu"), read_evidence("gpu_latency")
    text = replace(text, "ratios", ratios_table(results, gpu))
    text = replace(text, "stages", small_table(results, "stages"))
    text = replace(text, "windows", small_table(results, "windows"))
    return replace(text, "gpu", _gpu_line(gpu))


def _gpu_line(gpu: dict[str, Any] | None) -> str:
    if gpu is None:
        return "Nothing on this page was measured on a GPU: there is no `benchmarks/results/gpu_latency.json`."
    return "CUDA columns: `benchmarks/results/gpu_latency.json`, the fastest backend that was right."


def readme(text: str) -> str:
    """README.md with its prices, ablations and claims made anew."""
    text = replace(text, "prices", prices_table(read_evidence("ratios_cpu")))
    text = replace(text, "ablations", study_tables.readme_block(kept.studies(), kept.kept_analyses()))
    rows = kept.kept_ledger()["claims"]
    return replace(text, "claims", f"{claim_tables.telling(rows)}\n\n{claim_tables.counts(rows)}")


def images_page(text: str) -> str:
    """docs/images.md with its generated parts made anew."""
    text = replace(text, "costs", cost_table(read("decomposed_cost")))
    return replace(text, "digits", digits_table(read("digits")))


def checking_page(text: str) -> str:
    """docs/checking.md with its generated part about false alarms made anew."""
    return replace(text, "alarms", alarms_table(read("false_alarms"), read("false_alarms_zoo")))


def ablations_page(text: str) -> str:
    """docs/ablations.md with its generated parts made anew."""
    text = replace(text, "studies", study_tables.page_block(kept.studies(), kept.kept_analyses()))
    return replace(text, "together", study_tables.together_table(read("together")))


def claims_page(text: str) -> str:
    """docs/claims.md with its generated part made anew."""
    return replace(text, "ledger", claim_tables.ledger(kept.kept_ledger()["claims"]))


PAGES: dict[Path, Callable[[str], str]] = {
    ROOT / "README.md": readme,
    ROOT / "docs" / "performance.md": performance_page,
    ROOT / "docs" / "images.md": images_page,
    ROOT / "docs" / "checking.md": checking_page,
    ROOT / "docs" / "ablations.md": ablations_page,
    ROOT / "docs" / "claims.md": claims_page,
}


def pictures() -> dict[Path, str]:
    """The picture of each study that has results."""
    return {ROOT / "docs" / "images" / f"{name}.svg": forest(of) for name, of in kept.kept_analyses().items()}


def write_pages() -> list[Path]:
    """Bring pages and pictures up to date; those that were written."""
    made = {page: generate(page.read_text()) for page, generate in PAGES.items()} | pictures()
    changed = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for path in changed:
        write_atomically(path, made[path].encode())
    return changed


def main() -> int:
    changed = kept.refresh_analyses()
    try:
        changed += kept.refresh_ledger()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    for path in [*changed, *write_pages()]:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
