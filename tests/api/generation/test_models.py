"""`GET /v1/models`."""

from __future__ import annotations

from urllib.parse import quote

from tests.api.conftest import Tenant


def test_the_base_model_and_usable_profiles_are_listed(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("one")
    tenant.ready("two")
    tenant.pending("three")
    stranger.ready("other")

    for path in ("/v1/models", "/v1/users/anna/models"):
        listed = tenant.get(path).json()
        assert listed["object"] == "list"
        assert [row["id"] for row in listed["data"]] == ["fake", "fake@two", "fake@one"]
        assert [row["parent"] for row in listed["data"]] == [None, "fake", "fake"]


def test_every_name_that_a_request_may_use_can_be_shown(tenant: Tenant) -> None:
    tenant.ready("p")
    for base in ("/v1", "/v1/users/anna"):
        listed = {row["id"]: row for row in tenant.get(f"{base}/models").json()["data"]}
        for name in ("fake", "fake@p", "fake@p:default", "fake@p#1", "base@p"):
            reply = tenant.get(f"{base}/models/{quote(name, safe='')}")
            assert reply.status_code == 200, name
            alike = listed["fake" if name == "fake" else "fake@p"]
            assert alike["created"] > 0
            assert reply.json() == {**alike, "id": name.replace("base", "fake")}


def test_what_cannot_be_used_is_not_shown(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    tenant.pending("q")
    for base in ("/v1", "/v1/users/anna"):
        assert tenant.get(f"{base}/models/none").json()["error"]["code"] == "model_not_found"
        assert tenant.get(f"{base}/models/fake@none").status_code == 404
        assert stranger.get(f"{base}/models/fake@p").status_code == 404
        assert tenant.get(f"{base}/models/fake@q").status_code == 409
        for name in ("none", "fake@none", "fake@p:none", "fake@p%239", "fake@q"):
            assert tenant.get(f"{base}/models/{name}").json()["error"]["param"] == "model"
