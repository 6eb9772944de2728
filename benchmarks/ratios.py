"""The price of every bias on this CPU: time and memory over stock attention without one, interleaved.

    python benchmarks/ratios.py                  # all of it: about ten minutes on two quiet cores
    python benchmarks/ratios.py --quick --out ratios.json
    python benchmarks/ratios.py --only alibi --seconds 60

Every piece, a subject at a length in a direction, is checked against the float64 specification before it is timed, and
is written to benchmarks/results/ratios_cpu.json when it is done. Pieces that the same source made on the same kind of
machine with as many threads are kept, so that what was stopped goes on; others are dropped, as one table must not mix
them. ``--again`` measures all anew. ``python benchmarks/pages.py`` makes
the tables of docs/performance.md from the file.

Exit code 0: all pieces are there; 1: one was wrong or raised; 3: nothing was measured; 130: interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from biases import ALiBi, ExponentialDecay, KeyGate, ManhattanDecay
from biases._calls import Call
from biases._files import write_atomically
from biases.backends.native import available
from biases.bench import facts, interleaved, peak_bytes
from biases.bench.operators import tensors_bytes
from biases.bench.workloads import Setting, from_calls, record
from biases.decays import retnet_log_rates, rmt_log_rates

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "ratios_cpu.json"
DIRECTIONS = ("forward", "forward+backward")
LENGTHS = (1024, 4096)
# The plain formulation holds N x N weights several times over.
LARGEST_PLAIN = 1 << 24
SAMPLE_OF_MACHINE = ("cpu", "usable_cores", "threads", "torch", "python")
Options = Callable[[Setting], dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """One row of a table.

    Attributes:
        name: of the row.
        bar: largest ratio to the floor that the project asks for.
        table: ``"biases"``, ``"stages"`` (of RMT) or ``"windows"``.
        options: those of ``attend``; ``None`` where ``zoo`` names a layer whose calls are taken.
        zoo: name of the layer.
        lengths: tokens, or pixels of a square map.
        sizes: of the setting, over batch 1, 8 heads of 64.
        threads: of an operator; ``None`` for torch's own choice.
    """

    name: str
    bar: float
    table: str = "biases"
    options: Options | None = None
    zoo: str = ""
    lengths: Sequence[int] = LENGTHS
    sizes: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None

    def calls(self, setting: Setting) -> list[Call]:
        """The calls of ``attend``."""
        if self.options is None:
            return record(self.zoo, setting)
        shape = (setting.batch, setting.heads, setting.length, setting.head_dim)
        q, k, v = (setting.draw(*shape, offset=n) for n in range(3))
        return [((q, k, v), self.options(setting))]


def _gate(setting: Setting, *, renormalise: bool) -> dict[str, Any]:
    logits = setting.draw(setting.batch, setting.heads, setting.length, offset=3)
    return {"key_gate": KeyGate(F.logsigmoid(logits).requires_grad_(), renormalise)}


def _learned_slopes(setting: Setting) -> dict[str, Any]:
    return {"bias": ALiBi(ALiBi(setting.heads).slopes.float().requires_grad_(), symmetric=True)}


def _learned_map(setting: Setting) -> dict[str, Any]:
    rates = rmt_log_rates(setting.heads).float().requires_grad_()
    return {"decay": ManhattanDecay(setting.side, setting.side, rates)}


def _sigmoid(setting: Setting) -> dict[str, Any]:
    decay = ExponentialDecay(rmt_log_rates(setting.heads), symmetric=True, placement="weights")
    return {"weights": "sigmoid", "bias": ALiBi(setting.heads, symmetric=True), "decay": decay}


def _decay(setting: Setting) -> dict[str, Any]:
    return {"decay": ExponentialDecay(retnet_log_rates(setting.heads)), "causal": True}


def _stage(side: int, heads: int, bar: float, form: str) -> Subject:
    zoo = "manhattan" if form == "full" else "manhattan-decomposed"
    sizes, width = {"batch": 4, "heads": heads, "head_dim": 16 if side == 56 else 32}, 16 if side == 56 else 32
    name = f"{side} x {side}, {heads} heads of {width}, {form}"
    return Subject(name, bar, "stages", None, zoo, (side**2,), sizes, threads=1)


def _windows(layer: str, attention: str, bar: float) -> Subject:
    options = "shifted=True" + (f",attention={attention}" if attention else "")
    name = f"{layer}, {attention or 'full'}"
    return Subject(name, bar, "windows", None, f"{layer}[{options}]", (56**2,), {"heads": 4, "head_dim": 32}, threads=1)


SUBJECTS = (
    Subject("gate, not renormalised", 1.05, options=partial(_gate, renormalise=False)),
    Subject("gate, renormalised", 1.15, options=partial(_gate, renormalise=True)),
    Subject("EGA, causal (`ega`)", 1.15, zoo="ega"),
    Subject("ALiBi, causal (`alibi`)", 1.08, zoo="alibi"),
    Subject("decay, causal", 1.08, options=_decay),
    Subject("ALiBi, symmetric (`alibi-symmetric`)", 1.12, zoo="alibi-symmetric"),
    Subject("ALiBi, symmetric, learned slopes", 1.12, options=_learned_slopes, lengths=(1024,)),
    Subject("Manhattan (`manhattan`)", 1.25, zoo="manhattan"),
    Subject("Manhattan, learned rates", 1.25, options=_learned_map, lengths=(1024,)),
    Subject("sigmoid, ALiBi, decay", 1.45, options=_sigmoid),
    Subject("retention (`retention`)", 0.40, zoo="retention"),
    _stage(56, 4, 1.10, "decomposed"),
    _stage(28, 4, 1.10, "decomposed"),
    _stage(14, 8, 1.35, "decomposed"),
    _stage(14, 8, 1.25, "full"),
    _stage(7, 16, 1.25, "full"),
    _windows("gated-swin-retention", "decomposed", 1.25),
    _windows("gated-swin-retention", "full", 1.25),
    _windows("gated-swin-swat", "decomposed", 1.50),
    _windows("gated-swin-swat", "full", 1.50),
    _windows("swin", "", 1.25),
)
SMALL = {1024: 64, 4096: 256, 56**2: 14**2, 28**2: 14**2}


def pieces(quick: bool, only: str) -> dict[str, tuple[Subject, Setting]]:
    """Name -> what is measured."""
    found = {}
    for subject in SUBJECTS:
        for length in subject.lengths:
            for direction in DIRECTIONS:
                sizes = {**subject.sizes, "length": SMALL.get(length, length) if quick else length}
                name = f"{subject.name}/{length}/{direction}"
                if only in name:
                    found[name] = (subject, Setting(**sizes, direction=direction))
    return found


def measure(subject: Subject, setting: Setting, rounds: int, seconds: float) -> dict[str, Any]:
    """One piece, its status ``"ok"``, ``"wrong"`` or ``"error"``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(subject.threads or threads)
    try:
        return _measured(subject, setting, rounds, seconds)
    except AssertionError as wrong:
        return {"status": "wrong", "message": str(wrong)}
    except Exception as error:
        return {"status": "error", "message": f"{type(error).__name__}: {error}"}
    finally:
        torch.set_num_threads(threads)


