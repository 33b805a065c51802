"""`/v1/profiles/{profile}/versions`."""

from __future__ import annotations

from uuid import UUID

import pytest

from profiles.models import JobStatus
from tests.api.conftest import Tenant
from tests.api.fitting import QUERIES, WEAK, end_job


def test_a_new_version_takes_over_what_it_does_not_change(tenant: Tenant) -> None:
    tenant.ready("p", fit={"method": "alignez", "neighbors": 2})
    reply = tenant.post("/v1/profiles/p/versions", json={"fit": {"strength": 0.5}})

    assert reply.status_code == 202
    assert reply.json()["version"]["number"] == 2
    spec = tenant.get("/v1/profiles/p/versions/2").json()["spec"]
    assert spec["fit"] == {"method": "alignez", "neighbors": 2, "strength": 0.5}
    assert spec["persona"]["preferred"] == "cheerful"


def test_null_brings_a_setting_back_to_its_default(tenant: Tenant) -> None:
    tenant.ready("p", fit={"method": "alignez", "neighbors": 2, "strength": 0.5, "steps": 4, "layers": [0]})
    reset = {"neighbors": None, "strength": None, "layers": None, "seed": None}
    assert tenant.post("/v1/profiles/p/versions", json={"fit": reset}).status_code == 202
    assert tenant.get("/v1/profiles/p/versions/2").json()["spec"]["fit"] == {"method": "alignez", "steps": 4}
    # The method's own default is another method, whose settings are its own.
    tenant.post("/v1/profiles/p/versions", json={"fit": {"method": None}})
    assert tenant.get("/v1/profiles/p/versions/3").json()["spec"]["fit"] == {}
    # For `steps` null is a value, no end; its default has a name.
    tenant.post("/v1/profiles/p/versions", json={"fit": {"steps": None}})
    assert tenant.get("/v1/profiles/p/versions/4").json()["spec"]["fit"] == {"steps": None}
    tenant.post("/v1/profiles/p/versions", json={"fit": {"steps": "default"}})
    assert tenant.get("/v1/profiles/p/versions/5").json()["spec"]["fit"] == {"steps": "default"}


def test_a_ready_version_shows_its_evidence(tenant: Tenant) -> None:
    fitted = tenant.ready("p", "weak")
    version = tenant.get("/v1/profiles/p/versions/1").json()

    assert version["state"] == "ready"
    assert version["sha256"] == fitted.sha256
    assert version["layers"] == list(fitted.layers)
    assert (version["quality"], version["quality_reasons"]) == ("weak", [WEAK])
    assert version["method"] == version["fit_config"]["method"] == "distill"
    assert (version["lookup"], version["prefix"]) == ("none", None)
    assert version["report"] == f"/v1/profiles/{tenant.get('/v1/profiles/p').json()['id']}/versions/1/report"
    assert tenant.get(version["report"]).status_code == 200
    assert version["diagnostics"]
    assert version["base_model"] == "fake"


def test_versions_are_listed_highest_first(tenant: Tenant) -> None:
    tenant.ready("p")
    tenant.next_version("p")
    tenant.next_version("p")
    page = tenant.get("/v1/profiles/p/versions", params={"limit": 2}).json()
    assert [row["number"] for row in page["data"]] == [3, 2]
    rest = tenant.get("/v1/profiles/p/versions", params={"limit": 2, "cursor": page["next"]}).json()
    assert [row["number"] for row in rest["data"]] == [1]
    assert rest["next"] is None


def test_pairs_come_in_the_order_of_the_queries(tenant: Tenant) -> None:
    tenant.ready("p", queries=QUERIES, fit={"neighbors": 3})
    page = tenant.get("/v1/profiles/p/versions/1/pairs", params={"limit": 5}).json()
    rest = tenant.get("/v1/profiles/p/versions/1/pairs", params={"limit": 5, "cursor": page["next"]}).json()

    rows = page["data"] + rest["data"]
    assert [row["query"] for row in rows] == QUERIES
    assert [row["position"] for row in rows] == list(range(len(QUERIES)))
    assert all(row["help_response"] and row["harm_response"] for row in rows)


def test_another_method_takes_over_only_the_settings_that_mean_the_same_to_every_method(tenant: Tenant) -> None:
    tenant.ready("p", fit={"method": "distill", "contrast": 1.5, "rank": 4, "seed": 3})
    tenant.post("/v1/profiles/p/versions", json={"fit": {"method": "alignez"}})
    assert tenant.get("/v1/profiles/p/versions/2").json()["spec"]["fit"] == {"method": "alignez", "seed": 3}


def test_a_prefix_and_a_lookup_are_shown(tenant: Tenant) -> None:
    fitted = tenant.ready("p", fit={"method": "urial"})
    version = tenant.get("/v1/profiles/p/versions/1").json()
    assert fitted.prefix is not None
    assert version["prefix"] == {"system": fitted.prefix.system, "examples": [list(e) for e in fitted.prefix.examples]}
    assert (version["method"], version["layers"], version["lookup"]) == ("urial", [], "none")
    tenant.ready("q", fit={"method": "alignez"})
    assert tenant.get("/v1/profiles/q/versions/1").json()["lookup"] == "neighbors"


def test_a_pending_version_has_no_report(tenant: Tenant) -> None:
    tenant.pending("p")
    version = tenant.get("/v1/profiles/p/versions/1").json()
    assert (version["method"], version["report"]) == (None, None)
    assert tenant.get("/v1/profiles/p/versions/1/report").status_code == 404


@pytest.mark.parametrize("path", ["", "/1", "/1/pairs", "/1/report"])
def test_versions_of_unknown_and_foreign_profiles_are_not_found(tenant: Tenant, stranger: Tenant, path: str) -> None:
    tenant.ready("p")
    assert stranger.get(f"/v1/profiles/p/versions{path}").status_code == 404
    assert tenant.get(f"/v1/profiles/none/versions{path}").status_code == 404


def test_an_unknown_number_is_not_found_and_no_number_is_malformed(tenant: Tenant) -> None:
    tenant.ready("p")
    assert tenant.get("/v1/profiles/p/versions/7").status_code == 404
    assert tenant.get("/v1/profiles/p/versions/seven").status_code == 422
    assert tenant.get(f"/v1/profiles/p/versions/{2**40}").status_code == 422


def test_creating_a_version_of_a_foreign_profile_is_not_found(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    assert stranger.post("/v1/profiles/p/versions", json={}).status_code == 404


def test_a_version_in_use_cannot_be_archived_and_one_out_of_use_can(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    tenant.next_version("p")

    assert tenant.post("/v1/profiles/p/versions/1/archive").status_code == 409
    assert stranger.post("/v1/profiles/p/versions/2/archive").status_code == 404
    assert tenant.post("/v1/profiles/p/versions/2/archive").json()["state"] == "archived"
    again = tenant.post("/v1/profiles/p/versions/2/archive")
    assert (again.status_code, again.json()["error"]["details"]["state"]) == (409, "archived")


def test_a_failed_fit_shows_its_code(tenant: Tenant) -> None:
    made = tenant.pending("p")
    end_job(tenant.sessions, UUID(made["job"]["id"]), JobStatus.FAILED, "degenerate_directions")

    assert tenant.get("/v1/profiles/p/versions/1").json()["state"] == "failed"
    job = tenant.get(f"/v1/jobs/{made['job']['id']}").json()
    assert job["status"] == "failed"
    assert job["error"]["code"] == "degenerate_directions"
