"""`/v1/users/{user}/profile`."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.api.conftest import Tenant


def test_an_end_user_gets_replaces_and_loses_a_profile(tenant: Tenant) -> None:
    tenant.ready("one")
    tenant.ready("two")
    path = "/v1/users/anna/profile"

    assert tenant.get(path).status_code == 404
    assert tenant.put(path, json={"profile": "one"}).json()["profile"]["name"] == "one"
    replaced = tenant.put(path, json={"profile": "two", "version": 1}).json()
    assert replaced == tenant.get(path).json()
    assert (replaced["user"], replaced["profile"]["name"], replaced["version"]) == ("anna", "two", 1)
    assert tenant.delete(path).status_code == 204
    assert tenant.delete(path).status_code == 404


@pytest.mark.parametrize("user", ["anna@example.org", "Жанна", "a b", "user#1", "x" * 200])
def test_user_ids_are_the_callers_own(tenant: Tenant, user: str) -> None:
    tenant.ready("p")
    path = f"/v1/users/{quote(user, safe='')}/profile"
    assert tenant.put(path, json={"profile": "p"}).json()["user"] == user
    assert tenant.get(path).json()["user"] == user


def test_assignments_belong_to_their_tenant(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    assert stranger.get("/v1/users/anna/profile").status_code == 404
    assert stranger.delete("/v1/users/anna/profile").status_code == 404
    assert stranger.put("/v1/users/anna/profile", json={"profile": "p"}).status_code == 404


def test_unknown_targets_and_contradictions_are_refused(tenant: Tenant) -> None:
    tenant.ready("p")
    path = "/v1/users/anna/profile"
    assert tenant.put(path, json={"profile": "none"}).status_code == 404
    assert tenant.put(path, json={"profile": "p", "alias": "none"}).status_code == 404
    assert tenant.put(path, json={"profile": "p", "version": 9}).status_code == 404
    assert tenant.put(path, json={"profile": "p", "version": 1, "alias": "default"}).status_code == 422
    assert tenant.put(f"/v1/users/{'x' * 201}/profile", json={"profile": "p"}).status_code == 422


def test_what_end_users_have_cannot_be_taken_away(tenant: Tenant) -> None:
    tenant.ready("p")
    tenant.next_version("p")
    tenant.put("/v1/profiles/p/aliases/beta", json={"version": 1})
    tenant.put("/v1/users/anna/profile", json={"profile": "p", "alias": "beta"})
    tenant.put("/v1/users/ben/profile", json={"profile": "p", "version": 2})
    for reply in (tenant.delete("/v1/profiles/p/aliases/beta"), tenant.post("/v1/profiles/p/versions/2/archive")):
        assert reply.status_code == 409
        assert reply.json()["error"]["code"] == "still_assigned"
        assert reply.json()["error"]["details"] == {"end_users": 1}
    for user in ("anna", "ben"):
        assert tenant.chat(user=user).json()["alignez"]["profile"] == "p"


def test_a_version_that_is_not_ready_cannot_be_assigned(tenant: Tenant) -> None:
    tenant.pending("p")
    reply = tenant.put("/v1/users/anna/profile", json={"profile": "p", "version": 1})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "version_not_ready")


@pytest.mark.parametrize("user", [".", "..", "a/b", "/", "a\tb", "a\x7f", "   ", "x" * 201])
def test_an_id_is_refused_as_user_wherever_it_cannot_be_assigned(tenant: Tenant, user: str) -> None:
    """What `user` takes can be given a profile, and the other way round."""
    reply = tenant.chat(user=user)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "user")
    reply = tenant.post("/v1/completions", json={"prompt": "x", "user": user})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "user")
    path = f"/v1/users/{quote(user, safe='').replace('.', '%2E')}/profile"
    for reply in (tenant.get(path), tenant.delete(path), tenant.put(path, json={"profile": "p"})):
        assert reply.status_code in (404, 422)
        assert reply.status_code == 422 or "/" in user or user in (".", "..")


def test_a_refused_slash_is_named(tenant: Tenant) -> None:
    assert "'/'" in tenant.chat(user="a/b").json()["error"]["message"]
    assert tenant.chat(user="").status_code == 200


@pytest.mark.parametrize("user", ["%FF", "%FE", "a%C3", "%ED%A0%80", "%C0%AF"])
def test_an_id_that_is_not_utf_8_is_refused(tenant: Tenant, user: str) -> None:
    """A server replaces such bytes, so that all of them would be one end user."""
    tenant.ready("p")
    for suffix, body in (("profile", {"profile": "p"}), ("chat/completions", {}), ("completions", {})):
        send = tenant.put if suffix == "profile" else tenant.post
        reply = send(f"/v1/users/{user}/{suffix}", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_request")
        assert "UTF-8" in reply.json()["error"]["message"]
    for path in (f"/v1/profiles/{user}", f"/v1/models/{user}", f"/v1/profiles?cursor={user}"):
        assert tenant.get(path).status_code == 400
    assert tenant.put("/v1/users/%EF%BF%BD/profile", json={"profile": "p"}).json()["user"] == "\ufffd"
