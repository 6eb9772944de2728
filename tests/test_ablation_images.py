"""Cells and grids of images."""

import json
from dataclasses import replace

import pytest
import torch
from ablation_models import files
from torch import nn

from biases.ablation import (
    Cell,
    ImageCell,
    ImageGrid,
    ImageModelConfig,
    Images,
    ImageTrainConfig,
    ModelConfig,
    kinds,
    load_results,
    paired_values,
    run_grid,
)


class Brightness(nn.Module):
    """Classifies by the mean of each channel."""

    def __init__(self, images):
        super().__init__()
        self.head = nn.Linear(images.channels, len(images.classes))

    def forward(self, images):
        return self.head(images.mean((2, 3)))

    def initial_std(self, name):
        return 0.1 if name == "head.weight" else None


def build_brightness(cell, images):
    if cell.arm == "broken":
        raise RuntimeError("this arm cannot be built")
    return Brightness(images)


class TestImages:
    @pytest.fixture
    def grid(self, monkeypatch):
        draw = torch.Generator().manual_seed(0)

        def split(count):
            labels = torch.arange(count) % 2
            pixels = torch.randint(0, 100, (count, 1, 4, 4), generator=draw) + 100 * labels[:, None, None, None]
            return pixels.to(torch.uint8), labels

        images = Images("squares", "5" * 64, ("dark", "bright"), *split(40), *split(20))
        monkeypatch.setattr(kinds, "IMAGES", replace(kinds.IMAGES, load=lambda name: images))
        monkeypatch.setattr(kinds, "KINDS", {"text": kinds.TEXT, "images": kinds.IMAGES})
        train = ImageTrainConfig(steps=30, batch=8, warmup=2, learning_rate=0.1, evaluate_every=15)
        model = ImageModelConfig("brightness")
        return ImageGrid({"one": model, "two": replace(model, options={"size": "other"})}, (0, 1), train, "squares")

    @pytest.mark.parametrize("workers", [1, 2])
    def test_images_are_run_and_stored_as_texts_are(self, grid, tmp_path, workers):
        events = []
        results = run_grid(grid, tmp_path, build=build_brightness, workers=workers, progress=events.append)
        assert [(r["arm"], r["seed"], r["status"]) for r in results] == [
            ("one", 0, "ok"),
            ("two", 0, "ok"),
            ("one", 1, "ok"),
            ("two", 1, "ok"),
        ]
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())
        assert results[0]["metrics"]["test_accuracy"] > 0.9
        # Both arms are one model here: a seed's order and starts are the same in all arms.
        assert results[0]["metrics"] == results[1]["metrics"] != results[2]["metrics"]
        assert {e["arm"] for e in events if e["event"] == "step"} == {"one", "two"}
        again = []
        assert run_grid(grid, tmp_path, build=build_brightness, progress=again.append) == results
        assert [e["event"] for e in again] == ["skipped"] * 4
        seeds, a, b = paired_values(load_results(tmp_path), "one", "two", "test_loss")
        assert (seeds, a) == ([0, 1], b)

    def test_identity(self, grid):
        cells = grid.cells()
        assert len({c.id for c in cells}) == 4
        assert Cell.from_config(json.loads(json.dumps(cells[1].config))) == cells[1]
        assert replace(cells[0], data="digits").id != cells[0].id

    def test_failures_are_results(self, grid, tmp_path):
        mixed = replace(grid, arms={"broken": ImageModelConfig("x"), "one": grid.arms["one"]}, seeds=(0,))
        results = run_grid(mixed, tmp_path, build=build_brightness)
        assert [r["status"] for r in results] == ["failed", "ok"]

    def test_what_every_cell_would_fail_on_is_refused_first(self, grid, tmp_path):
        for train, message in ((replace(grid.train, flip=True), "flip"), (replace(grid.train, shift=4), "shift")):
            with pytest.raises(ValueError, match=f"ImageTrainConfig {message} with images"):
                run_grid(replace(grid, train=train), tmp_path / "out", build=build_brightness)
        with pytest.raises(ValueError, match=r"arm 'one': .*brightness"):
            run_grid(grid, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_less_precise_updates_are_another_cell_with_other_numbers(self, grid, tmp_path):
        rough = replace(grid, train=replace(grid.train, precision="bfloat16"))
        precise, other = (run_grid(each, tmp_path, build=build_brightness) for each in (grid, rough))
        assert len(files(tmp_path)) == 8
        assert other[0]["metrics"]["test_loss"] == pytest.approx(precise[0]["metrics"]["test_loss"], rel=0.1)
        assert other[0]["metrics"]["test_loss"] != precise[0]["metrics"]["test_loss"]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ImageModelConfig(""), "ImageModelConfig name: expected a name"),
            (lambda: ImageModelConfig("x", {"f": print}), "that JSON can hold"),
            (lambda: ImageModelConfig("x", ["a"]), "a mapping from names"),
            (lambda: ImageModelConfig("x", {"channels": 3}), "no 'channels', which the images decide"),
            (lambda: ImageTrainConfig(precision="float16"), "ImageTrainConfig precision: expected one of"),
            (lambda: ImageCell("a", 0, ModelConfig(), ImageTrainConfig()), "expected a ImageModelConfig"),
            (lambda: ImageGrid({}, (0,), ImageTrainConfig()), "ImageGrid arms: expected at least one arm"),
        ],
    )
    def test_bad_values_are_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
