"""Secrets reach whom they are for, by variable or file, and the owner of the tables is the migration alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from profiles.settings import DatabaseSettings, ModelSettings
from tests.helm.charts import KEDA, Manifest, container, find, merged, nested, pod, render, texts, values_of, variables
from tests.helm.objects import DatabaseSecret, database_secret, files_of, workloads
from tests.helm.policy import violations
from tests.helm.policy_security import APPLICATION_ROLE
from worker.settings import WorkerSettings

pytestmark = pytest.mark.helm

_EMBEDDED = {"database.mode": "embedded", "broker.mode": "embedded"}
_FILES = {"secrets.asFiles": True}
_JUDGE = {"judge.url": "https://judge.example/v1", "judge.model": "large", "judge.existingSecret": "judges"}
_ALL = {**_FILES, **_JUDGE, "model.huggingFaceToken.existingSecret": "hub"}


# Roles


def _roles(manifests: list[Manifest]) -> dict[str, DatabaseSecret]:
    """Where the URL of each workload's first container comes from."""
    found = {
        each.name.removeprefix("rel-alignez-"): database_secret(each, each.pod["containers"][0])
        for each in workloads(manifests)
    }
    return {name: secret for name, secret in found.items() if secret is not None}


@pytest.mark.parametrize("as_files", [False, True], ids=["variables", "files"])
def test_only_the_migration_has_the_owner_s_url(as_files: bool) -> None:
    settings = {"secrets.asFiles": as_files, "database.existingSecret": "app", "database.owner.urlKey": "OWNER"}
    application, owner = DatabaseSecret(("app", "DATABASE_URL"), None), DatabaseSecret(("alignez-owner", "OWNER"), None)
    assert _roles(render(nested(settings))) == {
        "control": application, "inference": application, "worker": application, "relay": application, "migrate": owner
    }  # fmt: skip


@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
def test_processes_of_an_embedded_database_connect_as_the_application(upgrade: bool) -> None:
    roles = _roles(render(nested(_EMBEDDED), upgrade=upgrade))
    migration = roles.pop("migrate" if upgrade else "migrate-first")
    assert migration == DatabaseSecret(("alignez-owner", "POSTGRES_PASSWORD"), "alignez")
    assert set(roles) == {"control", "inference", "worker", "relay"}
    assert set(roles.values()) == {DatabaseSecret(("alignez", "DATABASE_PASSWORD"), APPLICATION_ROLE)}


