"""The piece ``properties`` of ``python -m benchmarks.gpu``: the conformance battery on every layer of the zoo."""

from __future__ import annotations

import importlib.util
from functools import partial

from benchmarks.gpu_plan import Cells, Outcome, Plan, guarded
from biases import zoo

EXAMPLES = 25
TRIAL = ("alibi", "standard")
FAILED = ("failed", "error", "xpassed")


def properties(plan: Plan) -> Cells:
    """All properties of a layer are a cell: layers and inputs on the device, known failures those of the zoo."""
    if importlib.util.find_spec("hypothesis") is None:
        yield "battery", lambda: {"status": "skipped", "message": "hypothesis is not installed"}
        return
    for name in TRIAL if plan.tiny else zoo.names("layer"):
        yield name, partial(guarded, partial(_checked, name, plan))


def _checked(name: str, plan: Plan) -> Outcome:
    from biases.testing import check_attention, exit_code, summary

    known = zoo.get(name).known_failures
    results = check_attention(
        zoo.factory(name), name=name, max_examples=EXAMPLES, known_failures=known, device=plan.device
    )
    failed = [
        {"property": each.property, "status": each.status, "message": each.message, "reproduce": each.reproduce}
        for each in results
        if each.status in FAILED
    ]
    told = "; ".join(f"{each['property']} {each['status']}" for each in failed)
    status = "wrong" if exit_code(results) else "ok"
    return {"status": status, "message": told, "examples": EXAMPLES, "counts": summary(results), "failed": failed}
