"""Results of the kind and size that the demo has, and a strict reader of pages: for the tests of the dashboard."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

SUBJECTS = ("standard", "ega", "ega-prefix", "ega-token", "alibi", "retention", "swat", "g1-headwise")
PROPERTIES = {
    "shape-dtype-device": "The output has the input's shape, dtype and device.",
    "finite-output": "Finite input gives finite output.",
    "future-independence": "The output at t does not change with any input after t.",
    "prefix-consistency": "The output on a prefix is the prefix of the output.",
    "batch-independence": "An example's output does not depend on the others.",
    "float64-agreement": "The fast path is within the rounding budget of the float64 specification.",
    "permutation-equivariance": "Permuting the tokens permutes the output.",
}
LEAK = ("future-independence", "prefix-consistency")
ATTACK = '</script></pre><script>alert(1)</script><img src=x onerror=alert(1)><b a="\'">&amp;{{ 7*7 }}'
VOID = ("br", "col", "hr", "img", "input", "link", "meta")


def _verification() -> dict:
    results = []
    for subject in SUBJECTS:
        for name, promise in PROPERTIES.items():
            result = {
                "subject": subject,
                "property": name,
                "promise": promise,
                "status": "passed",
                "examples": 25,
                "counterexample": None,
                "message": "",
                "reproduce": "",
                "seconds": 0.21,
            }
            if name == "permutation-equivariance":
                result |= {"status": "not_applicable", "message": "equivariant_to is ()", "examples": 0}
            elif subject == "ega" and name in LEAK:
                result |= {
                    "status": "xfailed",
                    "counterexample": {"batch": 1, "length": 2, "position": 0, "regime": "normal", "seed": 0},
                    "message": "output[0, 0, 3] changed by 0.0417 when tokens after 0 changed: expected at "
                    "most 2.4e-07\nshape (1, 2, 16), float32; applies because causal=True",
                    "reproduce": "from biases.testing import replay\nfrom biases.zoo import factory\n\n"
                    "replay(factory('ega'), 'future-independence',\n"
                    "       {'batch': 1, 'length': 2, 'position': 0, 'regime': 'normal', 'seed': 0})\n",
                }
            elif subject == "swat" and name == "float64-agreement":
                result |= {
                    "status": "failed",
                    "counterexample": "batch=1, length=3, regime='large', seed=4",
                    "message": "output[0, 2, 5] is 1.0021, expected 1.0 within 3.1e-06",
                    "reproduce": "raise AssertionError('float64-agreement')\n",
                }
            results.append(result)
    return {"results": results, "command": "biases check all --seed 0"}


def _bench() -> dict:
    rows = []
    for index, name in enumerate(("ega-token", "alibi", "retention", "swat", "g1-headwise")):
        for length in (256, 1024):
            ratio, floor = 1.04 + 0.31 * index + length / 9000, 2 * length * 64 * 8 * 4
            seconds = 1.3e-6 * length * ratio
            rows.append(
                {
                    "name": name,
                    "causal": True,
                    "direction": "forward",
                    "length": length,
                    "seconds_median": seconds,
                    "seconds_low": 0.96 * seconds,
                    "seconds_high": 1.07 * seconds,
                    "ratio": ratio,
                    "ratio_low": 0.97 * ratio,
                    "ratio_high": 1.05 * ratio,
                    "peak_bytes": int(floor * ratio),
                    "floor_peak_bytes": floor,
                    "status": "ok",
                    "message": "",
                }
            )
    wrong = dict.fromkeys(rows[0]) | {
        "name": "manhattan",
        "causal": False,
        "direction": "forward",
        "length": 256,
        "status": "failed",
        "message": "output differs from its reference by 0.3, expected at most 1e-5",
    }
    return {
        "config": {"batch": 2, "heads": 8, "head_dim": 64, "dtype": "float32", "rounds": 15, "seed": 0},
        "rows": [*rows, wrong],
        "floor": {"causal": {"seconds_median": 0.0011}, "full": {"seconds_median": 0.0013}},
        "file": "bench.json",
    }


def ablation() -> dict:
    steps = [0, 50, 100, 150, 200, 250, 300]
    arms, cells = {}, {}
    for i, attention in enumerate(("standard", "ega")):
        for j, position in enumerate(("learned", "mope")):
            floor, leak = 1.9 - 0.31 * i - 0.05 * j - 0.04 * i * j, 0.42 * i
            mean = [floor + 2.3 * math.exp(-step / (70 + 10 * j)) for step in steps]
            full = {str(seed): floor + 0.01 * (seed - 2) for seed in range(6)}
            arms[f"{attention}+{position}"] = {
                "curve": {
                    "steps": steps,
                    "mean": mean,
                    "low": [value - 0.06 for value in mean],
                    "high": [value + 0.06 for value in mean],
                },
                "full": full,
                "truncated": {seed: value + leak for seed, value in full.items()},
                "leak_mean": leak or 1.6e-8,
                "leak_interval": [leak - 0.03, leak + 0.03] if i else [1e-9, 3e-8],
            }
            cells[f"y{i}{j}"] = floor
    common = {"n": 6, "p_sign_flip": 0.03125, "p_smallest": 0.03125, "unit": "nats per character"}
    common |= {"confidence": 0.95, "larger_is_better": False}
    contrasts = [
        {"name": "ega - standard, learned", "mean": -0.31, "interval": [-0.36, -0.26], "verdict": "better"},
        {"name": "ega - standard, mope", "mean": -0.35, "interval": [-0.43, -0.27], "verdict": "better"},
        {
            "name": "mope - learned, standard",
            "mean": -0.05,
            "interval": [-0.12, 0.02],
            "verdict": "inconclusive",
            "p_sign_flip": 0.4375,
        },
    ]
    return {
        "config": {"steps": 300, "seeds": [0, 1, 2, 3, 4, 5], "data": "pydoc"},
        "factors": {"attention": ["standard", "ega"], "position": ["learned", "mope"]},
        "arms": arms,
        "contrasts": [common | row for row in contrasts],
        "interaction": common
        | {
            "name": "attention x position",
            "mean": -0.04,
            "interval": [-0.11, 0.03],
            "verdict": "inconclusive",
            "p_sign_flip": 0.4375,
            "cells": cells,
        },
        "command": "biases ablate demo.toml",
        "file": "runs/demo",
    }


def _zoo() -> list[dict]:
    return [
        {
            "name": name,
            "family": "gates" if "ega" in name else "decays",
            "summary": f"The {name} layer of its paper, in the form that the equations give",
            "paper": "2405.12345, eq. 7",
            "traits": {
                "domain": "sequence",
                "causal": True,
                "normalisation": "row",
                "window": None,
                "decay": {"kind": "linear", "monotone_in": "past", "placement": "logits"},
                "equivariant_to": [],
                "fast_path": "bias folded into the keys",
            },
            "fast_path": "bias folded into the keys",
        }
        for name in SUBJECTS
    ]


def claims() -> dict:
    """Three entries of a ledger, of every kind that is shown differently."""
    evidence = {"text": "The change is 0.0228.", "conditions": "", "error": 0.0228, "tolerance": 1e-12, "values": {}}
    common = {"kind": "invariance", "location": "section 3.2", "test": "biases.claims.ega.causal", "message": ""}
    return {
        "claims": [
            common
            | {
                "id": "ega-causal",
                "paper": "2605.21842",
                "title": "Energy-Gated Attention (EGA)",
                "statement": "EGA is strictly causal.",
                "status": "fails",
                "evidence": evidence | {"counterexample": {"tokens": 16, "changed token": 15}},
            },
            common
            | {
                "id": "rmt-accuracy",
                "paper": "2309.11523",
                "title": "RMT",
                "kind": "control",
                "statement": "Does the order of the passes matter?",
                "status": "holds",
                "evidence": evidence
                | {"interval": [0.1, 0.3], "seeds": 5, "repeated": "seeds", "size": "small", "unit": "nats"},
            },
            common
            | {
                "id": "rmt-broken",
                "paper": "2309.11523",
                "title": "RMT",
                "statement": "It could not be run.",
                "status": "error",
                "evidence": None,
                "message": "RuntimeError: no such layer",
            },
        ],
        "command": "biases claims",
        "file": "claims.json",
    }


def history() -> dict:
    """A series with a step at its sixth commit, and one without."""
    common = {"benchmark": "operators.Cpu.time_call", "unit": "seconds"}
    step = [{"at": 5, "before": 1e-3, "after": 2e-3, "ratio": 2.0}]
    stepped = [1e-3] * 3 + [None, 1e-3] + [2e-3] * 5
    return {
        "machine": "bench-2c",
        "commits": [{"hash": f"{i:08x}", "date": 1.7e12 + 1e9 * i} for i in range(10)],
        "series": [
            common | {"params": "alibi, 1024", "values": stepped, "steps": step},
            common | {"params": "ega, 1024", "values": [3e-3] * 10, "steps": []},
            common | {"params": "swat, 1024", "values": [None] * 9 + [4e-3], "steps": []},
        ],
        "command": "asv run",
        "file": "results/asv",
    }


def gallery() -> list[dict]:
    """Pictures of the forms that the zoo's have, small."""
    side = range(14)
    falling = [[0.5 ** (query - key) if key <= query else None for key in side] for query in side]
    pixels = [[0.5 ** (row + column) if row + column < 9 else None for column in side] for row in side]
    return [
        {
            "name": "alibi",
            "weights": {"head 1": falling},
            "profile": {"head 1": {"distance": [0, 1, 2], "weight": [1.0, 0.5, 0.17]}},
            "influence": falling,
        },
        {
            "name": "ega",
            "weights": {"head 1": falling},
            "profile": {"head 1": {"distance": [0, 1], "weight": [1.0, 1.0]}},
            "gate": {"head 1": [0.2, 0.9, 0.5]},
            "gates": {"output": falling},
            "mixing": {"head 1": {"lag": [-1, 0, 1], "weight": [0.2, 0.5, 0.3]}},
            "response": {"head 1": {"energy": [-1.0, 0.0, 1.0], "gate": [0.2, 0.5, 0.9]}},
            "influence": falling,
        },
        {
            "name": "manhattan",
            "query": [1, 1],
            "maps": {"head 1": pixels},
            "left": ["mask", "decay"],
            "influence": pixels,
            "alone": pixels,
            "regions": {"shifted": [[2.0 * (row > 9) + (column > 9) for column in side] for row in side]},
        },
        {
            "name": "sinusoidal",
            "encoding": [[0.0, 1.0], [0.8, 0.5]],
            "similarity": [[1.0, 0.5], [0.5, 1.0]],
            "kernel": {"distance": [0, 1], "similarity": [1.0, 0.5]},
        },
        {"name": "broken", "error": "RuntimeError: cannot be built"},
    ]


