"""From a profile's stored numbers to the `EditPlan` of one request.

Two ways: the profile's global directions, or (sample-conditional) directions fitted on the spot from the K fit queries
nearest to the request's own query. K rows make K×K Gram matrices, so the second costs well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from alignez_core.directions import fit_directions, fit_transport
from alignez_core.editing import EditPlan
from alignez_core.errors import InvalidInput
from alignez_core.fit_config import FitConfig


def conditional_plan(
    config: FitConfig,
    layers: Sequence[int],
    help: Tensor,
    harm: Tensor | None,
    plain: Tensor | None,
    *,
    strength: float | None = None,
) -> EditPlan:
    """The edit fitted from K neighbours' representations.

    Args:
        config: the version's; decides method, rule, steps and default strength.
        layers: L edited layers.
        help: (K, L, D). harm: (K, L, D), needed by `alignez`. plain: (K, L, D), needed by `transport`.
        strength: overrides the config's.
    Raises: DegenerateEmbeddings: the rows define no direction. InvalidInput: what the method needs is missing.
    Source: AlignEZ (arXiv 2406.03642), section 2.2 (sample-conditional estimation).
    """
    if config.method == "transport":
        fitted = fit_transport(help, _needed(plain, "plain", config))
        return global_plan(config, layers, theta=fitted.theta, tau=fitted.tau, strength=strength)
    found = fit_directions(help, _needed(harm, "harm", config))
    return global_plan(config, layers, theta_help=found.theta_help, theta_harm=found.theta_harm, strength=strength)


def global_plan(
    config: FitConfig,
    layers: Sequence[int],
    *,
    theta_help: Tensor | None = None,
    theta_harm: Tensor | None = None,
    theta: Tensor | None = None,
    tau: Tensor | None = None,
    strength: float | None = None,
) -> EditPlan:
    """The edit from a version's stored directions.

    Args:
        theta_help, theta_harm: (L, D), needed by `alignez`. theta: (L, D), tau: (L,), needed by `transport`.
        strength: overrides the config's.
    """
    dose = config.strength if strength is None else strength
    if config.method == "transport":
        return EditPlan.transport(
            layers, _needed(theta, "theta", config), _needed(tau, "tau", config), dose, config.effective_steps
        )
    return EditPlan.alignez(
        layers,
        _needed(theta_harm, "theta_harm", config),
        _needed(theta_help, "theta_help", config),
        dose,
        config.edit_rule,
        steps=config.effective_steps,
    )


def _needed(value: Tensor | None, name: str, config: FitConfig) -> Tensor:
    if value is None:
        raise InvalidInput(name, f"method {config.method!r} needs it")
    return value
