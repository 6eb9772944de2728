"""Results as SARIF 2.1.0, which code scanning reads: https://docs.oasis-open.org/sarif/sarif/v2.1.0/"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from biases._files import write_atomically
from biases._markup import printable
from biases.testing.location import Location, project_file, source_root
from biases.testing.properties import PROPERTIES
from biases.testing.result import BAD, Result, unchecked

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
PROJECT = Location("pyproject.toml", 1)
_NO_PROMISE = "A known failure names a property of the battery."


def sarif(
    results: Sequence[Result],
    locations: Mapping[str, Location] | None = None,
    *,
    version: str,
    otherwise: Location = PROJECT,
    unfinished: Sequence[str] = (),
) -> dict[str, Any]:
    """One run: a rule a property, with its promise, and a result a failure.

    Everything that makes a check fail is of level ``error``: a broken promise, a known failure that passed, and a
    check that could not be made. Where a subject was put to no property at all, or the run did not come to its end, it
    did not succeed, and its notifications say why.

    Args:
        results: of the battery.
        locations: subject -> where its factory is.
        version: of this package.
        otherwise: the place of results whose factory is not in the sources; GitHub takes no result without one.
        unfinished: why not everything that was asked for was run.
    """
    promises = {each.property: each.promise or _NO_PROMISE for each in results}
    index = {name: position for position, name in enumerate(promises)}
    silent = [
        "\n".join([f"{subject}: nothing was checked", *reasons]) for subject, reasons in unchecked(results).items()
    ]
    notes = [printable(note) for note in (*unfinished, *silent)]
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
                "executionSuccessful": not notes,
                "toolExecutionNotifications": [{"level": "error", "message": {"text": note}} for note in notes],
            }
        ],
        "results": [
            _result(each, index[each.property], (locations or {}).get(each.subject), otherwise)
            for each in results
            if each.status in BAD
        ],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def write_sarif(
    results: Sequence[Result],
    path: str | Path,
    locations: Mapping[str, Location] | None = None,
    *,
    version: str,
    unfinished: Sequence[str] = (),
) -> None:
    """Write :func:`sarif` to ``path``, whole or not at all; what has no line is put at ``pyproject.toml``."""
    log = sarif(results, locations, version=version, otherwise=project_file(source_root()), unfinished=unfinished)
    content = json.dumps(log, indent=1) + "\n"
    write_atomically(Path(path), content.encode())


def _rule(name: str, promise: str) -> dict[str, Any]:
    # A target that cannot be checked, and a stale entry of known failures, are rules of no property.
    known = name in PROPERTIES
    return {
        "id": name,
        "shortDescription": {"text": promise},
        "fullDescription": {"text": promise},
        "help": {"text": f"{promise}\nTo check it alone: biases check TARGET --property {name}" if known else promise},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["attention"]},
    }


def _result(result: Result, rule: int, factory: Location | None, otherwise: Location) -> dict[str, Any]:
    place = factory if factory is not None and factory.inside else otherwise
    physical = {
        "artifactLocation": {"uri": quote(place.path), "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": place.line},
    }
    return {
        "ruleId": result.property,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": f"{result.subject}: {result.message or result.status}"},
        "locations": [
            {"physicalLocation": physical, "logicalLocations": [{"fullyQualifiedName": result.subject}]},
        ],
        "partialFingerprints": {"subjectAndProperty/v1": f"{result.subject}/{result.property}"},
        "properties": {
            "status": result.status,
            "examples": result.examples,
            "counterexample": result.counterexample and dict(result.counterexample),
            "reproduce": result.reproduce,
            "factory": factory and f"{factory.path}:{factory.line}",
        },
    }
