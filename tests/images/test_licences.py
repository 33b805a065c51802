"""The licence list: what metadata says, what `audit.toml` allows, and the packages that are installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from images import licences
from images.licences import Declared, Policy, allows, check, licence_of, pins

ROOT = Path(__file__).parents[2]
POLICY = Policy.read()
PINS = {
    file.name: pins(file.read_text(encoding="utf-8").splitlines())
    for file in (ROOT / "constraints.txt", ROOT / "constraints-vllm.txt")
}


def said(expression: str | None = None, *names: str, version: str = "1.0") -> Declared:
    return Declared(version, expression, names)


# The real packages and the real file


def test_every_pinned_package_that_is_installed_here_is_allowed() -> None:
    known = licences.installed(Path(sys.prefix))
    here = {name: version for name, version in PINS["constraints.txt"].items() if name in known}
    assert len(here) > 80
    same = {name: version for name, version in here.items() if known[name].version.split("+")[0] == version}
    assert [each for each in check(same, known, POLICY) if each.problem] == []


def test_every_entry_has_a_reason_and_is_of_a_pinned_package() -> None:
    assert all(POLICY.allowed.values())
    assert all(entry["reason"] and entry["licence"] for entry in POLICY.packages.values())
    assert POLICY.packages.keys() <= PINS["constraints.txt"].keys() | PINS["constraints-vllm.txt"].keys()


def test_pins_are_read_without_comments() -> None:
    assert pins(["# text (alignez==0.1.0)", "", "Ruamel_Yaml==0.19  # why"]) == {"ruamel-yaml": "0.19"}
    assert all(len(found) > 100 and all(found.values()) for found in PINS.values())


# What metadata says


@pytest.mark.parametrize(
    ("declared", "licence"),
    [
        (said("MIT"), "MIT"),
        (said("mit and apache-2.0"), "MIT AND Apache-2.0"),
        (said(None, "Apache 2.0", "MIT License"), "Apache-2.0"),
        (said(None, "New BSD license text, see LICENSE", "BSD License"), "LicenseRef-BSD"),
        (said(None, "Apache Software License AND MIT License"), "Apache-2.0 AND MIT"),
        (said(None, "MPL-2.0 AND MIT"), "MPL-2.0 AND MIT"),
        (said(None, "some words"), None),
        (said(None), None),
    ],
)
def test_the_most_exact_name_wins(declared: Declared, licence: str | None) -> None:
    assert licence_of(declared, POLICY.names) == licence


def test_the_installed_and_the_reported_metadata_are_read_alike(tmp_path: Path) -> None:
    text = "Metadata-Version: 2.1\nName: A.Package\nVersion: 1.0\nLicense: BSD\n"
    classifiers = ["License :: OSI Approved :: BSD License", "License :: OSI Approved", "Topic :: Software"]
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "a_package-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(text + "".join(f"Classifier: {each}\n" for each in classifiers))
    report = {"name": "A.Package", "version": "1.0", "license": "BSD", "classifier": classifiers}
    expected = {"a-package": Declared("1.0", None, ("BSD", "BSD License"))}
    assert licences.installed(tmp_path) == expected
    assert licences.reported({"install": [{"metadata": report}]}) == expected


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("GPL-3.0-only", False), ("MIT AND GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True), ("GPL-3.0-only AND MIT OR MIT", True), ("GPL-3.0-only AND (MIT OR MIT)", False),
        ("MIT AND (GPL-3.0-only OR Apache-2.0)", True), ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only WITH Classpath-exception-2.0", False),
    ],
)  # fmt: skip
def test_expressions_are_judged_as_spdx_says(expression: str, allowed: bool) -> None:
    assert allows(expression, POLICY.allowed) == allowed


@pytest.mark.parametrize(
    ("declared", "licence", "problem"),
    [
        (said("MIT"), "MIT", None),
        (said("AGPL-3.0-only"), "AGPL-3.0-only", "not allowed by audit.toml"),
        (said(None, "my own"), None, "unknown licence, its metadata says: my own"),
        (said(None), None, "unknown licence, its metadata says: nothing"),
        (said("MIT", version="2.0"), None, "its metadata is not here (installed is 2.0)"),
        (None, None, "its metadata is not here (not installed)"),
        (said("MIT", version="1.0+cpu"), "MIT", None),
    ],
)
def test_what_is_not_allowed_or_not_known_is_a_problem(
    declared: Declared | None, licence: str | None, problem: str | None
) -> None:
    (found,) = check({"p": "1.0"}, {"p": declared} if declared else {}, POLICY)
    assert (found.licence, found.problem) == (licence, problem)


def test_a_package_of_its_own_licence_must_keep_it() -> None:
    policy = Policy(POLICY.allowed, POLICY.names, {"p": {"licence": "GPL-3.0-only", "reason": "a tool"}})
    for declared, problem in (
        (said("GPL-3.0-only"), None),
        (said(None), None),
        (said("AGPL-3.0-only"), "audit.toml allows it as GPL-3.0-only"),
    ):
        (found,) = check({"p": "1.0"}, {"p": declared}, policy)
        assert found.problem == problem


def test_the_command_writes_the_list_and_fails_for_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constraints, report, written = tmp_path / "constraints.txt", tmp_path / "report.json", tmp_path / "out" / "l.json"
    constraints.write_text("good==1\nbad==2\n")
    packages: list[dict[str, Any]] = [
        {"name": "good", "version": "1", "license_expression": "MIT"},
        {"name": "bad", "version": "2", "license_expression": "AGPL-3.0-only"},
    ]
    report.write_text(json.dumps({"install": [{"metadata": each} for each in packages]}))
    command = [str(written), str(constraints), "--report", str(report)]
    assert licences.main(command) == 1
    output = capsys.readouterr()
    assert "bad 2: AGPL-3.0-only: not allowed by audit.toml" in output.err
    assert "1 of 2 licences are allowed" in output.out
    assert [each["name"] for each in json.loads(written.read_text())] == ["bad", "good"]
    constraints.write_text("good==1\n")
    assert licences.main(command) == 0
