"""From stored numbers to a request's plan: what each method needs, and what it makes of it."""

from __future__ import annotations

import pytest
import torch

from alignez_core.directions import fit_directions, fit_transport
from alignez_core.editing import EditPlan
from alignez_core.errors import InvalidInput
from alignez_core.fit_config import FitConfig
from alignez_core.request_edit import conditional_plan, global_plan

K, L, D = 6, 2, 8
LAYERS = (1, 3)
TRANSPORT = FitConfig(strength=0.5)
ALIGNEZ = FitConfig(method="alignez", edit_rule="simultaneous", strength=0.75, steps=4)
HELP, HARM, PLAIN = torch.randn(3, K, L, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("config", "missing"), [(TRANSPORT, "plain"), (ALIGNEZ, "harm")])
def test_a_conditional_plan_names_the_rows_that_its_method_lacks(config: FitConfig, missing: str) -> None:
    rows = {"harm": HARM, "plain": PLAIN, missing: None}
    with pytest.raises(InvalidInput, match=f"{missing}: method '{config.method}' needs it"):
        conditional_plan(config, LAYERS, HELP, **rows)


@pytest.mark.parametrize(
    ("config", "missing"),
    [(TRANSPORT, "theta"), (TRANSPORT, "tau"), (ALIGNEZ, "theta_harm"), (ALIGNEZ, "theta_help")],
)
def test_a_global_plan_names_the_direction_that_its_method_lacks(config: FitConfig, missing: str) -> None:
    rows = torch.ones(L, D)
    stored = {"theta": rows, "tau": torch.ones(L), "theta_harm": rows, "theta_help": -rows}
    del stored[missing]
    with pytest.raises(InvalidInput, match=f"{missing}: method '{config.method}' needs it"):
        global_plan(config, LAYERS, **stored)


def test_what_the_method_does_not_need_may_be_left_out() -> None:
    assert conditional_plan(TRANSPORT, LAYERS, HELP, None, PLAIN) == conditional_plan(
        TRANSPORT, LAYERS, HELP, HARM, PLAIN
    )
    assert conditional_plan(ALIGNEZ, LAYERS, HELP, HARM, None) == conditional_plan(ALIGNEZ, LAYERS, HELP, HARM, PLAIN)


def test_transport_s_plan_is_fitted_from_help_and_plain_with_the_version_s_settings() -> None:
    fitted = fit_transport(HELP, PLAIN)
    expected = EditPlan.transport(LAYERS, fitted.theta, fitted.tau, 0.5, steps=1)
    assert conditional_plan(TRANSPORT, LAYERS, HELP, HARM, PLAIN) == expected
    assert global_plan(TRANSPORT, LAYERS, theta=fitted.theta, tau=fitted.tau) == expected


def test_alignez_s_plan_is_fitted_from_help_and_harm_with_the_version_s_settings() -> None:
    found = fit_directions(HELP, HARM)
    expected = EditPlan.alignez(LAYERS, found.theta_harm, found.theta_help, 0.75, "simultaneous", steps=4)
    assert conditional_plan(ALIGNEZ, LAYERS, HELP, HARM, PLAIN) == expected
    assert global_plan(ALIGNEZ, LAYERS, theta_help=found.theta_help, theta_harm=found.theta_harm) == expected


@pytest.mark.parametrize("config", [TRANSPORT, ALIGNEZ])
def test_a_request_s_strength_replaces_the_version_s_and_zero_is_the_bare_model(config: FitConfig) -> None:
    plans = {s: conditional_plan(config, LAYERS, HELP, HARM, PLAIN, strength=s) for s in (None, 0.0, 1.0)}
    assert plans[0.0].is_identity
    assert len({plan.sha256 for plan in plans.values()}) == 3
    assert plans[None] == conditional_plan(config, LAYERS, HELP, HARM, PLAIN, strength=config.strength)
