"""The policy's rules on security: what pods may do, where their secrets come from, and as whom they connect."""

from __future__ import annotations

import re
from collections.abc import Iterator

from profiles.settings import SECRETS_DIR
from tests.helm.charts import Manifest
from tests.helm.objects import (
    REFERENCE,
    containers,
    database_secret,
    environment_of,
    files_of,
    hooks,
    name_of,
    of_kind,
    process_of,
    secrets_of,
    workloads,
)

#: The login role of all processes; it owns no table.
APPLICATION_ROLE = "alignez_app"
#: Lower numbers may be users of the node, whose files a process that escapes would own.
LOWEST_USER = 10_000

_SECRET_NAME = re.compile(r"PASS|TOKEN|SECRET|CREDENTIAL|AUTH$|API_KEY|(DATABASE|BROKER)_URL")
_NO_SECRET = frozenset({SECRETS_DIR, "HF_TOKEN_PATH"})  # they name files
_CREDENTIALS = re.compile(r"://[^/\s:@]*:([^@/\s]+)@")


def pod_security(manifests: list[Manifest]) -> Iterator[str]:
    """No root, no token, no service links, the runtime's seccomp profile, nothing of the host."""
    for workload in workloads(manifests):
        context = workload.pod.get("securityContext", {})
        user = context.get("runAsUser") or 0
        if context.get("runAsNonRoot") is not True or user == 0:
            yield f"{workload}: runs as root, or may (runAsNonRoot, runAsUser)"
        elif user < LOWEST_USER:
            yield f"{workload}: runs as {user}, which may be a user of the node too (below {LOWEST_USER})"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{workload}: no seccomp profile RuntimeDefault"
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield f"{workload}: mounts a service account's token"
        if workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload}: service links would set variables such as ALIGNEZ_API_PORT"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if workload.pod.get(field):
                yield f"{workload}: {field}"
        for volume in workload.pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{workload}: volume {volume['name']} is of the host"


def container_security(manifests: list[Manifest]) -> Iterator[str]:
    """Nothing above what a plain process may, and a root file system that is only read."""
    for workload, container in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is not True:
            yield f"{workload} {container['name']}: runs as root, or may (runAsNonRoot)"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{workload} {container['name']}: its root file system is writable"
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{workload} {container['name']}: may gain privileges"
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{workload} {container['name']}: keeps capabilities"


def service_accounts(manifests: list[Manifest]) -> Iterator[str]:
    """Named by every pod, made by the chart, before the pod where a hook orders it, and without a token."""
    accounts = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "ServiceAccount"}
    for each in accounts.values():
        if each.get("automountServiceAccountToken") is not False:
            yield f"{name_of(each)}: mounts its token"
    for workload in workloads(manifests):
        account = accounts.get(workload.pod.get("serviceAccountName", ""))
        if account is None:
            yield f"{workload}: its service account is not part of the release"
        elif "pre-install" in hooks(workload.manifest) - hooks(account):
            yield f"{workload}: runs before its service account exists"


def inlined_secrets(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets come by reference: none in a variable, an argument, a ConfigMap, and no Secret of the chart's own."""
    for each in manifests:
        if each["kind"] == "Secret":
            yield f"{name_of(each)}: a secret's content is in the release"
        if each["kind"] == "ConfigMap":
            for key, value in each.get("data", {}).items():
                if _SECRET_NAME.search(key) or _has_credentials(value, set()):
                    yield f"{name_of(each)}: {key} is a secret in a ConfigMap"
    for workload, container in containers(manifests):
        referable: set[str] = set()
        for variable in container.get("env", []):
            value = variable.get("value")
            if "valueFrom" in variable:
                referable.add(variable["name"])
            elif value and _has_credentials(value, referable):
                yield f"{workload} {container['name']}: {variable['name']} has a secret in its value"
            elif variable["name"] in _NO_SECRET:
                continue
            elif value and _SECRET_NAME.search(variable["name"]) and not REFERENCE.search(value):
                yield f"{workload} {container['name']}: {variable['name']} is a secret by value"
        for argument in [*container.get("args", []), *container.get("command", [])]:
            if _has_credentials(argument, referable):
                yield f"{workload} {container['name']}: an argument has a secret in it"


def secret_files(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets are mounted key by key, read-only, where the process looks for them, and then none is in a variable."""
    for workload in workloads(manifests):
        for volume in workload.pod.get("volumes", []):
            if "secret" in volume and "items" not in volume["secret"]:
                yield f"{workload}: volume {volume['name']} mounts all keys of a secret"
            for source in volume.get("projected", {}).get("sources", []):
                if "items" not in source.get("secret", {"items": []}):
                    yield f"{workload}: volume {volume['name']} mounts all keys of a secret"
        for container in workload.containers:
            named = f"{workload} {container['name']}"
            directory = environment_of(container, []).get(SECRETS_DIR)
            mounted = {
                mount["mountPath"]: mount
                for mount in container.get("volumeMounts", [])
                if files_of(workload, mount["name"])
            }
            if set(mounted) != ({directory} if directory else set()):
                yield f"{named}: secrets are mounted at {sorted(mounted)}, and {SECRETS_DIR} is {directory}"
            if any(mount.get("readOnly") is not True for mount in mounted.values()):
                yield f"{named}: its secrets are mounted writable"
            variables = [each["name"] for each in container.get("env", []) if "valueFrom" in each]
            if mounted and variables:
                yield f"{named}: secrets are files, but {variables} come by variable"


def database_roles(manifests: list[Manifest]) -> Iterator[str]:
    """The migration alone, and the embedded server itself, have the owner's secret; all processes are `alignez_app`."""
    found = [
        (workload, container, process_of(container), database_secret(workload, container))
        for workload, container in containers(manifests)
    ]
    owners = {secret.reference for _, _, process, secret in found if process == "migrate" and secret}
    for workload, container, process, secret in found:
        named = f"{workload} {container['name']}"
        if process == "migrate":
            if secret is None:
                yield f"{named}: no URL of the database"
            elif secret.user == APPLICATION_ROLE:
                yield f"{named}: migrates as {APPLICATION_ROLE}, which owns nothing"
        elif process is not None:
            if secret is None:
                yield f"{named}: no URL of the database"
            elif secret.user not in (None, APPLICATION_ROLE):
                yield f"{named}: connects as {secret.user}, not as {APPLICATION_ROLE}"
        migrates = any(process_of(each) == "migrate" for each in workload.containers)
        serves = "POSTGRES_USER" in environment_of(container, [])
        if not migrates and not serves and owners & secrets_of(workload, container):
            yield f"{named}: has the secret of the tables' owner, which is the migration's alone"
    for each in of_kind(manifests, "TriggerAuthentication"):
        targets = {(target["name"], target["key"]) for target in each["spec"]["secretTargetRef"]}
        if owners & targets:
            yield f"{name_of(each)}: has the secret of the tables' owner, which is the migration's alone"


def _has_credentials(value: str, referable: set[str]) -> bool:
    """Whether a URL in it bears a password other than `$(NAME)` of a variable before it that came by reference."""
    for password in _CREDENTIALS.findall(value):
        reference = REFERENCE.fullmatch(password)
        if reference is None or reference[1] not in referable:
            return True
    return False


RULES = (
    pod_security, container_security, service_accounts, inlined_secrets, secret_files, database_roles
)  # fmt: skip
