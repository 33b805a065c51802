"""checkov finds nothing in the chart but what a waiver explains, and no waiver is left over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helm import checkov
from tests.helm.charts import PROFILES, Manifest, container, pod, render, values_of
from tests.helm.checkov import Finding, Waiver

pytestmark = pytest.mark.helm

_ACCEPTED = checkov.waivers(checkov.WAIVERS.read_text(encoding="utf-8"))
_PLANTED = "planted"


def _with_mistakes() -> list[Manifest]:
    """The production release, in which several things are wrong."""
    manifests = render(values_of("values.production.yaml"))
    container(manifests, "relay").pop("livenessProbe")
    container(manifests, "control")["securityContext"].update(privileged=True, allowPrivilegeEscalation=True)
    pod(manifests, "worker")["securityContext"].update(runAsUser=999)
    pod(manifests, "inference").update(hostNetwork=True)
    return manifests


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """What checkov says of every values file, and of planted mistakes, in one run: its start takes seconds."""
    program = checkov.command()
    if program is None:
        if "CHECKOV" in os.environ:
            pytest.fail(f"{os.environ['CHECKOV']} is not there")
        pytest.skip("checkov is not installed: `make helm-check` does it")
    releases = {profile: render(values_of(profile)) for profile in PROFILES} | {_PLANTED: _with_mistakes()}
    return checkov.findings(releases, program, tmp_path_factory.mktemp("checkov"))


def test_every_finding_has_its_reason(found: list[Finding]) -> None:
    assert checkov.unexplained((each for each in found if each.profile != _PLANTED), _ACCEPTED) == []


def test_no_waiver_is_left_over(found: list[Finding]) -> None:
    assert checkov.unneeded((each for each in found if each.profile != _PLANTED), _ACCEPTED) == []


def test_planted_mistakes_are_found(found: list[Finding]) -> None:
    planted = checkov.unexplained((each for each in found if each.profile == _PLANTED), _ACCEPTED)
    assert {(each.check, each.object) for each in planted} == {
        ("CKV_K8S_8", "Deployment/relay"),
        ("CKV_K8S_16", "Deployment/control"),  # privileged
        ("CKV_K8S_20", "Deployment/control"),  # may gain privileges
        ("CKV_K8S_40", "Deployment/worker"),  # a low user id
        ("CKV_K8S_19", "Deployment/inference"),  # the host's network
    }


# The waivers themselves, without checkov

_FINDING = Finding("CKV_K8S_11", "CPU limits should be set", "values.yaml", "Deployment/worker")
_REASON = "because of this and that, which is long enough"


def test_a_finding_without_waiver_is_unexplained() -> None:
    for other in (
        Waiver("CKV_K8S_12", ("*",), ("*",), _REASON),
        Waiver("CKV_K8S_11", ("Deployment/relay",), ("*",), _REASON),
        Waiver("CKV_K8S_11", ("*",), ("values.small.yaml",), _REASON),
    ):
        assert checkov.unexplained([_FINDING], [other]) == [_FINDING]
    assert checkov.unexplained([_FINDING], [Waiver("CKV_K8S_11", ("Deployment/*",), ("*",), _REASON)]) == []


def test_a_waiver_that_covers_nothing_is_left_over() -> None:
    needed = Waiver("CKV_K8S_11", ("Deployment/worker",), ("values.yaml",), _REASON)
    assert checkov.unneeded([_FINDING], [needed]) == []
    wider = Waiver("CKV_K8S_11", ("Deployment/worker", "Pod/test"), ("values.yaml", "values.lint.yaml"), _REASON)
    assert checkov.unneeded([_FINDING], [wider]) == [
        "CKV_K8S_11: no finding of Pod/test; remove it",
        "CKV_K8S_11: no finding in values.lint.yaml; remove it",
    ]
    assert len(checkov.unneeded([], [needed])) == 2


def test_a_waiver_without_a_reason_is_refused() -> None:
    text = '[[waiver]]\ncheck = "CKV_K8S_11"\nobjects = ["*"]\nprofiles = ["*"]\nreason = "because"\n'
    with pytest.raises(ValueError, match="CKV_K8S_11 gives no reason"):
        checkov.waivers(text)


def test_a_missing_program_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOV", str(tmp_path / "checkov"))
    assert checkov.command() is None
    (tmp_path / "checkov").touch()
    assert checkov.command() == tmp_path / "checkov"
