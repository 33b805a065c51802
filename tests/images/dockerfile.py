"""A Dockerfile as stages of instructions, and hadolint's findings about it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from dockerfile_parse import DockerfileParser


@dataclass(frozen=True)
class Instruction:
    """One instruction: `COPY --from=wheel /dist/ /dist/` has one flag, and two words as its text."""

    keyword: str
    flags: dict[str, str]
    text: str
    line: int

    @property
    def words(self) -> list[str]:
        return self.text.split()


@dataclass
class Stage:
    """The instructions from one FROM to the next. Args: base: an image, or the stage that this one continues."""

    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [each for each in self.instructions if each.keyword == keyword]


class Dockerfile:
    """Stages by name, in order."""

    def __init__(self, text: str) -> None:
        parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
        self.stages: dict[str, Stage] = {}
        bases = iter(parser.parent_images)  # build arguments filled in
        stage = Stage("")
        for each in parser.structure:
            words = each["value"].split()
            if each["instruction"] == "COMMENT":
                continue
            if each["instruction"] == "FROM":
                stage = self.stages[words[-1]] = Stage(next(bases))
                continue
            flags = list(takewhile(lambda word: word.startswith("--"), words))
            text = each["value"].split(None, len(flags))[-1]
            values = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
            stage.instructions.append(Instruction(each["instruction"], values, text, each["startline"] + 1))

    def lineage(self, name: str) -> Iterator[Stage]:
        """The stage and those that it continues, itself first."""
        while name in self.stages:
            yield self.stages[name]
            name = self.stages[name].base

    def last(self, name: str, keyword: str) -> Instruction | None:
        """The instruction that counts in a stage, be it inherited."""
        return next((found[-1] for stage in self.lineage(name) if (found := stage.all(keyword))), None)


def findings(text: str, root: Path) -> list[str]:
    """hadolint's findings, one a line, by the rules of `.hadolint.yaml` in `root`."""
    program = Path(sys.executable).with_name("hadolint")
    command = [str(program), "--no-color", "-"]
    done = subprocess.run(command, cwd=root, input=text, text=True, capture_output=True, timeout=60)
    assert done.returncode == (1 if done.stdout else 0), done.stderr
    return done.stdout.splitlines()
