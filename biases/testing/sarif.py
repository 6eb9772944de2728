"""Results as SARIF 2.1.0, which code scanning reads: https://docs.oasis-open.org/sarif/sarif/v2.1.0/"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from biases._files import write_atomically
from biases.testing.location import Location
from biases.testing.result import BAD, Result, unchecked

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_NO_PROMISE = "A known failure names a property of the battery."


def sarif(
    results: Sequence[Result], locations: Mapping[str, Location] | None = None, *, version: str
) -> dict[str, Any]:
    """One run: a rule a property, with its promise, and a result a failure.

    Everything that makes a check fail is of level ``error``: a broken promise, a known failure that passed, and a
    check that could not be made. Where a subject was put to no property at all, the run did not succeed, and its
    notifications say why.

    Args:
        results: of the battery.
        locations: subject -> where its factory is; a result without one has no place in a file.
        version: of this package.
    """
    promises = {each.property: each.promise or _NO_PROMISE for each in results}
    index = {name: position for position, name in enumerate(promises)}
    silent = unchecked(results)
    driver = {
        "name": "biases",
        "version": version,
        "rules": [_rule(name, promise) for name, promise in promises.items()],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not silent,
                "toolExecutionNotifications": [
                    {
                        "level": "error",
                        "message": {"text": "\n".join([f"{subject}: nothing was checked", *reasons])},
                    }
                    for subject, reasons in silent.items()
                ],
            }
        ],
        "results": [
            _result(each, index[each.property], (locations or {}).get(each.subject))
            for each in results
            if each.status in BAD
        ],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def write_sarif(
    results: Sequence[Result], path: str | Path, locations: Mapping[str, Location] | None = None, *, version: str
) -> None:
    """Write :func:`sarif` to ``path``, whole or not at all."""
    content = json.dumps(sarif(results, locations, version=version), indent=1) + "\n"
    write_atomically(Path(path), content.encode())


def _rule(name: str, promise: str) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": {"text": promise},
        "fullDescription": {"text": promise},
        "help": {"text": f"{promise}\nTo check it alone: biases check TARGET --property {name}"},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["attention"]},
    }


def _result(result: Result, rule: int, location: Location | None) -> dict[str, Any]:
    place: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": result.subject}]}
    if location is not None:
        place["physicalLocation"] = {
            "artifactLocation": _artifact(location),
            "region": {"startLine": location.line},
        }
    return {
        "ruleId": result.property,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": f"{result.subject}: {result.message or result.status}"},
        "locations": [place],
        "partialFingerprints": {"subjectAndProperty/v1": f"{result.subject}/{result.property}"},
        "properties": {
            "status": result.status,
            "examples": result.examples,
            "counterexample": result.counterexample and dict(result.counterexample),
            "reproduce": result.reproduce,
        },
    }


def _artifact(location: Location) -> dict[str, str]:
    if location.inside:
        return {"uri": quote(location.path), "uriBaseId": "%SRCROOT%"}
    return {"uri": Path(location.path).as_uri()}
