"""Studies as files: what is read, what is refused and how, which cells they name, the folder of a run."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from biases.ablation import (
    Cell,
    ImageCell,
    ImageModelConfig,
    ImageTrainConfig,
    ModelConfig,
    Text,
    TrainConfig,
    load_study,
    load_text,
)
from biases.ablation._cells import plain
from biases.ablation.kinds import load_data
from biases.ablation.results import write_result
from biases.ablation.study import Study, check_models, few_seeds_note
from biases.ablation.study_folder import DATA_FILE, STUDY_FILE, begin, check_folder, redeclared
from biases.cli import main

SPECS = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))

TEXT = """
schema = 1
name = "tiny"
size = "test"
question = "Does the gate help?"
notes = ["nothing was left out"]
data = "pydoc"
seeds = 3

[model]
layers = 2
dim = 16
heads = 2
context = 16
options.attention = {low = 1, high = 2}

[train]
steps = 20
warmup = 2

[arms.plain]

[arms.other]
attention = "ega"
options.attention.high = 3

[factors]
attention = ["standard", "ega"]
place = ["learned", "scaled"]

[levels.place.learned]

[levels.place.scaled]
position = "sinusoidal"
options.position.amplitude = 0.02

[[left_out]]
arm = "ega+scaled"
why = "not asked"

