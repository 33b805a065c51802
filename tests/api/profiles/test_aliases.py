"""Aliases, promotion and rollback."""

from __future__ import annotations

import pytest

from tests.api.conftest import Tenant


@pytest.fixture
def three(tenant: Tenant) -> Tenant:
    """A tenant whose profile `p` has three ready versions, the first in use."""
    tenant.ready("p")
    tenant.next_version("p")
    tenant.next_version("p")
    return tenant


def default(tenant: Tenant) -> dict[str, float]:
    return dict(tenant.get("/v1/profiles/p").json()["aliases"]["default"])


def test_the_first_ready_version_is_the_default(tenant: Tenant) -> None:
    tenant.ready("p")
    assert default(tenant) == {"1": 1.0}


def test_promoting_moves_the_default_and_rolling_back_undoes_it(three: Tenant) -> None:
    assert three.post("/v1/profiles/p/promote", json={"version": 2}).json()["targets"] == {"2": 1.0}
    assert three.post("/v1/profiles/p/promote", json={"version": 3}).status_code == 200
    assert three.post("/v1/profiles/p/rollback").json() == {"alias": "default", "targets": {"2": 1.0}}
    assert three.post("/v1/profiles/p/rollback").json()["targets"] == {"1": 1.0}
    last = three.post("/v1/profiles/p/rollback")
    assert (last.status_code, last.json()["error"]["code"]) == (409, "nothing_to_roll_back_to")
    assert default(three) == {"1": 1.0}


def test_promotion_and_rollback_are_audited(three: Tenant, operator: Tenant) -> None:
    three.post("/v1/profiles/p/promote", json={"version": 2})
    three.post("/v1/profiles/p/rollback")
    rows = operator.get("/admin/audit", params={"tenant": str(three.caller.tenant_id)}).json()["data"]
    assert [row["action"] for row in rows[:3]] == ["operator.read", "profile.rollback", "profile.promote"]
    assert {row["key_id"] for row in rows[1:3]} == {str(three.caller.key_id)}


def test_an_alias_points_to_one_version_or_spreads_over_several(three: Tenant) -> None:
    assert three.put("/v1/profiles/p/aliases/beta", json={"version": 2}).json()["targets"] == {"2": 1.0}
    spread = three.put("/v1/profiles/p/aliases/beta", json={"weights": {"1": 3, "3": 1}}).json()
    assert spread["targets"] == {"1": 0.75, "3": 0.25}
    listed = {row["alias"]: row["targets"] for row in three.get("/v1/profiles/p/aliases").json()["data"]}
    assert listed == {"default": {"1": 1.0}, "beta": {"1": 0.75, "3": 0.25}}


def test_an_alias_can_be_removed_but_the_default_cannot(three: Tenant) -> None:
    three.put("/v1/profiles/p/aliases/beta", json={"version": 2})
    assert three.delete("/v1/profiles/p/aliases/beta").status_code == 204
    assert three.delete("/v1/profiles/p/aliases/beta").status_code == 404
    assert three.delete("/v1/profiles/p/aliases/default").status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("put", "/v1/profiles/p/aliases/beta", {"version": 9}),
        ("put", "/v1/profiles/p/aliases/beta", {"weights": {"9": 1}}),
        ("post", "/v1/profiles/p/promote", {"version": 9}),
    ],
)
def test_a_version_that_does_not_exist_is_not_found(
    three: Tenant, method: str, path: str, body: dict[str, object]
) -> None:
    assert getattr(three, method)(path, json=body).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{}, {"version": 1, "weights": {"1": 1}}, {"weights": {}}, {"weights": {"1": 0}}, {"weights": {"x": 1}},
     {"weights": {"1": -1}}, {"version": 0}],
)  # fmt: skip
def test_malformed_targets_are_refused(three: Tenant, body: dict[str, object]) -> None:
    assert three.put("/v1/profiles/p/aliases/beta", json=body).status_code == 422


def test_a_version_that_is_not_ready_cannot_be_promoted(tenant: Tenant) -> None:
    job = tenant.pending("p")["job"]["id"]
    reply = tenant.post("/v1/profiles/p/promote", json={"version": 1})
    assert reply.status_code == 409
    assert (
        reply.json()["error"]["details"] | {"state": "pending", "job": f"/v1/jobs/{job}"}
        == reply.json()["error"]["details"]
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "/v1/profiles/p/aliases", None),
        ("put", "/v1/profiles/p/aliases/beta", {"version": 1}),
        ("delete", "/v1/profiles/p/aliases/default2", None),
        ("post", "/v1/profiles/p/promote", {"version": 1}),
        ("post", "/v1/profiles/p/rollback", None),
    ],
)
def test_a_foreign_profile_is_not_found(
    three: Tenant, stranger: Tenant, method: str, path: str, body: dict[str, object] | None
) -> None:
    assert getattr(stranger, method)(path, json=body).status_code == 404