def _measured(subject: Subject, setting: Setting, rounds: int, seconds: float) -> dict[str, Any]:
    calls = subject.calls(setting)
    workload = from_calls(subject.name, calls, setting)
    assert workload.floor is not None
    workload.check()
    runs = {"ours": workload.run, "floor": workload.floor}
    if sum(q.shape[:3].numel() * k.shape[2] for (q, k, _), _ in calls) <= LARGEST_PLAIN:
        runs["plain"] = from_calls(subject.name, calls, setting, backend="dense").run
    beyond = {name: _beyond_results(runs[name]) for name in ("ours", "floor")}
    samples = interleaved(runs, rounds=rounds, warmup=1, seconds=seconds)
    return {
        "status": "ok",
        "setting": setting.as_dict(),
        "threads": torch.get_num_threads(),
        "checked": workload.checked,
        "formulations": list(dict.fromkeys(workload.formulations())),
        "ratio": samples["ours"].ratio_to(samples["floor"]).as_dict(),
        "plain_ratio": samples["plain"].ratio_to(samples["floor"]).as_dict() if "plain" in samples else None,
        "seconds": {name: list(each.seconds) for name, each in samples.items()},
        "extra_bytes": beyond["ours"],
        "floor_extra_bytes": beyond["floor"],
    }


def _beyond_results(run: Callable[[], Any]) -> int:
    held: list[int] = []

    def once() -> object:
        results = run()
        held.append(tensors_bytes(results))
        return results

    once()
    return max(0, peak_bytes(once) - held[0])


def made_by(quick: bool) -> dict[str, Any]:
    """What a piece must share with another to stand in one table: source, kind of machine, sizes."""
    digest = hashlib.sha256()
    sources = [path for kind in ("*.py", "*.cpp", "*.hpp") for path in (ROOT / "biases").rglob(kind)]
    for path in sorted([*sources, Path(__file__).resolve()]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    machine = facts()
    shared = {name: machine[name] for name in SAMPLE_OF_MACHINE}
    native, reason = available()
    return {**shared, "source": digest.hexdigest()[:12], "quick": quick, "native": native or reason, "seed": 0}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="pieces with this in their names")
    parser.add_argument("--rounds", type=int, default=11, help="of each piece, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the rounds of a piece (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out: no evidence of anything")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    wanted = pieces(options.quick, options.only)
    head = made_by(options.quick)
    kept: dict[str, Any] = {}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        changed = [name for name in head if before["made_by"].get(name) != head[name]]
        if changed:
            print(f"starting anew: {options.out} was made with another {', '.join(changed)}", file=sys.stderr)
        else:
            kept = before["pieces"]
    machine, asked = facts(), list(pieces(options.quick, ""))
    try:
        for done, (name, (subject, setting)) in enumerate(wanted.items()):
            if not options.again and kept.get(name, {}).get("status") == "ok":
                continue
            found = measure(subject, setting, options.rounds, options.seconds)
            kept[name] = {**found, "subject": subject.name, "table": subject.table, "bar": subject.bar}
            content = {"schema": 1, "made_by": head, "machine": machine, "asked": asked, "pieces": kept}
            write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
            shown = found.get("message") or f"{found['ratio']['value']:.2f} (bar {subject.bar:.2f})"
            print(f"{done + 1}/{len(wanted)} {name}: {shown}", flush=True)
    except KeyboardInterrupt:
        return 130
    statuses = [kept[name]["status"] for name in wanted]
    if not statuses:
        return 3
    return 0 if set(statuses) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
