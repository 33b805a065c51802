"""Template by template: what a value changes, and what the processes make of it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from api.settings import ApiSettings
from profiles.delivery.broker import is_redis
from profiles.settings import DatabaseSettings
from tests.helm.charts import (
    PROFILES,
    Manifest,
    configuration,
    container,
    find,
    kinds,
    merged,
    nested,
    pod,
    render,
    values_of,
    variables,
)
from tests.helm.objects import containers
from tests.helm.settings_env import read
from worker.settings import WorkerSettings

pytestmark = pytest.mark.helm

# Settings


def test_the_processes_read_what_the_values_say() -> None:
    manifests = render(
        nested(
            {
                "model.name": "org/model",
                "model.revision": "abc",
                "model.servedName": "m",
                "model.promptFormat": "chat",
                "database.poolSize": 3,
                "inference.tensorParallel": 4,
                "inference.maxRunning": 32,
                "inference.vllmCompile": False,
                "inference.drainSeconds": 77,
                "worker.engine": "vllm",
                "worker.tensorParallel": 2,
                "worker.jobTimeLimitSeconds": 3600,
                "worker.settings": {"ALIGNEZ_WORKER_STORE_ROWS": "5"},
            }
        )
    )
    inference = read(ApiSettings, configuration(manifests, "inference"))
    assert isinstance(inference, ApiSettings)
    assert (inference.role, inference.engine, inference.vllm_tensor_parallel) == ("inference", "vllm", 4)
    assert (inference.model, inference.model_revision, inference.model_name) == ("org/model", "abc", "m")
    assert (inference.max_running, inference.vllm_compile, inference.drain_s) == (32, False, 77)
    assert (inference.host, inference.port, inference.metrics_port) == ("0.0.0.0", 8000, 9100)
    control = read(ApiSettings, configuration(manifests, "control"))
    assert isinstance(control, ApiSettings)
    assert (control.role, control.drain_s, control.serves_generation) == ("control", 30, False)
    worker = read(WorkerSettings, configuration(manifests, "worker"))
    assert isinstance(worker, WorkerSettings)
    assert (worker.model, worker.model_name, worker.prompt_format) == ("org/model", "m", "chat")
    assert (worker.engine, worker.vllm_tensor_parallel, worker.store_rows) == ("vllm", 2, 5)
    database = read(DatabaseSettings, configuration(manifests, "worker"))
    assert isinstance(database, DatabaseSettings)
    assert database.pool_size == 3


def test_worker_and_relay_agree_on_the_time_limit() -> None:
    """It is an argument of the queue: two values, and the broker refuses the second declaration."""
    manifests = render(nested({"worker.jobTimeLimitSeconds": 60}))
    for component in ("worker", "relay"):
        assert container(manifests, component)["envFrom"] == [{"configMapRef": {"name": "rel-alignez-worker"}}]


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"control.logLevel": "debug"}, {"control"}),
        ({"inference.maxRunning": 8}, {"inference"}),
        ({"worker.maxBatch": 8}, {"worker", "relay"}),
        ({"model.name": "org/other"}, {"control", "inference", "worker", "relay"}),
        ({"control.replicas": 5, "relay.replicas": 3}, set()),
    ],
)
def test_new_settings_restart_whom_they_concern(settings: dict[str, Any], changed: set[str]) -> None:
    def checksums(manifests: list[Manifest]) -> dict[str, str]:
        templates = {
            component: find(manifests, "Deployment", f"-{component}")["spec"]["template"]["metadata"]
            for component in ("control", "inference", "worker", "relay")
        }
        return {component: metadata["annotations"]["checksum/config"] for component, metadata in templates.items()}

    before, after = checksums(render()), checksums(render(nested(settings)))
    assert {component for component in before if before[component] != after[component]} == changed


# Secrets


def test_external_servers_are_named_by_secrets() -> None:
    settings = {"database.existingSecret": "db", "database.urlKey": "url", "broker.existingSecret": "mq"}
    manifests = render(nested(settings))
    for component in ("control", "worker", "relay"):
        found = variables(manifests, component)
        assert found["ALIGNEZ_DATABASE_URL"] == ("db", "url")
        assert found["ALIGNEZ_BROKER_URL"] == ("mq", "BROKER_URL")
    assert variables(manifests, "migrate", "Job")["ALIGNEZ_DATABASE_URL"] == ("alignez-owner", "DATABASE_URL")


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_embedded_servers_and_their_clients_share_a_password(kind: str) -> None:
    manifests = render(nested({"database.mode": "embedded", "broker.mode": "embedded", "broker.kind": kind}))
    worker = variables(manifests, "worker")
    assert worker["DATABASE_PASSWORD"] == ("alignez", "DATABASE_PASSWORD")
    owner = variables(manifests, "migrate-first", "Job")["DATABASE_PASSWORD"]
    assert variables(manifests, "postgres", "StatefulSet")["POSTGRES_PASSWORD"] == owner != worker["DATABASE_PASSWORD"]
    server = variables(manifests, kind, "StatefulSet")
    assert worker["BROKER_PASSWORD"] in server.values()
    assert is_redis(worker["ALIGNEZ_BROKER_URL"]) == (kind == "redis")
    for url, service in ((worker["ALIGNEZ_DATABASE_URL"], "postgres"), (worker["ALIGNEZ_BROKER_URL"], kind)):
        port = find(manifests, "Service", f"-{service}")["spec"]["ports"][0]["port"]
        assert f"@rel-alignez-{service}:{port}/" in url
    # Kubernetes replaces only what stands earlier in the list.
    names = [each["name"] for each in container(manifests, "worker")["env"]]
    assert names.index("DATABASE_PASSWORD") < names.index("ALIGNEZ_DATABASE_URL")
    assert names.index("BROKER_PASSWORD") < names.index("ALIGNEZ_BROKER_URL")


def test_a_token_for_gated_models_goes_to_who_loads_models() -> None:
    manifests = render(nested({"model.huggingFaceToken.existingSecret": "hub"}))
    assert (
        variables(manifests, "inference")["HF_TOKEN"]
        == variables(manifests, "worker")["HF_TOKEN"]
        == ("hub", "HF_TOKEN")
    )
    assert "HF_TOKEN" not in variables(manifests, "control")
    assert "HF_TOKEN" not in variables(render(), "inference")


def test_the_judge_s_endpoint_goes_to_workers_and_its_key_stays_a_secret() -> None:
    settings = {"judge.url": "https://judge.example/v1", "judge.model": "large", "judge.existingSecret": "judges"}
    manifests = render(nested(settings))
    # The relay has the worker's settings, and no use for the key.
    worker = configuration(manifests, "worker")
    assert worker["ALIGNEZ_WORKER_JUDGE_URL"] == "https://judge.example/v1"
    assert worker["ALIGNEZ_WORKER_JUDGE_MODEL"] == "large"
    assert worker["ALIGNEZ_WORKER_JUDGE_TIMEOUT_S"] == "60"
    assert variables(manifests, "worker")["ALIGNEZ_WORKER_JUDGE_KEY"] == ("judges", "JUDGE_KEY")
    assert "ALIGNEZ_WORKER_JUDGE_KEY" not in variables(manifests, "relay")
    for api in ("control", "inference"):
        assert configuration(manifests, api)["ALIGNEZ_API_JUDGES"] == '["openai"]'
        assert "ALIGNEZ_WORKER_JUDGE_KEY" not in variables(manifests, api)
    assert not [name for name in configuration(render(), "worker") if "JUDGE" in name]
    assert "ALIGNEZ_API_JUDGES" not in configuration(render(), "control")


# Images


def test_images_are_named_by_registry_tag_and_digest() -> None:
    digest = f"sha256:{'a' * 64}"
    settings = {"images.registry": "r.example.com/t", "images.control.tag": "1.2", "images.worker.digest": digest}
    manifests = render(nested(settings))
    assert container(manifests, "control")["image"] == "r.example.com/t/alignez-control:1.2"
    assert container(manifests, "inference")["image"] == f"r.example.com/t/alignez-inference:{version('alignez')}"
    assert container(manifests, "worker")["image"] == f"r.example.com/t/alignez-worker@{digest}"
    for component, kind in (("relay", "Deployment"), ("migrate", "Job")):
        assert container(manifests, component, kind)["image"] == "r.example.com/t/alignez-control:1.2"
    assert "imagePullSecrets" not in pod(manifests, "control")
    assert pod(render(nested({"images.pullSecrets": ["a"]})), "worker")["imagePullSecrets"] == [{"name": "a"}]


def test_images_of_embedded_servers_are_named_by_tag_or_digest() -> None:
    digest = f"sha256:{'b' * 64}"
    servers = {"database.mode": "embedded", "broker.mode": "embedded", "images.registry": "r.example.com/t"}
    names = {"postgres": "database.embedded.image", "rabbitmq": "broker.embedded.rabbitmqImage"}
    names["redis"] = "broker.embedded.redisImage"
    for name, value in names.items():
        kind = {"broker.kind": "redis"} if name == "redis" else {}
        by_tag = container(render(nested({**servers, **kind})), name, "StatefulSet")["image"]
        repository, _, tag = by_tag.partition(":")
        assert tag[0].isdigit()
        mirrored = {f"{value}.repository": "mirror.example.com/it", f"{value}.digest": digest}
        by_digest = container(render(nested({**servers, **kind, **mirrored})), name, "StatefulSet")["image"]
        assert by_digest == f"mirror.example.com/it@{digest}"
        assert not repository.startswith("r.example.com")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_digest_for_every_image_leaves_no_tag(profile: str) -> None:
    digest = f"sha256:{'c' * 64}"
    paths = [f"images.{name}" for name in ("control", "inference", "worker")]
    paths += ["database.embedded.image", "broker.embedded.rabbitmqImage", "broker.embedded.redisImage"]
    values = merged(values_of(profile), nested({f"{path}.digest": digest for path in paths}))
    found = {each["image"] for _, each in containers(render(values))}
    assert found
    assert {image.partition("@")[2] for image in found} == {digest}


# GPUs, memory, caches


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_tensor_parallelism_and_gpus_are_one_number(parallel: int) -> None:
    settings = {"inference.tensorParallel": parallel, "worker.engine": "vllm", "worker.tensorParallel": parallel}
    manifests = render(nested(settings))
    for component, name in (("inference", "ALIGNEZ_API"), ("worker", "ALIGNEZ_WORKER")):
        assert container(manifests, component)["resources"]["limits"]["nvidia.com/gpu"] == parallel
        assert configuration(manifests, component)[f"{name}_VLLM_TENSOR_PARALLEL"] == str(parallel)


def test_a_cpu_needs_no_gpu() -> None:
    settings = {
        "inference.engine": "transformers",
        "inference.device": "cpu",
        "inference.gpuResourceName": "amd.com/gpu",
    }
    manifests = render(nested(settings))
    assert container(manifests, "inference")["resources"]["limits"] == {"memory": "32Gi"}
    assert configuration(manifests, "inference")["ALIGNEZ_API_DEVICE"] == "cpu"
    cuda = render(nested({**settings, "inference.device": "cuda"}))
    assert container(cuda, "inference")["resources"]["limits"]["amd.com/gpu"] == 1


def test_shared_memory_and_caches_are_writable() -> None:
    manifests = render(nested({"inference.sharedMemory": "9Gi"}))
    volumes = {volume["name"]: volume for volume in pod(manifests, "inference")["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "9Gi"}
    assert volumes["cache"]["emptyDir"] == {"sizeLimit": "50Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(manifests, "inference")["volumeMounts"]}
    assert mounts == {"tmp": "/tmp", "cache": "/cache", "shm": "/dev/shm"}
    paths = [
        value for name, value in variables(manifests, "inference").items() if name.endswith(("HOME", "_DIR", "_ROOT"))
    ]
    assert len(paths) == 6
    assert all(path == "/tmp" or path.startswith(("/tmp/", "/cache/")) for path in paths)


def test_the_model_cache_is_shared_by_a_claim() -> None:
    manifests = render(nested({"model.cache.type": "pvc", "model.cache.storageClassName": "fast"}))
    claim = find(manifests, "PersistentVolumeClaim", "-model-cache")
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for component in ("inference", "worker"):
        volumes = {volume["name"]: volume for volume in pod(manifests, component)["volumes"]}
        assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == "rel-alignez-model-cache"
    own = render(nested({"model.cache.type": "pvc", "model.cache.existingClaim": "mine"}))
    assert "PersistentVolumeClaim" not in kinds(own)
    assert pod(own, "worker")["volumes"][-1]["persistentVolumeClaim"]["claimName"] == "mine"


def test_offline_and_telemetry() -> None:
    assert "HF_HUB_OFFLINE" not in variables(render(), "inference")
    settings = {"model.offline": True, "model.cache.type": "pvc", "model.cache.existingClaim": "models"}
    assert variables(render(nested(settings)), "worker")["HF_HUB_OFFLINE"] == "1"
    assert variables(render(), "inference")["VLLM_NO_USAGE_STATS"] == "1"


# Start and end


def test_grace_periods_follow_the_drain() -> None:
    settings = {"control.drainSeconds": 5, "control.drainDelaySeconds": 3, "inference.drainSeconds": 600}
    manifests = render(nested({**settings, "worker.handBackSeconds": 60}))
    assert pod(manifests, "control")["terminationGracePeriodSeconds"] == 3 + 5 + 15
    assert pod(manifests, "inference")["terminationGracePeriodSeconds"] == 10 + 600 + 15
    assert pod(manifests, "worker")["terminationGracePeriodSeconds"] == 60 + 30
    assert configuration(manifests, "control")["ALIGNEZ_API_DRAIN_DELAY_S"] == "3"
    assert configuration(manifests, "control")["ALIGNEZ_API_DRAIN_S"] == "5"


def test_a_model_has_its_time_to_load() -> None:
    manifests = render(nested({"inference.startupSeconds": 3605, "worker.startupSeconds": 60}))
    for component, seconds in (("inference", 3605), ("worker", 60)):
        probe = container(manifests, component)["startupProbe"]
        assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + 10
        assert find(manifests, "Deployment", f"-{component}")["spec"]["progressDeadlineSeconds"] == seconds + 300
    assert container(manifests, "inference")["startupProbe"]["httpGet"]["path"] == "/ready"


def test_api_probes_ask_for_what_they_mean() -> None:
    for component in ("control", "inference"):
        api = container(render(), component)
        assert api["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
        assert api["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        # Else a /ready that takes its time would count as none.
        assert api["readinessProbe"]["timeoutSeconds"] > ApiSettings().ready_timeout_s


@pytest.mark.parametrize("component", ["worker", "relay"])
def test_a_ready_file_of_a_predecessor_does_not_count(component: str) -> None:
    command = container(render(), component)["args"][-1]
    assert command == f"rm -f /tmp/ready && exec alignez {component} --ready-file /tmp/ready"
    assert container(render(), component)["readinessProbe"]["exec"]["command"][-1] == 'kill -0 "$(cat /tmp/ready)"'


# Migration


def test_an_external_database_is_migrated_before_anything_runs() -> None:
    for upgrade in (False, True):
        job = find(render(upgrade=upgrade), "Job", "-migrate")
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        account = find(render(upgrade=upgrade), "ServiceAccount", "-migrate")["metadata"]["annotations"]
        assert int(account["helm.sh/hook-weight"]) < int(job["metadata"]["annotations"]["helm.sh/hook-weight"])


def test_an_embedded_database_is_migrated_beside_its_first_pods_and_before_later_ones() -> None:
    """A hook of the first install could not reach a Postgres that is yet to come, nor run after pods that wait."""
    values = nested({"database.mode": "embedded"})
    first = find(render(values), "Job", "-migrate-first")
    assert "helm.sh/hook" not in first["metadata"].get("annotations", {})
    later = find(render(values, upgrade=True), "Job", "-migrate")
    assert later["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_the_migration_waits_for_postgres_and_not_for_ever() -> None:
    settings = {"migration.waitSeconds": 42, "migration.deadlineSeconds": 99, "migration.backoffLimit": 1}
    job = find(render(nested(settings)), "Job", "-migrate")
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["backoffLimit"]) == (99, 1)
    wait = job["spec"]["template"]["spec"]["initContainers"][0]
    assert wait["args"][:2] == ["python", "-c"]
    assert wait["args"][3] == "42"
    compile(wait["args"][2], "wait_for_postgres.py", "exec")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["alignez", "migrate"]


# Embedded servers, the test, notes


def test_embedded_servers_keep_their_data() -> None:
    settings = {"database.mode": "embedded", "broker.mode": "embedded", "database.embedded.storage": "7Gi"}
    manifests = render(nested({**settings, "database.embedded.storageClassName": "fast"}))
    postgres = find(manifests, "StatefulSet", "-postgres")["spec"]
    claim = postgres["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "7Gi"
    assert claim["storageClassName"] == "fast"
    assert postgres["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert postgres["template"]["spec"]["containers"][0]["args"] == ["-c", "max_connections=200"]
    redis = render(nested({**settings, "broker.kind": "redis"}))
    arguments = container(redis, "redis", "StatefulSet")["args"]
    assert arguments[arguments.index("--appendonly") + 1] == "yes"
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_smoke_test_calls_both_apis_with_a_key_by_reference() -> None:
    assert "Pod" not in kinds(render())
    smoke = find(render(nested({"tests.enabled": True, "tests.existingSecret": "key"})), "Pod", "-test")
    assert smoke["metadata"]["annotations"]["helm.sh/hook"] == "test"
    runs = smoke["spec"]["containers"][0]
    environment = {variable["name"]: variable for variable in runs["env"]}
    assert environment["CONTROL_URL"]["value"] == "http://rel-alignez-control"
    assert environment["INFERENCE_URL"]["value"] == "http://rel-alignez-inference"
    assert environment["API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "key", "key": "API_KEY"}
    compile(runs["args"][2], "smoke_test.py", "exec")


def test_production_watches_with_the_labels_that_prometheus_selects_by() -> None:
    values = merged(values_of("values.production.yaml"), nested({"monitoring.labels": {"release": "prometheus"}}))
    manifests = render(values)
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert find(manifests, kind, "")["metadata"]["labels"]["release"] == "prometheus"
    assert find(manifests, "ConfigMap", "-dashboard")["metadata"]["labels"]["grafana_dashboard"] == "1"
