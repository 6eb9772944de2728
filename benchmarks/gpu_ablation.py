"""The piece ``ablation`` of ``python -m benchmarks.gpu``: cells of the committed studies, the best first.

A study is run into ``ablations/NAME-SIZE`` of the results, as ``biases ablate`` runs it, which goes on with it as well
as ``biases stats`` reads it. The piece's own file says which cells there are.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_plan import ROOT, Cells, Outcome, Plan, guarded
from benchmarks.together import letters
from biases.ablation import Result, Study, Text, TextUnavailable, load_study, load_text, run_grid
from biases.ablation._cells import BaseCell
from biases.ablation._loop import own_random_state
from biases.ablation._provenance import device_name
from biases.ablation._run import existing_result, lock_path
from biases.ablation.results import DamagedResult, read_result, result_path, write_result
from biases.ablation.study import check_models
from biases.ablation.study_folder import begin
from biases.ablation.together import Together
from biases.ablation.training import TextTraining, build_model
from biases.bench import interleaved

SPECS = ROOT / "benchmarks" / "ablations"
STUDIES = ("gate-sight", "superadditivity", "mope-controls")
CACHE = "set BIASES_CACHE to a folder with tinyshakespeare.txt"
SEEDS_TOGETHER = 4
# After one sample to warm up.
UPDATES_A_SAMPLE, SAMPLES = 5, 4

TRIAL: Mapping[str, str] = {
    **{"size": '"tiny"', "data": '"pydoc"', "seeds": "1", "layers": "1", "heads": "2", "dim": "16", "context": "16"},
    **{"steps": "2", "batch": "2", "warmup": "1", "evaluate_every": "2", "truncated_positions": "4"},
}
"""Values of a study's file in a trial."""


def ablation(plan: Plan) -> Cells:
    """Study by study, seed by seed, so that what there is after any time is whole pairs; what failed before comes last.

    A study is begun when all before it is done: once a cell would not end in time, none is begun.
    """
    yield "together", partial(guarded, partial(together, plan))
    clock = Clock(plan)
    again = []
    for name in STUDIES:
        prepared: list[StudyRun] = []
        refused = guarded(partial(_prepare, name, clock, prepared))
        if not prepared:
            yield name, {**refused, "study": name}
            continue
        (run,) = prepared
        for cell in run.study.grid.cells():
            entry = guarded(partial(run.known, cell))
            label = f"{run.study.folder}/{cell.arm}/seed{cell.seed}"
            if entry["status"] == "failed" and run.data is not None:
                again.append((label, run, cell))
            yield label, partial(run.train, cell) if entry["status"] == "left" else entry
    for label, run, cell in again:
        yield label, partial(run.train, cell)


class Clock:
    """Whether there is time for one more training.

    Attributes:
        seconds: study -> seconds of its cells that finished on this model of device.
        late: whether a cell had no time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.device = plan, device_name(plan.device)
        self.seconds: dict[str, list[float]] = {}
        self.late = False

    def add(self, study: str, result: Result) -> None:
        if result["status"] == "ok" and result.get("device_name") == self.device:
            self.seconds.setdefault(study, []).append(result["seconds"])

    def allows(self, study: str) -> bool:
        """Whether the median of the study's cells, of all where it has none yet, is left; the first has no median."""
        known = self.seconds.get(study) or [each for seconds in self.seconds.values() for each in seconds]
        self.late |= bool(known) and statistics.median(known) > self.plan.left
        return not self.late


class StudyRun:
    """One study and its folder.

    Args:
        data: what it is trained on; ``None`` where that cannot be had.
        why: it cannot.
    """

    def __init__(self, study: Study, clock: Clock, data: Text | None, why: str) -> None:
        self.study, self.clock, self.data, self.why = study, clock, data, why
        plan, self.device = clock.plan, clock.plan.device
        self.folder = plan.out / "ablations" / study.folder
        self.committed = plan.committed / "ablations" / study.folder

    def known(self, cell: BaseCell) -> Outcome:
        """What the folder has of a cell, a committed result copied into it first if that is no failure; ``"left"``
        where there is nothing."""
        result = self._stored(cell, self.folder)
        if result is None:
            result = self._stored(cell, self.committed)
            if result is not None and result["status"] != "failed":
                write_result(self.folder, result)
        if result is not None:
            self.clock.add(self.study.name, result)
            return self._entry(result)
        if self.data is None:
            return {**self._named(cell), "status": "skipped", "message": f"{self.why}; {CACHE}"}
        return {**self._named(cell), "status": "left"}

    def train(self, cell: BaseCell) -> Outcome | None:
        """Train a cell and store its result, in place of one that failed."""
        return guarded(partial(self._train, cell)) if self.clock.allows(self.study.name) else None

    def _train(self, cell: BaseCell) -> Outcome:
        if torch.device(self.device).type == "cuda":
            # Once a kernel has failed the process has lost the device, which is no outcome of a training.
            torch.cuda.synchronize()
        model = self.study.grid.arms[cell.arm]
        label = {"name": self.study.name, "size": self.study.size}
        grid = replace(self.study.grid, arms={cell.arm: model}, seeds=(cell.seed,))
        found = run_grid(grid, self.folder, device=self.device, retry_failed=True, study=label)
        if not found:
            lock = lock_path(cell, self.folder)
            message = f"another process has it in hand; if that was on a machine that died, remove {lock}"
            return {**self._named(cell), "status": "skipped", "message": message}
        self.clock.add(self.study.name, found[0])
        return self._entry(found[0])

    def _stored(self, cell: BaseCell, folder: Path) -> Result | None:
        if self.data is not None:
            return existing_result(cell, self.data, folder)
        path = result_path(folder, cell.id)
        try:
            return read_result(path) if path.exists() else None
        except DamagedResult:
            return None

    def _named(self, cell: BaseCell) -> Outcome:
        return {"study": self.study.folder, "id": cell.id, "arm": cell.arm, "seed": cell.seed}

    def _entry(self, result: Result) -> Outcome:
        named = {name: result[name] for name in ("id", "arm", "seed", "status", "seconds")}
        message = {} if result["status"] == "ok" else {"message": result["error"].strip().splitlines()[-1]}
        return {"study": self.study.folder, **named, **message}


