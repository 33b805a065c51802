"""The images, as far as they can be judged without a Docker engine: the file's text, and its control target's steps."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from cli.main import app as command_line
from images import requirements
from tests.helm.settings_env import PROCESSES, unknown
from tests.images.dockerfile import Dockerfile, Stage, findings

ROOT = Path(__file__).parents[2]
TARGETS = ("control", "inference", "worker")
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DOCKERFILE = Dockerfile(TEXT)

helm = pytest.mark.helm


@helm
def test_hadolint_finds_nothing() -> None:
    assert findings(TEXT, ROOT) == []


_MISTAKES: dict[str, tuple[str, str, str]] = {
    "root": ("USER 10001:10001\nEXPOSE", "USER root\nEXPOSE", "DL3002"),
    "a user without a number": ("USER 10001:10001\nEXPOSE", "USER alignez\nEXPOSE", "DL3066"),
    "shell form": ('CMD ["alignez", "worker"]', "CMD alignez worker", "DL3025"),
    "an unknown stage": ("COPY --from=wheel", "COPY --from=whee", "DL3022"),
    "apt's lists": ("RUN mkdir -p /cache", "RUN apt-get update && apt-get install -y git", "DL3009"),
    "a piped installer": ("RUN mkdir -p /cache", "RUN curl -s https://example.com | sh", "DL4006"),
    "a secret argument": ("ARG REVISION=unknown", "ARG HF_TOKEN", "DL3064"),
    "a missing label": ("org.opencontainers.image.licenses", "licenses", "DL3049"),
}


@helm
@pytest.mark.parametrize("mistake", _MISTAKES)
def test_hadolint_finds_a_mistake(mistake: str) -> None:
    text, instead, rule = _MISTAKES[mistake]
    assert text in TEXT, "the mistake has no place any more"
    found = findings(TEXT.replace(text, instead), ROOT)
    assert any(rule in one for one in found), found


@helm
def test_bases_are_pinned_to_a_full_version() -> None:
    """`3.11` is another image next month."""
    bases = {stage.base for stage in DOCKERFILE.stages.values()} - set(DOCKERFILE.stages)
    assert bases
    assert not [base for base in bases if not re.search(r":v?\d+\.\d+\.\d+[^/]*$|@sha256:", base)]


@helm
def test_what_is_copied_is_in_the_build_context() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    instructions = [each for stage in DOCKERFILE.stages.values() for each in stage.instructions]
    assert "ADD" not in {each.keyword for each in instructions}  # of a URL, it brings what nobody has looked at
    copies = [each for each in instructions if each.keyword == "COPY" and "from" not in each.flags]
    sources = [source for each in copies for source in each.words[:-1]]
    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]
    assert not [source for source in sources if f"!{source.split('/')[0]}" not in rules]


@helm
def test_pip_leaves_no_cache_in_a_layer() -> None:
    runs = [each.text for stage in DOCKERFILE.stages.values() for each in stage.all("RUN")]
    calls = [call for text in runs for call in text.split("&&") if re.search(r"pip (install|wheel)", call)]
    assert calls
    assert not [call for call in calls if "--no-cache-dir" not in call]


@helm
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_a_health_check_and_writes_below_tmp_only(target: str) -> None:
    health = DOCKERFILE.last(target, "HEALTHCHECK")
    assert health is not None
    assert health.text == "NONE" or health.text.startswith("CMD [")
    environment = " ".join(each.text for stage in DOCKERFILE.lineage(target) for each in stage.all("ENV"))
    assert re.search(r"\bHOME=/tmp\b", environment), "the root file system may be read-only"


@helm
def test_variables_are_settings_and_commands_are_ours() -> None:
    roles: set[str] = set()
    for known in command_line.registered_commands:
        assert known.callback is not None
        roles.add(known.name or known.callback.__name__)
    for target in TARGETS:
        names = {
            name
            for stage in DOCKERFILE.lineage(target)
            for instruction in stage.all("ENV")
            for name in re.findall(r"(ALIGNEZ_\w+)=", instruction.text)
        }
        assert not set.intersection(*(unknown(process, names) for process in PROCESSES)), target
        command = DOCKERFILE.last(target, "CMD")
        assert command is not None
        program, role, *_ = json.loads(command.text)
        assert program == "alignez"
        assert role in roles


@helm
def test_all_packages_are_in_the_wheel_that_the_processes_need() -> None:
    copied = {each.words[0].rstrip("/") for each in DOCKERFILE.stages["wheel"].all("COPY")}
    pattern = r"^(?:from|import) (alignez_core|api|bench|cli|migrations|profiles|telemetry|worker)\b"
    imported = {
        name
        for package in ("alignez_core", "api", "cli", "migrations", "profiles", "telemetry", "worker")
        for file in (ROOT / package).rglob("*.py")
        for name in re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(imported) > 4
    assert imported | {"migrations"} <= copied  # Alembic finds migrations by their place


@helm
def test_expensive_layers_do_not_change_with_the_code() -> None:
    """Dependencies are installed before any of our code is copied."""
    for name in ("control-build", "inference"):
        instructions = DOCKERFILE.stages[name].instructions
        dependencies = next(each.line for each in instructions if "-r requirements.txt" in each.text)
        code = next(each.line for each in instructions if each.flags.get("from") == "wheel")
        assert dependencies < code


def test_the_version_is_that_of_pyproject_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart, usage = ((ROOT / "helm" / name).read_text(encoding="utf-8") for name in ("Chart.yaml", "README.md"))
    assert re.findall(r"^ARG VERSION=(.*)$", TEXT, re.MULTILINE) == [version] * 2
    assert re.findall(r'^(?:appV|v)ersion: "?([^"\n]+)', chart, re.MULTILINE) == [version] * 2
    assert set(re.findall(r"alignez-\$image:([\w.-]+)", usage)) == {version}


# images/requirements.py


@helm
def test_the_control_image_leaves_out_torch_and_what_needs_it() -> None:
    left_out = ("torch", "transformers", "accelerate", "gguf")
    kept = list(requirements.packages(ROOT / "pyproject.toml", left_out))
    assert not [each for each in kept if each.startswith(left_out)]
    assert {"celery[redis]>=5.7", "psycopg[binary]>=3.3"} <= set(kept)


@helm
def test_leaving_out_what_is_not_there_is_an_error() -> None:
    with pytest.raises(SystemExit, match="does not depend on tensorflow"):
        list(requirements.packages(ROOT / "pyproject.toml", ["tensorflow"]))


@helm
def test_the_base_image_keeps_its_versions() -> None:
    lines = ["# tested", "", "torch==2.13.0", "ast_serialize==0.13.1", "celery==5.7.0  # queue"]
    pins = list(requirements.constraints(lines, {"torch": "2.13.0+cu129", "ast-serialize": "0.14"}))
    assert pins == ["ast-serialize==0.14", "torch==2.13.0+cu129", "celery==5.7.0"]
    assert requirements.installed_versions()["pytest"] == pytest.__version__


# The steps of the control target, done


def _perform(stage: Stage, root: Path, context: Path) -> None:
    """What a builder would do with a stage's COPY and RUN, below `root`; stages share that folder, as paths differ."""
    directory = root
    for each in stage.instructions:
        if each.keyword == "WORKDIR":
            directory = root / each.text.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
        elif each.keyword == "COPY" and "from" not in each.flags:
            *sources, target = each.words
            for source in sources:
                if (context / source).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(context / source, directory / target, dirs_exist_ok=True, ignore=ignore)
                else:
                    shutil.copy(context / source, directory / target)
        elif each.keyword == "RUN":
            command = re.sub(r"(?<=[ ])/(?=(src|build|dist|opt)\b)", f"{root}/", f" {each.text}")
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            environment.pop("PYTHONPATH", None)  # or pip takes what lies there for installed
            subprocess.run(["sh", "-ec", command], cwd=directory, check=True, env=environment, timeout=280)


