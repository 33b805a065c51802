"""The scripts for a bare machine with a GPU: a smoke run on the CPU, and nothing imported that is not there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from bench import gpu
from bench.random_model import SHAPES, random_llama, weight_bytes
from research import gpu as research_gpu

CPU = ["--shape", "tiny", "--device", "cpu"]
#: Packages of this project's environment that a bare machine lacks.
ABSENT = (
    "accelerate", "alembic", "cachetools", "celery", "fastapi", "gguf", "httpx", "matplotlib", "pgvector", "psycopg",
    "pydantic", "pydantic_settings", "rich", "sqlalchemy", "structlog", "trl", "typer", "uvicorn",
)  # fmt: skip


@pytest.mark.slow
def test_the_scripts_import_nothing_that_a_bare_machine_lacks() -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); import bench.gpu, research.gpu"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_decoding_is_measured_on_the_small_shape(tmp_path: Path) -> None:
    gpu.main([*CPU, "--tokens", "6", "--repeats", "2", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "bench.json").read_text())
    found = {figure["name"]: figure["value"] for figure in stored["figures"]}
    assert set(gpu.RATIOS) <= set(found)
    assert all(math.isfinite(value) for value in found.values())
    assert {len(cell[part]) for cell in stored["seconds"].values() for part in ("first", "rest")} == {2}
    assert "compiled: False" in stored["title"]


@pytest.mark.slow
def test_a_fit_is_measured_on_the_small_shape(tmp_path: Path) -> None:
    research_gpu.main([*CPU, "--methods", "alignez", "--out", str(tmp_path)])
    fit = json.loads((tmp_path / "research.json").read_text())["fits"]["alignez"]
    assert fit["tokens"] > 0
    assert 0 < sum(fit["stages"].values()) <= fit["seconds"] + 0.01  # stages are rounded


def test_ratios_are_medians_of_the_same_repeat_and_the_floor_is_bytes_by_bandwidth() -> None:
    cells = {name: gpu.Cell(4, (), [0.5], [2.0, 4.0, 6.0]) for sweep in gpu.make_sweeps(4, 8, (1, 2)) for name in sweep}
    cells["none"].rest = [1.0, 4.0, 3.0]
    args = Namespace(shape="tiny", device="cpu", tokens=11)
    found = {figure.name: figure for figure in gpu.figures(cells, args, bytes_per_second=1e6)}
    ratio = found["64 profiles ÷ none"]
    assert (ratio.value, ratio.spread, ratio.must) == (0.5, (0.5, 1.0), "≥ 0.97: MISSED")
    read = weight_bytes("tiny", "cpu") + 4 * 37.5 * 5 * 2 * 64 * 4
    assert found["none: step ÷ floor"].value == pytest.approx(3.0 / 10 / (read / 1e6))


def test_the_weights_of_a_step_are_the_model_s_without_its_input_embeddings() -> None:
    hidden, _, _, _, vocabulary, _ = SHAPES["tiny"]
    total = sum(weight.nbytes for weight in random_llama("tiny", "cpu").parameters())
    assert weight_bytes("tiny", "cpu") == total - vocabulary * hidden * 4


def test_without_a_gpu_the_script_says_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu --shape tiny"):
        gpu.main([])