[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01

[[contrasts]]
name = "gate"
a = "other"
b = "plain"

[[contrasts]]
name = "gate on prefixes"
a = "other"
b = "plain"
metric = "truncated"
margin = 0.02

[[exploratory]]
name = "rate"
a = "other"
b = "plain"
metric = "learned.blocks.0.attention.key_gate.tau.mean"
unit = "1"
margin = 0.5
larger_is_better = true

[execution]
workers = 2
together = 4
gpus_per_cell = 0.5
"""

IMAGES = """
schema = 1
name = "seen"
size = "test"
question = "Does it see?"
kind = "images"
data = "digits"
seeds = [4, 2]

[model]
name = "rmt-digits"

[arms.decay]

[arms.flat]
options.attention_options = {initial = 30.0, span = 0.0}

[arms.swin]
name = "swin-digits"

[statistics]
metric = "test_loss"
unit = "nats"
smallest_effect = 0.02
"""


RUN = """
schema = 1
name = "tiny"
size = "run"
question = "Does it run?"
data = "DATA"
seeds = 2
[model]
layers = 1
heads = 1
dim = 8
context = 16
dropout = 0.0
[train]
steps = 2
batch = 2
warmup = 1
evaluation_windows = 2
truncated_positions = 2
[arms.standard]
[arms.ega]
attention = "ega"
[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01
minimum_seeds = 2
[[contrasts]]
name = "gate"
a = "ega"
b = "standard"
"""
DATA, OTHER_DATA = (Text.from_string("here.txt", content) for content in ("one text, " * 9, "another text, " * 9))


def stored(cell):
    result = {"schema": 1, "id": cell.id, "arm": cell.arm, "seed": cell.seed, "config": cell.config, "status": "ok"}
    return result | {"metrics": {}, "curve": [], "data": {"name": DATA.name, "sha256": DATA.sha256}}


@pytest.fixture
def write(tmp_path):
    def write(text, name="spec.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def changed(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


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
        model = ModelConfig("standard", "learned", layers=4, heads=4, dim=128, context=128, dropout=0.0)
        train = TrainConfig(
            steps=2000,
            batch=16,
            learning_rate=1e-3,
            warmup=100,
            weight_decay=0.1,
            evaluate_every=500,
            truncated_positions=2048,
        )
        assert Cell("standard", 0, model, train, "tinyshakespeare").id == "d90548afe4e5"
        (path,) = [path for path in SPECS if path.stem == "gate-sight-small"]
        assert load_study(path).grid.cells()[0].id == "d90548afe4e5"

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


REFUSED = [
    ("schema = 1", "schema = 2", "schema: expected 1, got 2"),
    ("schema = 1", "", "schema: expected 1, got 'nothing'"),
    ("schema = 1", "schema = 1\nseed = 4", "seed: expected one of the keys .*did you mean 'seeds'"),
    ('name = "tiny"', "", "name: expected a text, got nothing"),
    ('name = "tiny"', 'name = "../tiny"', "name: expected letters, digits"),
    ('size = "test"', "size = 3", "size: expected a text, got 3"),
    ('question = "Does the gate help?"', 'question = " "', "question: expected a text, got ' '"),
    ('notes = ["nothing was left out"]', "notes = [1]", r"notes\[0\]: expected a text, got 1"),
    ('data = "pydoc"', "", "data: expected a text, got nothing"),
    ('data = "pydoc"', 'data = "pydoc"\nkind = "sounds"', "kind: expected one of 'text', 'images', got 'sounds'"),
    ("seeds = 3", "seeds = 0", "seeds: expected their number, up to 10000, or a list of so many different integers"),
    ("seeds = 3", "seeds = 10001", "seeds: expected their number, up to 10000, .*got 10001"),
    ("seeds = 3", f"seeds = {list(range(10_001))}", r"seeds: expected their number, up to 10000, .*got .{1,90}$"),
    ("seeds = 3", f"seeds = [{2**63}]", r"seeds\[0\]: expected an integer of 64 bits, got one of 64 bits"),
    ("seeds = 3", f"seeds = 0x{'f' * 5000}", "seeds: expected an integer of 64 bits, got one of 20000 bits"),
    ("seeds = 3", f"seeds = {'9' * 5000}", "expected TOML, got Exceeds the limit"),
    ("seeds = 3", f"seeds = {'[' * 3000}{']' * 3000}", "expected TOML, got values nested too deeply to be read"),
    ("steps = 20", f"steps = 20\n{'x.' * 3000}y = 1", "expected TOML, got values nested too deeply to be read"),
    ("steps = 20", "steps = 20\nclip = true", r"train.clip: expected a number in \(0, inf\), got True"),
    ("seeds = 3", "seeds = [1, 1]", r"seeds: expected .*got \[1, 1\]"),
    ("seeds = 3", "seeds = true", "seeds: expected .*got True"),
    ("seeds = 3", "seeds = [-1]", r"seeds: expected .*got \[-1\]"),
    ("seeds = 3", "", "seeds: expected .*got 'nothing'"),
    ("layers = 2", "layer = 2", "model.layer: expected one of the keys .*did you mean 'layers'"),
    ("layers = 2", "layers = 0", "arms.plain.layers: expected an integer of at least 1, got 0"),
    ("dim = 16", "dim = 15", "arms.plain.dim: expected a multiple of heads=2, got 15"),
    ("steps = 20", "stpes = 20", "train.stpes: expected one of the keys .*did you mean 'steps'"),
    ("steps = 20", "steps = 2", "train.warmup: expected fewer updates than steps=2, got 2"),
    ("steps = 20", 'precision = "half"', "train.precision: expected one of 'float32', 'bfloat16'"),
    ("[train]", "[[train]]", "train: expected a table"),
    ("[arms.plain]", "[arms]\nplain = 3", "arms.plain: expected a table, got 3"),
    ("options.attention.high = 3", "option.high = 3", "arms.other.option: expected one of the keys"),
    ("options.attention.high = 3", "options.attntion.high = 3", "arms.other.options: .*did you mean 'attention'"),
    ("options.attention.high = 3", "options.model.absolute = true", "arms.other.options.*'absolute_too'"),
    (
        "options.attention.high = 3",
        "options.attention.dim = 8",
        "arms.other.options.attention: expected no 'dim', which the model decides",
    ),
    (
        "options.attention.high = 3",
        "options.position.heads = 8",
        "arms.other.options.position: expected no 'heads', which the model decides",
    ),
    (
        'attention = "ega"\noptions.attention.high = 3',
        'attention = "ega[low=1]"',
        r"arms.other.options.attention: expected no 'low', which 'ega\[low=1\]' has already, got {'low': 1, 'high': 2}",
    ),
    (
        'position = "sinusoidal"',
        'position = "sinusoidal[amplitude=1]"',
        "options.position: expected no 'amplitude', which 'sinusoidal",
    ),
    (
        'attention = "ega"\noptions.attention.high = 3',
        "",
        "contrast 'gate': expected arms of different models, got 'other' and 'plain', the same model",
    ),
    (
        'name = "rate"\na = "other"',
        'name = "rate"\na = "standard+learned"',
        r"contrast 'rate': expected arms of different models, got 'standard\+learned' and 'plain', the same model",
    ),
    (
        'metric = "full"\n',
        'metric = "full"\nlarger_is_better = true\n',
        "statistics.larger_is_better: expected false, the direction of full, got true",
    ),
    (
        "margin = 0.02",
        "margin = 0.02\nlarger_is_better = true",
        "contrast 'gate on prefixes' larger_is_better: expected false, the direction of truncated, got true",
    ),
    ('unit = "1"\n', "", "contrast 'rate' unit: expected the unit of learned.*as the study's is that of full"),
    ("margin = 0.5\n", "", "contrast 'rate' margin: expected a margin in its unit, 1, got none"),
    ("larger_is_better = true", "", "contrast 'rate' larger_is_better: expected true or false, which learned"),
    ("options.attention.high = 3", "context = 8", "arms: Grid arms: expected one context for all"),
    ("[arms.other]", '[arms."ega+learned"]', r"arms.ega\+learned: expected another name"),
    ('attention = ["standard", "ega"]', "attention = []", "factors.attention: expected at least one level"),
    ('attention = ["standard", "ega"]', 'attention = "ega"', "factors.attention: expected a list of levels"),
    ('"scaled"]', '"scaled", "none"]', r"factors.place\[2\]: expected a level declared as \[levels.place.NAME\]"),
    ('"scaled"]', '"learned"]', "levels.place.scaled: expected one of the keys learned, learned"),
    ("[levels.place.scaled]", '[levels.place.scaled]\nattention = "ega"', "one value of attention"),
    ("[levels.place.scaled]", "[levels.place.scaled]\nlayer = 3", r"arm 'standard\+scaled'.layer: expected"),
    ("[levels.place.learned]", "[levels.plaice.learned]", "levels.plaice: expected .*did you mean 'place'"),
    ('arm = "ega+scaled"', 'arm = "ega"', r"left_out\[0\].arm: expected an arm of the factors, once"),
    ('why = "not asked"', "", r"left_out\[0\].why: expected a text, got nothing"),
    ("smallest_effect = 0.01", "", "statistics: expected every key that is required, .*'smallest_effect'"),
    ("smallest_effect = 0.01", "smallest_effect = 0", r"statistics.smallest_effect: expected a number in \(0, inf\)"),
    ("smallest_effect = 0.01", "smallest_efect = 1", "statistics.smallest_efect: .*did you mean 'smallest_effect'"),
    ('metric = "full"', 'metric = "ful"', "statistics metric: expected one of .*did you mean 'full'"),
    ('metric = "truncated"', 'metric = "learned.tau.median"', "'gate on prefixes' metric: expected learned.NAME.mean"),
    ("steps = 20", "steps = 20\ntruncated_positions = 0", "metric: expected one of 'full', 'train', got 'truncated'"),
    ('name = "rate"', 'name = "gate"', "contrast 'gate': expected a name that no other contrast has"),
    ('name = "rate"\na = "other"', 'name = "rate"\na = "othr"', "contrast 'rate' a: .*did you mean 'other'"),
    (
        'name = "rate"\na = "other"',
        'name = "rate"\na = "ega+scaled"',
        r"exploratory\[0\].a: expected an arm that is run, got 'ega\+scaled', left out: not asked",
    ),
    ("margin = 0.02", "margin = -1", r"contrasts\[1\].margin: expected a number in \(0, inf\), got -1"),
    ("margin = 0.02", "margins = 1", r"contrasts\[1\].margins: .*did you mean 'margin'"),
    ("workers = 2", "workers = 0", "execution.workers: expected an integer of at least 1, got 0"),
    ("workers = 2", "worker = 2", "execution.worker: .*did you mean 'workers'"),
    ("gpus_per_cell = 0.5", "gpus_per_cell = -1", "execution.gpus_per_cell: expected a number"),
    ("schema = 1", "schema = ", "expected TOML, got .*line 2"),
]


class TestRefusals:
    @pytest.mark.parametrize(("old", "new", "message"), REFUSED, ids=[f"{new or old}"[:40] for old, new, _ in REFUSED])
    def test_the_message_names_file_and_key(self, write, old, new, message):
        path = write(changed(TEXT, old, new))
        with pytest.raises(ValueError, match=message) as caught:
            load_study(path)
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('name = "rmt-digits"', "", "arms.decay: expected every key that is required, got .*'name'"),
            ("options.attention_options", "options.classes", "arms.flat.options: expected no 'classes'"),
            ('metric = "test_loss"', 'metric = "full"', "statistics metric: expected one of 'test_accuracy'"),
            ("seeds = [4, 2]", "seeds = 2\nexecution = {together = 2}", "execution.together: expected 1 for images"),
            ("options.attention_options", "options.name", "arms.flat.options: expected no 'name'"),
            (
                '[arms.swin]\nname = "swin-digits"',
                '[arms.swin]\nname = "swin-digits[patch=2]"\noptions.patch = 2',
                r"arms.swin.options: expected no 'patch', which 'swin-digits\[patch=2\]' has already",
            ),
            (
                'metric = "test_loss"',
                'metric = "test_loss"\nlarger_is_better = true',
                "statistics.larger_is_better: expected false, the direction of test_loss, got true",
            ),
            (
                "smallest_effect = 0.02",
                'smallest_effect = 0.02\n[[contrasts]]\nname = "c"\na = "swin"\nb = "flat"\nmetric = "test_accuracy"',
                "contrast 'c' unit: expected the unit of test_accuracy, as the study's is that of test_loss, got none",
            ),
        ],
    )
    def test_of_images(self, write, old, new, message):
        with pytest.raises(ValueError, match=message):
            load_study(write(changed(IMAGES, old, new)))

    def test_no_file_no_text_no_arms(self, tmp_path, write):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'none.toml'}: expected a study's TOML file")):
            load_study(tmp_path / "none.toml")
        path = tmp_path / "latin.toml"
        path.write_bytes('name = "é"'.encode("latin-1"))
        with pytest.raises(ValueError, match=r"latin.toml: expected TOML, got 'utf-8'"):
            load_study(path)
        text = IMAGES[: IMAGES.index("[arms.decay]")] + IMAGES[IMAGES.index("[statistics]") :]
        with pytest.raises(ValueError, match="arms: expected at least one arm"):
            load_study(write(text))

    @pytest.mark.parametrize(
        ("text", "old", "new", "message"),
        [
            (TEXT, "options.attention = {low = 1, high = 2}", "", None),
            (TEXT, "options.attention = {low = 1, high = 2}", "options.attention = {lags = 1}", "arm 'plain'.*lags"),
            (IMAGES, 'name = "swin-digits"', 'name = "swin-digit"', "arm 'swin'.*did you mean 'swin-digits'"),
            (IMAGES, 'name = "swin-digits"', 'name = "manhattan"', "arm 'swin'.*expected a model, got a layer"),
        ],
    )
    def test_models_are_tried_before_anything_is_run(self, write, text, old, new, message):
        text = text.replace("options.attention.high = 3\n", "")
        study = load_study(write(changed(text, old, new)))
        if message is None:
            check_models(study)
            return
        with pytest.raises(ValueError, match=message) as caught:
            check_models(study)
        assert str(caught.value).startswith(f"{study.file}: ")

    def test_a_model_that_takes_no_such_value_is_refused_by_name(self, write, monkeypatch):
        def refuse(*arguments):
            raise TypeError("'<' not supported between 'str' and 'int'")

        monkeypatch.setattr("biases.ablation.training.build_model", refuse)
        with pytest.raises(ValueError, match=r"arm 'plain': expected a model, got TypeError.*'<' not supported"):
            check_models(load_study(write(TEXT)))

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("ega", "ega[statistics=window]", True),
            ("ega[statistics=prefix]", 'ega"\noptions.attention.statistics = "prefix', True),
            ("ega[statistics=prefix]", "ega", False),
            ("ega[statistics=prefix]", "standard", False),
            ("no such layer", "no such layer", True),
        ],
    )
    def test_arms_are_compared_with_all_their_options(self, write, one, other, same):
        text = changed(TEXT, "options.attention = {low = 1, high = 2}", "")
        text = changed(text, "[arms.plain]", f'[arms.plain]\nattention = "{one}"')
        path = write(changed(text, 'attention = "ega"\noptions.attention.high = 3', f'attention = "{other}"'))
        if same:
            with pytest.raises(ValueError, match="got 'other' and 'plain', the same model"):
                load_study(path)
        else:
            assert load_study(path).family[0].arms == {"a": "other", "b": "plain"}


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


class TestFolder:
    @pytest.fixture
    def begun(self, write, tmp_path):
        """A folder with a cell in it."""
        out, study = tmp_path / "out", load_study(write(TEXT))
        assert begin(study, out, DATA) is None
        write_result(out, stored(study.grid.cells()[0]))
        return out

    def test_the_study_is_written_as_it_is(self, begun):
        assert (begun / STUDY_FILE).read_text() == TEXT
        study = load_study(begun / STUDY_FILE)
        assert isinstance(study, Study)
        assert tomllib.loads(study.source)["seeds"] == 3

    @pytest.mark.parametrize(
        ("old", "new", "part"),
        [
            ("steps = 20", "steps = 21", "train"),
            ('data = "pydoc"', 'data = "tinyshakespeare"', "data"),
            ("layers = 2", "layers = 3", "arm 'plain'"),
            ('name = "tiny"', 'name = "small"', "name"),
            ("[arms.plain]", '[arms.plain]\n\n[arms.more]\nposition = "none"', "arm 'more'"),
        ],
    )
    def test_another_study_is_refused(self, begun, write, old, new, part):
        other = load_study(write(changed(TEXT, old, new), "other.toml"))
        with pytest.raises(ValueError, match=rf"other.toml: {part} in .*give another --out"):
            begin(other, begun)
        assert (begun / STUDY_FILE).read_text() == TEXT

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("seeds = 3", "seeds = 8", False),
            ("workers = 2", "workers = 1", False),
            ("nothing was left out", "something was", False),
            ("margin = 0.02", "margin = 0.03", True),
            ("smallest_effect = 0.01", "smallest_effect = 0.02", True),
        ],
    )
    def test_what_cells_do_not_depend_on_may_change_but_the_declaration_is_kept(self, begun, write, old, new, told):
        text = changed(TEXT, old, new)
        note = begin(load_study(write(text)), begun)
        assert (note is not None) is told
        assert (begun / STUDY_FILE).read_text() == text
        (kept,) = begun.glob("study-*.toml")
        assert kept.read_text() == TEXT
        if told:
            assert str(kept) in note

    def test_a_folder_without_cells_may_be_begun_anew(self, begun, write):
        for cell in (begun / "cells").iterdir():
            cell.unlink()
        other = changed(TEXT, "steps = 20", "steps = 21")
        study = load_study(write(other))
        assert check_folder(study, begun) is None
        assert begin(study, begun, OTHER_DATA) is None
        assert (begun / STUDY_FILE).read_text() == other
        assert json.loads((begun / DATA_FILE).read_text())["sha256"] == OTHER_DATA.sha256

    @pytest.mark.parametrize("pinned_by", ["file", "cell"])
    def test_other_data_of_the_same_name_are_refused(self, begun, write, pinned_by):
        """Seeds that have not been run yet have no result that could tell."""
        if pinned_by == "cell":
            (begun / DATA_FILE).unlink()
        study = load_study(write(changed(TEXT, "seeds = 3", "seeds = [7]")))
        both = f"{DATA.sha256}, got here.txt of {OTHER_DATA.sha256}"
        for check in (begin, check_folder):
            with pytest.raises(ValueError, match=f"data in .* of SHA-256 {both}; give another --out"):
                check(study, begun, OTHER_DATA)
        assert (begun / STUDY_FILE).read_text() == TEXT
        assert begin(study, begun, DATA) is None
        assert json.loads((begun / DATA_FILE).read_text()) == {"schema": 1, "name": "here.txt", "sha256": DATA.sha256}

    @pytest.mark.parametrize("content", ["", "[]", '{"name": "x"}', "[" * 5000])
    def test_a_damaged_hash_is_told(self, begun, write, content):
        (begun / DATA_FILE).write_text(content)
        with pytest.raises(ValueError, match=r"data\.json: expected name and sha256 of the data"):
            begin(load_study(write(TEXT)), begun, DATA)

    def test_without_a_study_cells_must_all_be_the_studys(self, begun, write):
        (begun / STUDY_FILE).unlink()
        other = load_study(write(changed(TEXT, "steps = 20", "steps = 21"), "other.toml"))
        for check in (begin, check_folder):
            with pytest.raises(ValueError, match=r"other.toml: .*expected study.toml beside its cells.*got 1 others"):
                check(other, begun, DATA)
        assert not (begun / STUDY_FILE).exists()
        assert begin(load_study(write(TEXT)), begun, DATA) is None
        assert (begun / STUDY_FILE).read_text() == TEXT

    def test_a_text_that_changed_is_told_by_both_commands(self, write, tmp_path, capsys):
        text, out = tmp_path / "text.txt", tmp_path / "out"
        text.write_text("to be or not to be, " * 40)
        path = write(changed(RUN, "DATA", "text.txt"))
        assert main(["ablate", str(path), "--out", str(out), "--seeds", "0"]) == 0
        assert "a verdict in a family of 1 takes 6: every contrast will be refused" in capsys.readouterr().err
        before = text.read_text()
        text.write_text(before + "that is the question")
        for more in ([], ["--dry-run"]):
            assert main(["ablate", str(path), "--out", str(out), "--seeds", "1", *more]) == 2
            assert f"spec.toml: data in {out}: expected those of the cells there" in capsys.readouterr().err
        assert len(list((out / "cells").glob("*.json"))) == 2
        text.write_text(before)
        assert main(["ablate", str(path), "--out", str(out)]) == 0
        one = sorted((out / "cells").glob("*.json"))[0]
        one.write_text(one.read_text().replace(Text.from_string("", before).sha256, "0" * 64))
        capsys.readouterr()
        assert main(["stats", str(out)]) == 2
        assert "results of tiny-run: expected cells of one data" in capsys.readouterr().err

    def test_declarations_that_were_replaced_are_found(self, begun, write):
        study = load_study(write(changed(TEXT, "margin = 0.02", "margin = 0.03")))
        begin(study, begun)
        (kept,) = begun.glob("study-*.toml")
        assert redeclared(study, begun) == [kept.name]
        begin(load_study(write(TEXT)), begun)
        assert len(redeclared(load_study(write(TEXT)), begun)) == 1
        assert redeclared(study, begun) == [kept.name]
