"""The folder of a study's run: the study and data that it was begun with."""

import functools
import json
import tomllib

import pytest
from study_files import TEXT, changed, write_study

from biases.ablation import Text, load_study
from biases.ablation.results import write_result
from biases.ablation.study import Study
from biases.ablation.study_folder import DATA_FILE, STUDY_FILE, begin, check_folder, redeclared
from biases.cli import main

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
    return functools.partial(write_study, tmp_path)


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
