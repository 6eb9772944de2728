"""Studies as files: what is read, which cells they name, what may be left open."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from ablation_models import PUBLISHED, PUBLISHED_ID
from study_files import IMAGES, TEXT, changed, write_study

from biases.ablation import (
    Cell,
    ImageCell,
    ImageModelConfig,
    ImageTrainConfig,
    ModelConfig,
    TrainConfig,
    load_study,
    load_text,
)
from biases.ablation._cells import plain
from biases.ablation.kinds import load_data
from biases.ablation.study import check_models, few_seeds_note

SPECS = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


class TestReading:
    def test_arms_are_those_named_and_the_product_less_what_is_left_out(self, write):
        study = load_study(write(TEXT))
        assert list(study.grid.arms) == ["plain", "other", "standard+learned", "standard+scaled", "ega+learned"]
        base = ModelConfig(layers=2, dim=16, heads=2, context=16, options={"attention": {"low": 1, "high": 2}})
        assert study.grid.arms["plain"] == base
        options = {"attention": {"low": 1, "high": 3}}
        assert study.grid.arms["other"] == replace(base, attention="ega", options=options)
        scaled = {"attention": {"low": 1, "high": 2}, "position": {"amplitude": 0.02}}
        assert study.grid.arms["standard+scaled"] == replace(base, position="sinusoidal", options=scaled)
        assert study.grid.arms["ega+learned"] == replace(base, attention="ega")
        assert [(each.arm, each.why) for each in study.left_out] == [("ega+scaled", "not asked")]

    def test_the_rest_is_as_declared(self, write):
        path = write(TEXT)
        study = load_study(path)
        assert (study.name, study.size, study.kind, study.folder) == ("tiny", "test", "text", "tiny-test")
        assert study.grid.seeds == (0, 1, 2)
        assert study.grid.data == "pydoc"
        assert study.grid.train == TrainConfig(steps=20, warmup=2)
        assert [contrast.name for contrast in study.family] == ["gate", "gate on prefixes"]
        assert study.family[1].metric == "truncated"
        assert study.family[1].margin == 0.02
        assert [contrast.name for contrast in study.exploratory] == ["rate"]
        assert study.statistics.minimum_seeds == 8
        assert study.execution.workers == 2
        assert study.execution.together == 4
        assert study.execution.gpus_per_cell == 0.5
        assert study.source == path.read_text()

    def test_images(self, write):
        grid = load_study(write(IMAGES)).grid
        assert grid.seeds == (4, 2)
        assert grid.train == ImageTrainConfig()
        flat = {"attention_options": {"initial": 30.0, "span": 0.0}}
        assert grid.arms == {
            "decay": ImageModelConfig("rmt-digits"),
            "flat": ImageModelConfig("rmt-digits", flat),
            "swin": ImageModelConfig("swin-digits"),
        }
        assert isinstance(grid.cells()[0], ImageCell)

    def test_numbers_can_be_levels(self, write):
        text = changed(TEXT, 'attention = ["standard", "ega"]', "layers = [1, 3]")
        study = load_study(write(changed(text, 'arm = "ega+scaled"', 'arm = "3+scaled"')))
        assert study.grid.arms["1+learned"].layers == 1
        assert study.grid.arms["3+learned"].layers == 3

    @pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
    def test_committed_studies_can_be_read(self, path):
        study = load_study(path)
        assert path.stem == study.folder
        assert study.family
        assert len(study.grid.seeds) >= study.statistics.minimum_seeds
        if study.size == "small":
            check_models(study)

    def test_there_are_committed_studies(self):
        assert {path.stem.rpartition("-")[0] for path in SPECS} >= {
            "gate-sight",
            "superadditivity",
            "mope-controls",
            "vision",
        }


class TestIdentity:
    """Results that exist are found by these ids: a change here orphans them."""

    def test_ids_of_texts(self):
        assert PUBLISHED.id == PUBLISHED_ID
        (path,) = [path for path in SPECS if path.stem == "gate-sight-small"]
        assert load_study(path).grid.cells()[0].id == PUBLISHED_ID

    def test_ids_of_images(self):
        assert ImageCell("a", 0, ImageModelConfig("rmt-digits"), ImageTrainConfig()).id == "7470b5722b82"

    def test_what_was_added_later_counts_only_where_it_is_used(self):
        for config in (TrainConfig(), ImageTrainConfig()):
            assert "precision" not in plain(config)
            assert plain(replace(config, precision="bfloat16"))["precision"] == "bfloat16"
        off = ModelConfig(options={"model": {"absolute_too": False}})
        assert off == ModelConfig()
        assert ModelConfig(options={"model": {"absolute_too": True}}) != ModelConfig()

    def test_results_name_their_cell_again(self, write):
        for text in (TEXT, IMAGES):
            for cell in load_study(write(text)).grid.cells():
                again = Cell.from_config(cell.config)
                assert again == cell
                assert again.id == cell.id


class TestShards:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_shards_are_disjoint_whole_pairs_and_together_the_grid(self, write, count):
        grid = load_study(write(TEXT)).grid
        shards = [grid.shard(index, count).cells() for index in range(1, count + 1)]
        assert sorted(cell.id for cells in shards for cell in cells) == sorted(cell.id for cell in grid.cells())
        for cells in shards:
            seeds = {cell.seed for cell in cells}
            assert {(cell.arm, cell.seed) for cell in cells} == {(arm, seed) for arm in grid.arms for seed in seeds}

    @pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0), (True, 2), (1, 4)])
    def test_others_are_refused(self, write, index, count):
        with pytest.raises(ValueError, match="shard: expected"):
            load_study(write(TEXT)).grid.shard(index, count)

    def test_units_are_seeds_of_one_arm_and_hold_every_cell_once(self, write):
        grid = load_study(write(TEXT)).grid
        assert grid.units() == [(cell,) for cell in grid.cells()]
        units = grid.units(2)
        assert [[(cell.arm, cell.seed) for cell in unit] for unit in units[:2]] == [
            [("plain", 0), ("plain", 1)],
            [("other", 0), ("other", 1)],
        ]
        assert sorted(cell.id for unit in units for cell in unit) == sorted(cell.id for cell in grid.cells())
        assert max(map(len, grid.units(8))) == 3


class TestChoices:
    def test_no_clipping(self, write):
        study = load_study(write(changed(TEXT, "steps = 20", "steps = 20\nclip = false")))
        assert study.grid.train == TrainConfig(steps=20, warmup=2, clip=None)

    def test_a_direction_that_is_known_may_be_left_out_or_said(self, write):
        said = load_study(
            write(changed(TEXT, "smallest_effect = 0.01", "smallest_effect = 0.01\nlarger_is_better = false"))
        )
        assert said.statistics == load_study(write(TEXT)).statistics
        accuracy = changed(IMAGES, 'metric = "test_loss"', 'metric = "test_accuracy"')
        assert load_study(write(accuracy)).statistics.larger_is_better is True

    def test_most_seeds(self, write):
        assert len(load_study(write(changed(TEXT, "seeds = 3", "seeds = 10000"))).grid.seeds) == 10_000
        largest = load_study(write(changed(TEXT, "seeds = 3", f"seeds = [{2**63 - 1}]")))
        assert largest.grid.cells()[0].seed == 2**63 - 1

    def test_too_few_seeds_for_a_verdict_are_told(self, write):
        note = few_seeds_note(load_study(write(TEXT)))
        assert "3 seeds declared, but a verdict in a family of 2 takes 8: every contrast will be refused" in note
        assert few_seeds_note(load_study(write(changed(TEXT, "seeds = 3", "seeds = 8")))) is None
        assert few_seeds_note(load_study(write(IMAGES))) is None

    @pytest.mark.parametrize("spelling", ["text.txt", "./text.txt", "sub/../text.txt"])
    def test_data_are_beside_the_study_and_ids_keep_their_spelling(self, write, tmp_path, monkeypatch, spelling):
        (tmp_path / "sub").mkdir()
        (tmp_path / "text.txt").write_text("beside the study " * 20)
        (tmp_path / "sub" / "text.txt").write_text("in the working directory " * 20)
        path = write(changed(TEXT, 'data = "pydoc"', f'data = "{spelling}"'))
        monkeypatch.chdir(tmp_path / "sub")
        grids = [load_study(each).grid for each in (path, "../spec.toml")]
        ids = [[cell.id for cell in grid.cells()] for grid in grids]
        cells = replace(grids[0], folder=None).cells()
        assert ids[0] == ids[1] == [cell.id for cell in cells]
        assert {cell.data for cell in cells} == {spelling}
        for grid in (*grids, grids[0].shard(2, 3)):
            data = load_data(grid)
            assert data.decode()[:6] == "beside"
            assert data.name == spelling
        assert load_data(replace(grids[0], data=str(tmp_path / "sub" / "text.txt"))).decode()[:2] == "in"

    def test_a_name_of_data_is_no_file_beside_the_study(self, write, tmp_path):
        (tmp_path / "pydoc").write_text("a file of that name " * 20)
        assert load_data(load_study(write(TEXT)).grid).sha256 == load_text("pydoc").sha256
        beside = load_study(write(changed(TEXT, 'data = "pydoc"', 'data = "./pydoc"')))
        assert load_data(beside.grid).decode()[:6] == "a file"
