"""Seeds of an arm that advance together, against one after another: time of an update of a seed.

    python benchmarks/together.py                       # about three minutes on two quiet cores
    python benchmarks/together.py --only tiny --quick --out together.json
    python benchmarks/together.py --device cuda --out together_cuda.json

Ways to train S seeds of an arm, timed in interleaved rounds, one thread a process:

* ``one``: one process, one seed after another;
* ``two``: two processes at once, each with half of the seeds, one after another;
* ``together``: one process, all seeds in one update (:func:`biases.ablation.together.train_together`);
* ``two-together``: two processes at once, each with S seeds of its own in one update.

A time is that from the order to the last process's answer, divided by the updates and seeds in it. A size whose
``"rounds"`` is 1 has no spread. Without the device nothing is measured, and how many sizes were skipped is printed.

Exit code 0: all sizes are there; 1: one raised; 3: nothing was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from biases._files import write_atomically
from biases.ablation import Cell, ModelConfig, TrainConfig
from biases.ablation._loop import check_device
from biases.ablation.data import Text
from biases.ablation.together import Together
from biases.ablation.training import TextTraining, build_model
from biases.bench import Samples, facts, interleaved

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "together.json"
SHARED = ("cpu", "usable_cores", "torch", "python", "cuda_device")


@dataclass(frozen=True)
class Size:
    """What is trained: models of ``layers`` x ``heads`` x ``dim`` on ``batch`` windows of ``context`` characters.

    Attributes:
        seeds: S.
        rounds, warmup: timed rounds, and calls before them.
        ways: which of the ways are timed.
    """

    layers: int
    heads: int
    dim: int
    context: int
    batch: int
    seeds: int = 8
    rounds: int = 9
    warmup: int = 1
    ways: Sequence[str] = ("one", "two", "together", "two-together")
    attention: str = "standard"

    def cells(self) -> list[Cell]:
        """The cells of the seeds; they are never trained to their end."""
        model = ModelConfig(self.attention, "learned", self.layers, self.heads, self.dim, self.context, dropout=0.0)
        train = TrainConfig(batch=self.batch)
        return [Cell(self.attention, seed, model, train, "letters") for seed in range(self.seeds)]


TINY = Size(layers=2, heads=4, dim=64, context=64, batch=16)
SMALL = Size(layers=4, heads=4, dim=128, context=128, batch=16, rounds=5)
SIZES = {
    "minute/standard": Size(layers=2, heads=2, dim=32, context=32, batch=4, rounds=15),
    "minute/ega": Size(layers=2, heads=2, dim=32, context=32, batch=4, rounds=15, attention="ega"),
    "tiny/standard": TINY,
    "tiny/ega": replace(TINY, attention="ega"),
    "small/standard": SMALL,
    "small/ega": replace(SMALL, attention="ega", rounds=3),
    # A call takes a quarter of a minute, and activations of more seeds at once tens of gigabytes.
    "paper/standard": Size(6, 8, 256, 256, 64, seeds=2, rounds=1, warmup=0, ways=("one", "two", "together")),
}


def letters(context: int) -> Text:
    """A text of 65 different characters."""
    alphabet = "".join(chr(code) for code in range(33, 98))
    draw = torch.randint(0, 65, (40 * context,), generator=torch.Generator().manual_seed(0))
    return Text.from_string("letters", alphabet + "".join(alphabet[index] for index in draw.tolist()))


class Worker:
    """What a process does on orders: a :class:`Size` prepares, then ``"alone"`` updates its half of the seeds one after
    another, ``"every"`` all of them, ``"together"`` all at once."""

    def __init__(self, half: int, device: str) -> None:
        self.half, self.device = half, device

    def serve(self, pipe: Connection) -> None:
        """Answer each order with ``None``, or with what was raised, until ``"end"``."""
        torch.set_num_threads(1)
        while (order := pipe.recv()) != "end":
            try:
                self.obey(order)
                pipe.send(None)
            except Exception:
                pipe.send(traceback.format_exc())

    def obey(self, order: Size | str) -> None:
        """Carry out one order, to its end on the device."""
        if isinstance(order, Size):
            self.prepare(order)
        elif order == "together":
            self.stacked.update(1)
        else:
            for training in self.trainings[self.half :: 2] if order == "alone" else self.trainings:
                training.update(1)
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()

    def prepare(self, size: Size) -> None:
        """Build the models of a size."""
        cells, text = size.cells(), letters(size.context)
        self.trainings = [TextTraining(cell, text, self.device, build_model, None) for cell in cells]
        self.stacked = Together(cells, text, self.device, build_model, None)
        for model in [self.stacked.stack.model, *(training.model for training in self.trainings)]:
            model.train()


@contextmanager
def workers(device: str) -> Iterator[list[Connection]]:
    """Two processes, as the ends of their pipes."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(2)]
    started = [
        context.Process(target=Worker(half, device).serve, args=(theirs,), daemon=True)
        for half, (_, theirs) in enumerate(pairs)
    ]
    for process, (_, theirs) in zip(started, pairs, strict=True):
        process.start()
        theirs.close()
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for process in started:
            process.terminate()
            process.join()


