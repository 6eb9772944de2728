"""``biases compare``: a quantity that is fixed at base and is not at head."""

from __future__ import annotations

from dataclasses import replace

import pytest
from compare_repository import rows, scratch_folder, two_equal_commits

from biases.bench.compare import Row
from biases.bench.compare.render import markdown, show
from biases.bench.compare.rows import confirmed
from biases.bench.compare.statistics import estimate

pytest.importorskip("scipy")

scratch = pytest.fixture(scratch_folder)
repo = pytest.fixture(two_equal_commits)

COUNTED = """
import itertools
COUNT = itertools.count(1000)

def quantity():
    return """
FIXED = "def quantity():\n    return 1000\n"
# A cache that nobody empties, by less than the tolerance of bytes.
GROWING = COUNTED + "next(COUNT)\n"
# Twice the same, and the third time not.
RARELY = COUNTED + "1000 + (next(COUNT) == 1002)\n"
SAMPLES = "def quantity():\n    return {'samples': [1000.0, 1001.0], 'number': 1}\n"
NAN = "def quantity():\n    return float('nan')\n"
LATER_NAN = COUNTED + "1000 if next(COUNT) == 1000 else float('nan')\n"
REFUSED = "def quantity():\n    raise NotImplementedError('nothing to count')\n"
VARIES = "varies at head (1000..1011)"
# What is at base and at head -> verdict and the end of its reason where only fixed quantities are compared.
QUANTITIES = {
    "fixed": (FIXED, FIXED, "no change", "equal"),
    "grows": (FIXED, GROWING, "regression", f"fixed at base (1000), {VARIES}"),
    "sampled": (FIXED, SAMPLES, "regression", "fixed at base (1000), varies at head (1000.5..1000.5)"),
    "nan": (FIXED, NAN, "failed", "fixed at base (1000), no number at head: it returns nan"),
    "nan_later": (FIXED, LATER_NAN, "failed", "fixed at base (1000), no number at head: it returns nan"),
    "refused": (FIXED, REFUSED, "failed", "fixed at base (1000), no number at head: nothing to count"),
    "both_grow": (GROWING, GROWING, "skipped", "only fixed quantities are compared"),
    "rarely_at_base": (RARELY, GROWING, "skipped", "only fixed quantities are compared"),
    "grew": (GROWING, FIXED, "skipped", "only fixed quantities are compared"),
    "grew_and_gone": (GROWING, NAN, "skipped", "it returns nan"),
    "rarely_and_gone": (RARELY, REFUSED, "skipped", "nothing to count"),
    "samples_and_gone": (SAMPLES, NAN, "skipped", "it returns nan"),
}
TRACK = """
def track_{name}():
    from pkg.{name} import quantity
    return quantity()

track_{name}.unit = "bytes"
"""


def plant(repo, names):
    """A suite of quantities that are at base as they are there, and in the working tree as they are at head."""
    repo.write("benchmarks/ops.py", "\n".join(TRACK.format(name=name) for name in names))
    for side in (0, 1):
        for name in names:
            repo.write(f"pkg/{name}.py", QUANTITIES[name][side])
        if side == 0:
            repo.commit()


def test_a_quantity_that_starts_to_vary_or_vanishes_is_found_and_others_are_not(repo, capsys):
    plant(repo, QUANTITIES)
    found = repo.compare(deterministic_only=True)
    told = rows(found)
    assert {name: told[f"ops.track_{name}"].verdict for name in QUANTITIES} == {
        name: verdict for name, (*_, verdict, _) in QUANTITIES.items()
    }
    for name, (*_, reason) in QUANTITIES.items():
        assert told[f"ops.track_{name}"].reason.endswith(reason)
    assert (told["ops.track_grows"].base, len(told["ops.track_grows"].values["head"])) == (1000, 12)
    assert (told["ops.track_nan"].base, told["ops.track_nan"].head) == (1000, None)
    assert found.exit_code == 1
    page = markdown(found)
    assert "**regression** | fixed at base" in page
    assert "**failed** | fixed at base (1000), no number at head: nothing to count" in page
    show(found)
    assert "no number at head: it returns nan" in " ".join(capsys.readouterr().out.split())


def test_it_is_found_under_every_mode(repo):
    """Whatever the tolerance, and where times are measured too."""
    plant(repo, ["grows", "nan", "both_grow"])
    suite = (repo.root / "benchmarks/ops.py").read_text()
    repo.write(
        "benchmarks/ops.py",
        f"{suite}\ndef time_refused():\n    track_nan() > 0 or nothing()\n"
        "def nothing():\n    raise NotImplementedError('no time')\n"
        "def track_seconds():\n    return track_nan()\ntrack_seconds.unit = 'seconds'\n",
    )
    verdicts = repo.verdicts(tolerance=0.5)
    assert verdicts.pop("ops.track_both_grow") in ("no change", "inconclusive", "unsettled")
    assert verdicts == {
        "ops.track_grows": "regression",
        "ops.track_nan": "failed",
        "ops.time_refused": "skipped",
        "ops.track_seconds": "skipped",
    }


def test_new_processes_must_say_the_same():
    first = Row("ops.x", "track", "bytes", "inconclusive", "candidate", base=1.0, head=2.0)
    second = replace(first, verdict="regression", reason="varies", values={"base": [1.0], "head": [1.0, 2.0]})
    assert confirmed(first, "regression", second) == second
    for verdict in ("failed", "skipped", "not at base"):
        gone = replace(second, verdict=verdict, values={})
        assert confirmed(first, "regression", gone) == gone
    equal = replace(second, verdict="no change", reason="equal")
    found = confirmed(first, "regression", equal)
    assert (found.verdict, found.reason) == ("inconclusive", "candidate; in new processes no change, equal")
    both_vary = replace(second, estimate=estimate([1.0] * 8, [2.0] * 8))
    assert confirmed(first, "regression", both_vary).verdict == "inconclusive"