def full_results() -> dict:
    """Every section full, two studies and two runs of the battery."""
    results = sample_results()
    again = results["ablation"] | {"title": "again (small)", "failed": [_failure()], "interaction": []}
    again["missing"] = [{"arm": "ega+mope", "seed": 7, "id": "0"}]
    return results | {
        "verification": [results["verification"], results["verification"] | {"title": "on CUDA"}],
        "ablation": [results["ablation"], again],
        "claims": claims(),
        "history": history(),
        "gallery": gallery(),
        "skipped": ["runs/x.json: expected JSON, got Expecting value"],
    }


def _failure() -> dict:
    return {"arm": None, "seed": None, "id": "1", "status": "unreadable", "error": "result x.json: expected JSON"}


def sample_results() -> dict:
    """Results of the kind and size that the demo has."""
    return {
        "title": "Attention biases: the demo",
        "created": "2026-01-15T10:30:00+00:00",
        "command": "biases demo",
        "machine": {"cpu": "Example CPU @ 2.4 GHz", "cores": 2, "memory_bytes": 8_000_000_000, "cuda": None},
        "versions": {"python": "3.12.4", "torch": "2.9.0", "biases": "0.1.0"},
        "verification": _verification(),
        "bench": _bench(),
        "ablation": ablation(),
        "zoo": _zoo(),
        "missing": {},
    }


class Page(HTMLParser):
    """A strict reading of a page: every element closed in order, and what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.content.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(d for tag, d in self.content if tag not in ("script", "style")))

    def figures(self) -> dict:
        return json.loads(script_bodies(self)[0])


def script_bodies(page: Page) -> list[str]:
    bodies = ["".join(data) for data in _runs(page.content, "script")]
    assert len(bodies) == len(page.all("script"))
    return bodies


def _runs(content: list[tuple[str, str]], tag: str) -> list[list[str]]:
    runs: list[list[str]] = []
    previous = ""
    for name, data in content:
        if name == tag:
            if previous != tag:
                runs.append([])
            runs[-1].append(data)
        previous = name
    return runs