def measure(size: Size, pipes: Sequence[Connection]) -> dict[str, Any]:
    """One size: seconds of an update of a seed, by way."""

    def order(what: Size | str, processes: int) -> None:
        for pipe in pipes[:processes]:
            pipe.send(what)
        for error in [pipe.recv() for pipe in pipes[:processes]]:
            if error is not None:
                raise RuntimeError(error)

    order(size, 2)
    runs = {
        "one": (lambda: order("every", 1), size.seeds),
        "two": (lambda: order("alone", 2), size.seeds),
        "together": (lambda: order("together", 1), size.seeds),
        "two-together": (lambda: order("together", 2), 2 * size.seeds),
    }
    samples = interleaved({way: runs[way][0] for way in size.ways}, rounds=size.rounds, warmup=size.warmup)
    errors = {way: each.error for way, each in samples.items() if each.error is not None}
    if errors:
        return {"status": "error", "size": asdict(size), "errors": errors}
    each = {way: Samples(tuple(s / runs[way][1] for s in timed.seconds)) for way, timed in samples.items()}
    # Above 1, `together` is the faster.
    gains = {f"{way}/together": each[way].ratio_to(each["together"]).as_dict() for way in ("one", "two")}
    if "two-together" in each:
        gains["two/two-together"] = each["two"].ratio_to(each["two-together"]).as_dict()
    seconds = {way: timed.as_dict() for way, timed in each.items()}
    return {"status": "ok", "size": asdict(size), "seconds_per_update_and_seed": seconds, "gains": gains}


def made_by(device: str, quick: bool) -> dict[str, Any]:
    """What sizes in one file have in common: source and kind of machine."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "biases").rglob("*.py"), Path(__file__).resolve()]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    machine = facts()
    shared = {name: machine.get(name) for name in SHARED}
    return {**shared, "threads": 1, "device": device, "source": digest.hexdigest()[:12], "quick": quick}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="sizes with this in their names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out: no evidence of anything")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    wanted = {name: size for name, size in SIZES.items() if options.only in name}
    if options.quick:
        small = {"layers": 1, "heads": 1, "dim": 8, "context": 8, "batch": 2, "seeds": 2, "rounds": 2}
        wanted = {name: replace(size, **small) for name, size in wanted.items()}
    try:
        device = check_device(options.device)
    except ValueError as error:
        print(f"{len(wanted)} sizes skipped: {error}", file=sys.stderr)
        return 3
    head = made_by(device, options.quick)
    kept: dict[str, Any] = {}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        kept = before["sizes"] if before["made_by"] == head else {}
    with workers(device) as pipes:
        for name, size in wanted.items():
            begin = time.perf_counter()
            kept[name] = measure(size, pipes)
            content = {"schema": 1, "made_by": head, "machine": facts(), "asked": list(SIZES), "sizes": kept}
            write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
            gains = {way: round(gain["value"], 2) for way, gain in kept[name].get("gains", {}).items()}
            print(f"{name}: {gains or kept[name]['errors']} ({time.perf_counter() - begin:.0f} s)", flush=True)
    statuses = {kept[name]["status"] for name in wanted}
    if not statuses:
        return 3
    return 0 if statuses == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
