"""What an audit says and how it ends, with programs in place of pip-audit and its database."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from images.vulnerabilities import audit

KNOWN = {"name": "good", "version": "1", "vulns": []}
SKIPPED = {"name": "odd", "skip_reason": "Dependency not found"}
VULNERABLE = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


def run(tmp_path: Path, packages: list[dict[str, Any]], status: int = 0) -> tuple[int, list[str]]:
    """An audit whose database answers this."""
    text = json.dumps({"dependencies": packages})
    code = f"import sys; open(sys.argv[sys.argv.index('--output') + 1], 'w').write({text!r}); sys.exit({status})"
    return audit(Path("pins.txt"), tmp_path / "out.json", {}, [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([KNOWN, KNOWN], 0, "pins.txt: audited 2 packages"),
        ([KNOWN, VULNERABLE], 1, "bad 2: PYSEC-1, fixed in 3"),
        ([SKIPPED, VULNERABLE], 1, "bad 2: PYSEC-1, fixed in 3"),
        ([KNOWN, SKIPPED], 2, "pins.txt: NOT AUDITED: 1 packages that the database does not know: odd"),
        ([SKIPPED] * 9, 2, "pins.txt: NOT AUDITED: the vulnerability database cannot be reached; it knows no package"),
        ([], 2, "pins.txt: NOT AUDITED: the vulnerability database cannot be reached; it knows no package"),
    ],
)
def test_what_was_not_audited_is_never_a_success(
    tmp_path: Path, packages: list[dict[str, Any]], status: int, line: str
) -> None:
    found, lines = run(tmp_path, packages, status=int(status == 1))
    assert found == status
    assert line in lines


def test_a_database_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")  # of an earlier audit
    program = [sys.executable, "-c", "raise ConnectionError('no route')"]
    status, lines = audit(Path("pins.txt"), tmp_path / "out.json", {}, program)
    assert status == 2
    assert lines == [
        "pins.txt: NOT AUDITED: the vulnerability database cannot be reached, or pip-audit failed: "
        "ConnectionError: no route"
    ]


def test_pip_audit_is_asked_for_the_pins_alone(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; sys.exit(' '.join(sys.argv[1:]))"]
    _, (line,) = audit(Path("pins.txt"), tmp_path / "out.json", {"PYSEC-9": "not called"}, program)
    for words in ("--requirement pins.txt", "--no-deps --disable-pip", "--ignore-vuln PYSEC-9"):
        assert words in line
