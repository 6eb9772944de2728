"""Running a grid of texts: what is written, resumed, refused; seeds that advance together."""

import contextlib
import errno
import json
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path

import pytest
from ablation_models import FAST, SMALL, build, files, small_grid

from biases import _files
from biases.ablation import (
    Cell,
    ImageGrid,
    ImageModelConfig,
    ImageTrainConfig,
    ModelConfig,
    _locks,
    load_results,
    load_text,
    run_grid,
    train_cell,
)


@pytest.fixture
def grid(tmp_path):
    return small_grid(tmp_path)


class TestGrid:
    def test_results_hold_what_a_rerun_needs(self, grid, tmp_path):
        results = run_grid(grid, tmp_path / "run", build=build)
        assert [(r["arm"], r["seed"]) for r in results] == [(c.arm, c.seed) for c in grid.cells()]
        assert files(tmp_path / "run") == sorted(f"{c.id}.json" for c in grid.cells())
        result = results[0]
        assert result["schema"] == 1
        assert result["status"] == "ok"
        assert set(result["versions"]) == {"python", "torch", "numpy", "biases", "code"}
        assert {"git", "seconds", "started", "device", "curve", "error"} <= result.keys()
        assert result["data"]["sha256"] == load_text(grid.data).sha256
        again = train_cell(Cell.from_config(result["config"]), load_text(grid.data), build=build)
        assert again["metrics"] == result["metrics"]
        assert load_results(tmp_path / "run") == sorted(results, key=lambda r: (r["arm"], r["seed"]))

    def test_finished_cells_are_not_run_again(self, grid, tmp_path):
        first = run_grid(grid, tmp_path, build=build)
        events = []
        assert run_grid(grid, tmp_path, build=build, progress=events.append) == first
        assert [event["event"] for event in events] == ["skipped"] * 4

    def test_failures_are_results_and_retried_only_on_request(self, grid, tmp_path):
        mixed = replace(grid, arms={"broken": SMALL, "nan": SMALL, "causal": SMALL}, seeds=(0,))
        results = run_grid(mixed, tmp_path, build=build)
        assert [r["status"] for r in results] == ["failed", "diverged", "ok"]
        assert "this arm cannot be built" in results[0]["error"]
        for retry, expected in ((False, []), (True, ["broken", "nan"])):
            events = []
            run_grid(mixed, tmp_path, build=build, retry_failed=retry, progress=events.append)
            assert [e["arm"] for e in events if e["event"] == "started"] == expected
        assert len(load_results(tmp_path)) == 3

    def test_a_refused_configuration_stops_before_anything_is_written(self, grid, tmp_path):
        def refuse(cell, vocab):
            raise ValueError("unknown attention")

        with pytest.raises(ValueError, match="unknown attention"):
            run_grid(grid, tmp_path / "run", build=refuse)
        with pytest.raises(ValueError, match="workers: expected"):
            run_grid(grid, tmp_path / "run", workers=0, build=build)
        assert not (tmp_path / "run").exists()

    def test_stop_keeps_what_is_finished(self, grid, tmp_path):
        finished = []
        results = run_grid(
            grid,
            tmp_path,
            build=build,
            progress=lambda e: finished.append(e) if e["event"] == "finished" else None,
            stop=lambda: len(finished) >= 2,
        )
        assert [(r["arm"], r["seed"]) for r in results] == [("causal", 0), ("leaky", 0)]
        assert len(run_grid(grid, tmp_path, build=build)) == 4

    def test_interrupt_keeps_finished_cells_and_no_lock(self, grid, tmp_path):
        def interrupt(event):
            if event["event"] == "step" and event["arm"] == "leaky":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, tmp_path, build=build, progress=interrupt)
        assert files(tmp_path) == [f"{grid.cells()[0].id}.json"]

    def test_full_disk_leaves_the_existing_result(self, grid, tmp_path, monkeypatch):
        failing = replace(grid, arms={"broken": SMALL}, seeds=(0,))
        run_grid(failing, tmp_path, build=build)
        before = {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.json")}

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(_files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_grid(failing, tmp_path, build=build, retry_failed=True)
        assert {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.json")} == before
        assert files(tmp_path) == [path.name for path in before]

    def test_damaged_result_is_run_again_and_litter_removed(self, grid, tmp_path):
        run_grid(grid, tmp_path, build=build)
        path = tmp_path / "cells" / f"{grid.cells()[0].id}.json"
        path.write_text(path.read_text()[:50])
        (path.parent / f".{path.name}.1-abc.tmp").write_text("half")
        assert [r["status"] for r in run_grid(grid, tmp_path, build=build)] == ["ok"] * 4
        assert len(files(tmp_path)) == 4

    def test_results_of_another_text_are_not_mixed_in(self, grid, tmp_path):
        run_grid(grid, tmp_path, build=build)
        Path(grid.data).write_text("another text of the same name altogether " * 40)
        with pytest.raises(ValueError, match="use another output directory"):
            run_grid(grid, tmp_path, build=build)
        assert len(files(tmp_path)) == 4

    def test_workers_give_the_same_numbers(self, grid, tmp_path):
        here = run_grid(grid, tmp_path / "here", build=build)
        events = []
        pooled = run_grid(grid, tmp_path / "pool", build=build, workers=2, progress=events.append)
        assert [r["metrics"] for r in pooled] == [r["metrics"] for r in here]
        assert [r["curve"] for r in pooled] == [r["curve"] for r in here]
        assert {r["threads"] for r in pooled} == {1}
        assert sum(e["event"] == "finished" for e in events) == 4
        assert files(tmp_path / "pool") == files(tmp_path / "here")

    def test_interrupt_ends_the_workers_and_their_locks(self, grid, tmp_path):
        long = replace(grid, train=replace(FAST, steps=10**6))

        def interrupt(event):
            if event["event"] == "step":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_grid(long, tmp_path, build=build, workers=2, progress=interrupt)
        assert files(tmp_path) == []

    def test_a_shard_is_run_alone(self, grid, tmp_path):
        results = run_grid(grid.shard(2, 2), tmp_path, build=build)
        assert [(r["arm"], r["seed"]) for r in results] == [("causal", 1), ("leaky", 1)]
        assert len(run_grid(grid.shard(1, 2), tmp_path, build=build)) == 2
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())

    def test_results_say_how_and_for_what_they_were_run(self, grid, tmp_path):
        results = run_grid(grid, tmp_path, build=build, study={"name": "words", "size": "small"})
        assert {json.dumps(r["execution"]) for r in results} == {'{"workers": 1, "together": 1}'}
        assert {json.dumps(r["study"]) for r in results} == {'{"name": "words", "size": "small"}'}

    def test_a_refused_arm_is_named(self, grid, tmp_path):
        def refuse(cell, vocab):
            if cell.arm == "leaky":
                raise ValueError("attention: expected another")
            return build(cell, vocab)

        with pytest.raises(ValueError, match="arm 'leaky': attention: expected another"):
            run_grid(grid, tmp_path, build=refuse)

    def test_units_can_be_run_elsewhere(self, grid, tmp_path):
        opened = []

        class Inline:
            slots = 3

            def __init__(self, data, work):
                self.data, self.work, self.told, self.units = data, work, [], []
                opened.append(self)

            def submit(self, cells):
                self.units.append(cells)
                future = Future()
                future.set_result(self.work(cells, self.data, self.told.append))
                return future

            def events(self):
                while self.told:
                    yield self.told.pop(0)

        @contextlib.contextmanager
        def open_inline(data, work):
            yield Inline(data, work)

        # The device is of the machines that the executor has.
        run_grid(grid, tmp_path, build=build, device="cuda:7", executor=open_inline, stop=lambda: True)
        assert opened[0].work.keywords["device"] == "cuda:7"
        events = []
        results = run_grid(grid, tmp_path, build=build, executor=open_inline, progress=events.append, together=2)
        assert [len(unit) for unit in opened[1].units] == [2, 2]
        assert {r["status"] for r in results} == {"ok"}
        assert "step" in {event["event"] for event in events}
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())

    def test_what_dies_elsewhere_is_reported_and_its_locks_given_back(self, grid, tmp_path):
        class Dying:
            slots = 1

            def submit(self, cells):
                future = Future()
                future.set_exception(BrokenExecutor("the node is gone"))
                return future

            def events(self):
                return iter(())

        @contextlib.contextmanager
        def open_dying(data, work):
            yield Dying()

        with pytest.raises(RuntimeError, match=rf"in flight were {grid.cells()[0].id}.*the node is gone"):
            run_grid(grid, tmp_path, build=build, executor=open_dying)
        assert files(tmp_path) == []

    def test_workers_need_an_importable_build(self, grid, tmp_path):
        with pytest.raises(ValueError, match="expected an importable function"):
            run_grid(grid, tmp_path, build=lambda cell, vocab: build(cell, vocab), workers=2)


class TestTogether:
    @pytest.fixture
    def real(self, grid):
        model = ModelConfig(layers=1, heads=2, dim=8, context=12, dropout=0.0)
        return replace(grid, arms={"standard": model, "ega": replace(model, attention="ega")}, seeds=(0, 1, 2))

    def test_results_are_those_of_one_by_one(self, real, tmp_path):
        alone = run_grid(real, tmp_path / "alone")
        together = run_grid(real, tmp_path / "together", together=2)
        assert [r["id"] for r in together] == [r["id"] for r in alone]
        # The third seed is alone.
        assert [r["execution"]["together"] for r in together] == [2, 2, 2, 2, 1, 1]
        for a, b in zip(alone, together, strict=True):
            assert b["metrics"] == pytest.approx(a["metrics"], abs=1e-4)
            assert b["seconds"] > 0

    def test_what_is_left_of_a_unit_is_run(self, real, tmp_path):
        one = replace(real, arms={"ega": real.arms["ega"]}, seeds=(1,))
        run_grid(one, tmp_path)
        held = tmp_path / "cells" / f"{real.cells()[0].id}.lock"
        assert _locks.acquire(held)
        events = []
        run_grid(real, tmp_path, together=3, progress=events.append)
        by_kind = {
            kind: [(e["arm"], e["seed"]) for e in events if e["event"] == kind] for kind in ("started", "locked")
        }
        assert by_kind["started"] == [("standard", 1), ("standard", 2), ("ega", 0), ("ega", 2)]
        assert by_kind["locked"] == [("standard", 0)]
        _locks.release(held)
        run_grid(real, tmp_path, together=3)
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in real.cells())

    def test_what_cannot_advance_together_is_run_one_by_one(self, grid, tmp_path, monkeypatch):
        def refuse(*arguments, **options):
            raise ValueError("no stacking here")

        monkeypatch.setattr("biases.ablation.together.train_together", refuse)
        alone = run_grid(grid, tmp_path / "alone", build=build)
        together = run_grid(grid, tmp_path / "together", build=build, together=2)
        assert [r["metrics"] for r in together] == [r["metrics"] for r in alone]
        expected = {"workers": 1, "together": 1, "alone_because": "ValueError: no stacking here"}
        assert [r["execution"] for r in together] == [expected] * 4

    def test_a_broken_arm_is_a_failed_result_of_each_seed(self, grid, tmp_path):
        results = run_grid(replace(grid, arms={"broken": SMALL}), tmp_path, build=build, together=2)
        assert [r["status"] for r in results] == ["failed", "failed"]
        assert "this arm cannot be built" in results[1]["error"]

    def test_images_do_not(self, tmp_path):
        with pytest.raises(ValueError, match="together: expected 1 for images, got 2"):
            run_grid(ImageGrid({"a": ImageModelConfig("x")}, (0,), ImageTrainConfig()), tmp_path, together=2)
