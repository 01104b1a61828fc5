"""What the doctor found, on the console."""

from hashfield.cli.shared import say
from hashfield.data.doctor_case import Finding
from hashfield.data.json_fields import some

SAID_BY_NOTES = ("stray", "box", "up")
"""Kinds of findings that the notes of reading a scene tell already."""
MOST_LINES = 3
"""Lines about one kind of finding on the console."""


def say_findings(findings: list[Finding]) -> None:
    """A line for each finding; of many of one kind, one line for all of them."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for kind, found in kinds.items():
        if len(found) <= MOST_LINES:
            for finding in found:
                say(f"warning: {finding.line()}")
        else:
            names = some([name for finding in found for name in finding.photos], 8)
            say(f"warning: {kind}: {names}: the first {found[0].text}: {found[0].remedy}")