@pytest.fixture(scope="module")
def control_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the control target copies into its image."""
    root = tmp_path_factory.mktemp("image")
    for name in ("wheel", "control-build"):
        _perform(DOCKERFILE.stages[name], root, ROOT)
    return root / "opt" / "alignez"


def _environment(image: Path, home: Path) -> dict[str, str]:
    """Of a container: the image's variables, and nothing of this machine's."""
    return {"PATH": f"{image}/bin:/usr/bin:/bin", "HOME": str(home), "ALIGNEZ_API_ROLE": "control"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_control_image_needs_no_torch(control_image: Path, tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = _environment(control_image, tmp_path)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    imported = run(
        "python", "-c",
        "import sys, api.app, api.server, worker.relay, profiles.migrate\n"
        "api.app.create_app()\n"
        "assert profiles.migrate._heads()\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)",
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    assert "relay" in run("alignez", "--help").stdout
    # Nothing else is missing than what was left out on purpose.
    missing = set(re.findall(r"requires ([\w-]+), which is not installed", run("pip", "check").stdout))
    assert missing == {"torch", "transformers", "accelerate", "gguf"}
    listed = json.loads((control_image / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    assert {"alignez", "fastapi", "pip"} <= {each["name"] for each in listed}
    assert not missing & {each["name"] for each in listed}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_control_image_does_what_its_pods_do(
    control_image: Path, postgres: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Migration, then API and relay, with an empty database and a broker."""
    server = postgres.owner_url.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE image")
    port, ready_file = _free_port(), tmp_path / "ready"
    environment = _environment(control_image, tmp_path) | {
        "ALIGNEZ_DATABASE_URL": f"{postgres.url.rpartition('/')[0]}/image",
        "ALIGNEZ_BROKER_URL": redis_server.url,
        "ALIGNEZ_API_PORT": str(port),
    }
    with contextlib.ExitStack() as stack:

        def start(*command: str, **more: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(_process(command, tmp_path, environment | more))

        api = start("alignez", "api")
        _until(lambda: _status(port, "/health") == 200, api)
        assert _status(port, "/ready") == 503, "not migrated yet"
        owner = {"ALIGNEZ_DATABASE_URL": f"{postgres.owner_url.rpartition('/')[0]}/image"}
        assert start("alignez", "migrate", **owner).wait(60) == 0
        _until(lambda: _status(port, "/ready") == 200, api)
        relay = start("alignez", "relay", "--ready-file", str(ready_file))
        _until(ready_file.exists, relay)
        # The chart's readiness probe, word for word.
        probe = 'kill -0 "$(cat /tmp/ready)"'.replace("/tmp/ready", str(ready_file))
        assert subprocess.run(["sh", "-c", probe], check=False).returncode == 0
        _until(lambda: _listens(server), relay)  # before, it has no handler of signals yet
        for process in (relay, api):
            process.terminate()
        assert relay.wait(30) == 0
        assert api.wait(30) == -signal.SIGTERM  # uvicorn ends in order, and then as the signal would have it
        assert subprocess.run(["sh", "-c", probe], check=False, capture_output=True).returncode != 0


@contextlib.contextmanager
def _process(command: tuple[str, ...], home: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs until the end of the block at the latest."""
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None
    with subprocess.Popen([program, *command[1:]], cwd=home, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _listens(server: str) -> bool:
    """Whether somebody waits for notifications in the database of the test."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'image' AND query LIKE 'LISTEN%'"
    with psycopg.connect(server) as connection:
        row = connection.execute(statement).fetchone()
    return row is not None and row[0] > 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _status(port: int, path: str) -> int | None:
    """Of the answer; None when nobody answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code
    except httpx.TransportError:
        return None


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.2)
