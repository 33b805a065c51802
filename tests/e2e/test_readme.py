"""The README's walk, its blocks executed in order in one shell, as a new user pastes them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The one line that this environment has done already.
SETUP = "make setup && . .venv/bin/activate\n"


def blocks() -> list[tuple[str, str]]:
    """(language, code) of the README's blocks, in order."""
    return WALK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_that_it_names_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_blocks_work_in_order(tmp_path: Path) -> None:
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for number, (language, code) in enumerate(blocks()):
        lines.append(f"echo '== block {number}'")
        if language == "python":
            (tmp_path / f"block{number}.py").write_text(code, encoding="utf-8")
            lines.append(f"python block{number}.py; echo")
        else:
            lines.append(code.replace(SETUP, ""))
    assert any("alignez up" in line for line in lines)
    script = tmp_path / "walk.sh"
    script.write_text("\n".join(lines), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ALIGNEZ_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "ALIGNEZ_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
    }
    walk = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580
    )
    said = f"{walk.stdout[-6000:]}\n{walk.stderr[-3000:]}\n{(tmp_path / 'up.log').read_text()[-2000:]}"
    assert walk.returncode == 0, said
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["quality"] == "good", said
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    answers = re.findall(r'"content":\s*"([^"]+)"', walk.stdout)
    assert len(answers) >= 2, said  # with the profile, and as the end user
