"""Known vulnerabilities of the pinned packages, asked by pip-audit. Needs the network.

python -m images.vulnerabilities artifacts constraints.txt constraints-vllm.txt

Status 1: a package has a known vulnerability. Status 2: packages could not be audited, such as those that the database
does not know. pip-audit by itself calls that a success, also where a proxy answers 404 in place of the database.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_POLICY = Path(__file__).with_name("audit.toml")
_PIP_AUDIT = (sys.executable, "-m", "pip_audit")
_TIMEOUT_S = 1800
_SHOWN = 5


def audit(
    constraints: Path, result: Path, ignored: Mapping[str, str], program: Sequence[str] = _PIP_AUDIT
) -> tuple[int, list[str]]:
    """Audits one constraints file; returns the exit status, and lines for a person.

    Args:
        result: file for pip-audit's own report. ignored: vulnerability → reason. program: pip-audit's command.
    """
    result.unlink(missing_ok=True)
    command = [*program, "--requirement", str(constraints), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    command += ["--format", "json", "--output", str(result)]
    for vulnerability in ignored:
        command += ["--ignore-vuln", vulnerability]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if not result.exists():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return 2, [
            f"{constraints}: NOT AUDITED: the vulnerability database cannot be reached, or pip-audit failed: {last}"
        ]
    return _judge(constraints, json.loads(result.read_text(encoding="utf-8"))["dependencies"])


def _judge(constraints: Path, packages: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    status = 1 if lines else 0
    if len(skipped) == len(packages):
        lines.append(f"{constraints}: NOT AUDITED: the vulnerability database cannot be reached; it knows no package")
    elif skipped:
        names = ", ".join(skipped[:_SHOWN]) + (", …" if len(skipped) > _SHOWN else "")
        lines.append(f"{constraints}: NOT AUDITED: {len(skipped)} packages that the database does not know: {names}")
    else:
        lines.append(f"{constraints}: audited {len(packages)} packages")
    return status or (2 if skipped or not packages else 0), lines


def main(arguments: Sequence[str]) -> int:
    """Audits every file; returns the highest status. Args: the folder for results, then constraints files."""
    folder, *files = (Path(each) for each in arguments)
    folder.mkdir(parents=True, exist_ok=True)
    ignored = tomllib.loads(_POLICY.read_text(encoding="utf-8"))["ignored"]
    status = 0
    for file in files:
        found, lines = audit(file, folder / f"vulnerabilities-{file.stem}.json", ignored)
        print("\n".join(lines), file=sys.stderr if found else sys.stdout)
        status = max(status, found)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
