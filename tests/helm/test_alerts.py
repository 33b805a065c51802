"""Each alert fires on what it is about and on nothing that comes close, as promtool's own unit tests say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring import ALERTS, alerts

pytestmark = pytest.mark.helm

_TESTS = Path(__file__).with_name("alerts_test.yaml")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH")


def _promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _cases() -> list[dict[str, Any]]:
    content: dict[str, Any] = yaml.safe_load(_TESTS.read_text(encoding="utf-8"))
    assert [(_TESTS.parent / path).resolve() for path in content["rule_files"]] == [ALERTS]
    return [case for test in content["tests"] for case in test["promql_expr_test"]]


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(alerts())} rules found" in _promtool("check", "rules", str(ALERTS))


@needs_promtool
def test_the_alerts_do_as_their_unit_tests_say() -> None:
    _promtool("test", "rules", str(_TESTS))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for case in _cases():
        named = re.search(r'alertname="(\w+)", alertstate="firing"', case["expr"])
        if named is not None:
            (fires if case["exp_samples"] else silent).add(named[1])
    assert fires == silent == {alert["alert"] for alert in alerts()}


def test_no_alert_is_even_pending_in_a_healthy_release() -> None:
    healthy = [case for case in _cases() if case["expr"] == "ALERTS"]
    assert healthy
    assert not any(case["exp_samples"] for case in healthy)
