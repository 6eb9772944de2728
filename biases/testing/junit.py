"""Results as JUnit XML, which CI systems read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as XML

from biases._files import write_atomically
from biases._markup import printable
from biases.testing.result import Result

_TAGS = {"failed": "failure", "xpassed": "failure", "error": "error", "not_applicable": "skipped", "xfailed": "skipped"}


def junit_xml(results: Sequence[Result]) -> bytes:
    """One test suite a subject, one test case a property; known failures count as skipped, with their reason."""
    root = XML.Element("testsuites", name="biases")
    for subject in dict.fromkeys(result.subject for result in results):
        own = [result for result in results if result.subject == subject]
        counts = {tag: sum(_TAGS.get(r.status) == tag for r in own) for tag in ("failure", "error", "skipped")}
        suite = XML.SubElement(
            root,
            "testsuite",
            name=subject,
            tests=str(len(own)),
            failures=str(counts["failure"]),
            errors=str(counts["error"]),
            skipped=str(counts["skipped"]),
            time=f"{sum(r.seconds for r in own):.3f}",
        )
        for result in own:
            case = XML.SubElement(
                suite, "testcase", classname=subject, name=result.property, time=f"{result.seconds:.3f}"
            )
            if result.status in _TAGS:
                lines = result.message.splitlines() or [result.status]
                told = XML.SubElement(case, _TAGS[result.status], message=printable(lines[0]))
                told.text = printable("\n\n".join(filter(None, (result.message, result.reproduce))))
    return XML.tostring(root, encoding="utf-8", xml_declaration=True)


def write_junit(results: Sequence[Result], path: str | Path) -> None:
    """Write :func:`junit_xml` to ``path``, whole or not at all."""
    write_atomically(Path(path), junit_xml(results))
