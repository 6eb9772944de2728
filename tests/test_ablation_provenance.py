"""What a result says of the code that it was made by."""

import shutil
from pathlib import Path

import pytest
from ablation_models import TEXT, build, cell

from biases.ablation import _provenance
from biases.ablation._provenance import Source, code_fingerprint
from biases.ablation.grid import run_cell

PACKAGE = Path(_provenance.__file__).parents[1]


class TestProvenance:
    @pytest.fixture
    def fingerprint(self, tmp_path, monkeypatch):
        """Of a copy of the package, of which files can be changed."""
        package = tmp_path / "biases"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        monkeypatch.setattr(_provenance, "__file__", str(package / "ablation" / "_provenance.py"))

        def after(*changed):
            for name in changed:
                path = package / name
                path.write_text(path.read_text() + "\n")
            return _provenance.code_fingerprint.__wrapped__()

        return after

    def test_the_code_that_decides_numbers_has_another_fingerprint_when_changed(self, fingerprint):
        seen = {fingerprint()}
        deciding = ("ablation/_loop.py", "ablation/together.py", "ablation/images/sampling.py", "layers/__init__.py")
        for name in deciding:
            seen.add(fingerprint(name))
        assert len(seen) == 1 + len(deciding)

    def test_what_judges_and_shows_results_does_not_change_it(self, fingerprint):
        before = fingerprint()
        names = [f"ablation/{name}.py" for name in _provenance.DECIDE_NOTHING]
        assert fingerprint(*names, "ablation/executors/local.py", "cli.py") == before


class TestSource:
    def test_a_result_names_the_code_that_was_read_before_it_was_trained(self):
        result = run_cell(cell(), TEXT, build=build, source=Source("1234-dirty", code_fingerprint()))
        assert (result["git"], result["versions"]["code"]) == ("1234-dirty", code_fingerprint())
        with pytest.raises(ValueError, match="code of biases: expected 0123, as when the run was begun"):
            run_cell(cell(), TEXT, build=build, source=Source(None, "0123"))

    def test_kernels_and_the_zoo_are_part_of_the_code(self, tmp_path, monkeypatch):
        names = (*_provenance.MODULES, "backends/native/kernel.cpp", "backends/native/tiles.hpp")
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            assert (PACKAGE / name).is_file()
        monkeypatch.setattr(_provenance, "__file__", str(tmp_path / "ablation" / "_provenance.py"))
        seen = {code_fingerprint.__wrapped__()}
        for name in names:
            (tmp_path / name).write_text("changed")
            seen.add(code_fingerprint.__wrapped__())
        assert len(seen) == 1 + len(names)