@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
def test_an_embedded_database_gets_its_role_before_each_migration(upgrade: bool) -> None:
    """On a new volume and an old one, and after Postgres answers."""
    name = "migrate" if upgrade else "migrate-first"
    spec = pod(render(nested(_EMBEDDED), upgrade=upgrade), name, "Job")
    assert [each["name"] for each in spec["initContainers"]] == ["wait-for-postgres", "application-role"]
    role = spec["initContainers"][1]
    compile(role["args"][2], "application_role.py", "exec")
    by_name = {each["name"]: each for each in role["env"]}
    password = by_name["APPLICATION_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert password == {"name": "alignez", "key": "DATABASE_PASSWORD"}
    assert "//alignez:$(DATABASE_PASSWORD)@" in by_name["ALIGNEZ_DATABASE_URL"]["value"]


def test_the_role_of_an_external_database_is_its_administrator_s() -> None:
    spec = pod(render(), "migrate", "Job")
    assert [each["name"] for each in spec["initContainers"]] == ["wait-for-postgres"]


_Mistake = Callable[[list[Manifest]], Any]


def _reference(manifests: list[Manifest], component: str, variable: str, secret: str, key: str) -> None:
    for each in container(manifests, component)["env"]:
        if each["name"] == variable:
            each["valueFrom"]["secretKeyRef"] = {"name": secret, "key": key}


def _set(manifests: list[Manifest], component: str, kind: str, variable: str, value: str) -> None:
    for each in container(manifests, component, kind)["env"]:
        if each["name"] == variable:
            each["value"] = value


_ROLE_MISTAKES: dict[str, tuple[_Mistake, str]] = {
    "the owner's password in a process": (
        lambda m: _reference(m, "relay", "DATABASE_PASSWORD", "database-owner", "POSTGRES_PASSWORD"),
        "Deployment/rel-alignez-relay relay: has the secret of the tables' owner",
    ),
    "the owner's password beside the application's": (
        lambda m: container(m, "control")["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "database-owner", "key": "POSTGRES_PASSWORD"}}}
        ),
        "Deployment/rel-alignez-control api: has the secret of the tables' owner",
    ),
    "a process as the owner": (
        lambda m: _set(
            m, "worker", "Deployment", "ALIGNEZ_DATABASE_URL", "postgresql://alignez:$(DATABASE_PASSWORD)@h/d"
        ),
        "worker: connects as alignez, not as alignez_app",
    ),
    "the migration as the application": (
        lambda m: _set(
            m, "migrate-first", "Job", "ALIGNEZ_DATABASE_URL", "postgresql://alignez_app:$(DATABASE_PASSWORD)@h/d"
        ),
        "migrate: migrates as alignez_app, which owns nothing",
    ),
    "a process without a database": (
        lambda m: container(m, "relay").update(env=[]),
        "Deployment/rel-alignez-relay relay: no URL of the database",
    ),
    "the owner's password for KEDA": (
        lambda m: find(m, "TriggerAuthentication", "-worker")["spec"]["secretTargetRef"].append(
            {"parameter": "password", "name": "database-owner", "key": "POSTGRES_PASSWORD"}
        ),
        "TriggerAuthentication/rel-alignez-worker: has the secret of the tables' owner",
    ),
}


@pytest.mark.parametrize("mistake", _ROLE_MISTAKES)
def test_a_mistake_with_roles_is_found(mistake: str) -> None:
    plant, complaint = _ROLE_MISTAKES[mistake]
    manifests = render(values_of("values.lint.yaml"))
    assert violations(manifests) == []
    plant(manifests)
    assert any(complaint in one for one in violations(manifests)), violations(manifests)


def test_an_external_owner_s_url_in_a_process_is_found() -> None:
    manifests = render()
    _reference(manifests, "inference", "ALIGNEZ_DATABASE_URL", "alignez-owner", "DATABASE_URL")
    assert any("inference api: has the secret of the tables' owner" in one for one in violations(manifests))


# Files


def _files(manifests: list[Manifest], component: str, kind: str = "Deployment") -> dict[str, tuple[str, str]]:
    (workload,) = [
        each for each in workloads(manifests) if each.name == f"rel-alignez-{component}" and each.kind == kind
    ]
    return files_of(workload, "secrets")


def test_each_pod_mounts_its_own_keys_and_no_others() -> None:
    manifests = render(nested(_ALL))
    application, owner = ("alignez", "DATABASE_URL"), ("alignez-owner", "DATABASE_URL")
    broker = {"alignez_broker_url": ("alignez", "BROKER_URL")}
    hub = {"hf_token": ("hub", "HF_TOKEN")}
    assert _files(manifests, "migrate", "Job") == {"alignez_database_url": owner}
    database = {"alignez_database_url": application}
    assert _files(manifests, "control") == _files(manifests, "relay") == {**database, **broker}
    assert _files(manifests, "inference") == {**database, **hub}
    assert _files(manifests, "worker") == {
        **database, **broker, **hub, "alignez_worker_judge_key": ("judges", "JUDGE_KEY")
    }  # fmt: skip
    everything = render(nested({**_ALL, "routing.userPaths": "all"}))
    assert _files(everything, "inference") == {**database, **broker, **hub}


def test_files_take_the_place_of_variables() -> None:
    manifests = render(nested(_ALL))
    for workload in workloads(manifests):
        for each in workload.containers:
            assert not [one["name"] for one in each.get("env", []) if "valueFrom" in one], str(workload)
    found = variables(manifests, "worker")
    assert found["ALIGNEZ_SECRETS_DIR"] == "/etc/alignez/secrets"
    assert found["HF_TOKEN_PATH"] == "/etc/alignez/secrets/hf_token"
    assert "HF_TOKEN_PATH" not in variables(render(nested(_FILES)), "worker")
    assert "ALIGNEZ_SECRETS_DIR" not in variables(render(), "worker")
    (volume,) = [each for each in pod(manifests, "worker")["volumes"] if each["name"] == "secrets"]
    assert volume["projected"]["defaultMode"] == 0o440


def test_the_processes_read_the_files_that_the_chart_mounts(tmp_path: Path) -> None:
    urls = {"alignez_database_url": "postgresql://alignez_app:p@h/d", "alignez_broker_url": "amqp://u:p@h:5672/"}
    for name in _files(render(nested(_ALL)), "worker"):
        (tmp_path / name).write_text(urls.get(name, "key") + "\n", encoding="utf-8")
    with mock.patch.dict(os.environ, {"ALIGNEZ_SECRETS_DIR": str(tmp_path)}, clear=True):
        database, worker = DatabaseSettings(), WorkerSettings()
        assert ModelSettings().model is None
    assert database.database_url == "postgresql+psycopg://alignez_app:p@h/d"
    assert database.broker_url == urls["alignez_broker_url"]
    assert worker.judge_key is not None
    assert worker.judge_key.get_secret_value() == "key"


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
@pytest.mark.parametrize("route", ["regex", "all"])
def test_files_combine_with_the_other_options(kind: str, route: str) -> None:
    base = {**_ALL, "broker.kind": kind, "routing.userPaths": route, "ingress.enabled": True}
    for scaled, source, upgrade in itertools.product((False, True), ("jobs", "broker"), (False, True)):
        keda = {**KEDA, "worker.autoscaling.source": source} if scaled else {}
        assert violations(render(nested({**base, **keda}), upgrade=upgrade)) == []


def _secrets_volume(manifests: list[Manifest], component: str = "worker") -> dict[str, Any]:
    (volume,) = [each for each in pod(manifests, component)["volumes"] if each["name"] == "secrets"]
    return volume


def _secrets_mount(manifests: list[Manifest], component: str = "worker") -> dict[str, Any]:
    (mount,) = [each for each in container(manifests, component)["volumeMounts"] if each["name"] == "secrets"]
    return mount


_FILE_MISTAKES: dict[str, tuple[_Mistake, str]] = {
    "all keys of a secret": (
        lambda m: _secrets_volume(m)["projected"]["sources"][0]["secret"].pop("items"),
        "Deployment/rel-alignez-worker: volume secrets mounts all keys of a secret",
    ),
    "a whole secret as a volume": (
        lambda m: pod(m, "control")["volumes"].append({"name": "x", "secret": {"secretName": "alignez"}}),
        "Deployment/rel-alignez-control: volume x mounts all keys of a secret",
    ),
    "a writable mount": (
        lambda m: _secrets_mount(m).pop("readOnly"),
        "Deployment/rel-alignez-worker worker: its secrets are mounted writable",
    ),
    "files that nobody looks for": (
        lambda m: container(m, "relay")["env"].pop(0),
        "relay: secrets are mounted at ['/etc/alignez/secrets'], and ALIGNEZ_SECRETS_DIR is None",
    ),
    "files elsewhere": (
        lambda m: _secrets_mount(m, "control").update(mountPath="/secrets"),
        "api: secrets are mounted at ['/secrets'], and ALIGNEZ_SECRETS_DIR is /etc/alignez/secrets",
    ),
    "a variable beside the files": (
        lambda m: container(m, "control")["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        ),
        "api: secrets are files, but ['X'] come by variable",
    ),
    "a file that the process does not read": (
        lambda m: _secrets_volume(m, "control")["projected"]["sources"][1]["secret"]["items"][0].update(
            path="alignez_brokers_url"
        ),
        "Deployment/rel-alignez-control api: `alignez api` reads no ALIGNEZ_BROKERS_URL",
    ),
    "the owner's file in a process": (
        lambda m: _secrets_volume(m, "relay")["projected"]["sources"][0]["secret"].update(name="alignez-owner"),
        "Deployment/rel-alignez-relay relay: has the secret of the tables' owner",
    ),
}


@pytest.mark.parametrize("mistake", _FILE_MISTAKES)
def test_a_mistake_with_files_is_found(mistake: str) -> None:
    plant, complaint = _FILE_MISTAKES[mistake]
    manifests = render(merged(values_of("values.production.yaml"), nested(_JUDGE)))
    assert violations(manifests) == []
    plant(manifests)
    assert any(complaint in one for one in violations(manifests)), violations(manifests)


@pytest.mark.parametrize("profile", ["values.small.yaml", "values.production.yaml"])
def test_the_notes_name_both_secrets(profile: str) -> None:
    (notes,) = [text for name, text in texts(values_of(profile)).items() if name.endswith("NOTES.txt")]
    assert "owner (secret alignez-owner)" in notes
    assert "alignez_app\n(secret alignez" in notes
    assert ("mounted as files" in notes) == (profile == "values.production.yaml")


def test_the_token_s_file_is_where_the_hub_s_library_looks() -> None:
    code = "from huggingface_hub import constants; print(constants.HF_TOKEN_PATH)"
    environment = {**os.environ, "HF_TOKEN_PATH": "/etc/alignez/secrets/hf_token"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "/etc/alignez/secrets/hf_token"