def _prepare(name: str, clock: Clock, prepared: list[StudyRun]) -> Outcome:
    """Load a study and its data, and begin its folder where there is, or will be, a result to put into it."""
    study = tiny_study(name) if clock.plan.tiny else load_study(SPECS / f"{name}-paper.toml")
    data, why = None, ""
    try:
        data = load_text(study.grid.data)
    except TextUnavailable as missing:
        why = str(missing)
    run = StudyRun(study, clock, data, why)
    if data is not None or run.committed.exists():
        check_models(study)
        note = begin(study, run.folder, data)
        if note:
            print(f"gpu: {note}", file=sys.stderr)
    prepared.append(run)
    return {"status": "ok"}


def tiny_study(name: str) -> Study:
    """The study's arms in minute models of two updates, which are no evidence of anything."""
    source = (SPECS / f"{name}-paper.toml").read_text()
    for key, value in TRIAL.items():
        source = _replaced(rf"^{key} = .*$", f"{key} = {value}", source)
    source = _replaced(r"^notes = \[$", 'notes = [\n    "A trial of the programme: no evidence of anything.",', source)
    source = _replaced(r"^\[train\]$", "[train]\nevaluation_windows = 2", source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}-tiny.toml"
        path.write_text(source)
        return load_study(path)


def _replaced(pattern: str, by: str, source: str) -> str:
    source, count = re.subn(pattern, lambda match: by, source, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"study: expected one line {pattern}, got {count}")
    return source


def together(plan: Plan) -> Outcome:
    """Seconds of an update of a seed, one seed alone and several in one update; it decides nothing.

    Both are timed in interleaved rounds in the size that the studies have.
    """
    study = tiny_study(STUDIES[0]) if plan.tiny else load_study(SPECS / f"{STUDIES[0]}-paper.toml")
    grid = replace(study.grid, arms={"standard": study.grid.arms["standard"]}, seeds=tuple(range(SEEDS_TOGETHER)))
    cells = grid.cells()
    text = letters(cells[0].model.context)
    with own_random_state(plan.device, 0):
        alone = TextTraining(cells[0], text, plan.device, build_model, None)
        stacked = Together(cells, text, plan.device, build_model, None)
        alone.model.train()
        stacked.stack.model.train()
        cases = {"alone": partial(_updates, alone.update), "together": partial(_updates, stacked.update)}
        samples = interleaved(cases, rounds=SAMPLES, warmup=1, device=plan.device)
    errors = {name: each.error for name, each in samples.items() if each.error is not None}
    if errors:
        return {"status": "error", "message": str(errors)}
    seconds = {
        "alone": samples["alone"].median / UPDATES_A_SAMPLE,
        "together": samples["together"].median / UPDATES_A_SAMPLE / SEEDS_TOGETHER,
    }
    ratio = samples["alone"].ratio_to(samples["together"])
    # A sample together updates each of the seeds.
    gain = {name: SEEDS_TOGETHER * getattr(ratio, name) for name in ("value", "low", "high")}
    return {
        "status": "ok",
        "message": f"{seconds['alone']:.4f} s alone, {seconds['together']:.4f} s together, an update of a seed",
        "model": cells[0].config["model"],
        "train": cells[0].config["train"],
        "seeds": SEEDS_TOGETHER,
        "updates": UPDATES_A_SAMPLE * SAMPLES,
        "seconds_per_update_and_seed": seconds,
        "gain": {**gain, "rounds": ratio.rounds},
    }


def _updates(update: Callable[[int], object]) -> None:
    for step in range(1, UPDATES_A_SAMPLE + 1):
        update(step)
