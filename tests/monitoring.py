"""What the alerts and the dashboard ask Prometheus for; of use where the chart cannot be rendered."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ALERTS = Path(__file__).parents[1] / "helm" / "files" / "alerts.yaml"
DASHBOARD = ALERTS.with_name("dashboard.json")

#: A metric of ours, in an expression without its strings.
NAME = re.compile(r"(?<![\w:])(alignez[\w:]*)")
#: Labels that Prometheus gives to whatever it scrapes in a cluster.
TARGET_LABELS = frozenset({"namespace", "job", "service", "pod", "instance"})

_SELECTOR = re.compile(NAME.pattern + r"(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@dataclass(frozen=True)
class Selector:
    """One metric of ours in an expression, and what is asked of its labels: (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is meant, apart from what only its scrape would give it."""
        return all(
            _matches(labels.get(label, ""), operator, value)
            for label, operator, value in self.matchers
            if label not in TARGET_LABELS
        )


def _matches(found: str, operator: str, value: str) -> bool:
    same = bool(re.fullmatch(value, found)) if "~" in operator else found == value
    return not same if operator.startswith("!") else same


def selectors(expression: str) -> set[Selector]:
    """Every series of ours that an expression names."""
    return {Selector(name, tuple(_MATCHER.findall(inside or ""))) for name, inside in _SELECTOR.findall(expression)}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def panel_expressions() -> list[tuple[str, str]]:
    """(title of the panel, expression)."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def expressions() -> list[tuple[str, str]]:
    """(name of the alert or title of the panel, expression)."""
    return [(rule["alert"], rule["expr"]) for rule in alerts()] + panel_expressions()
