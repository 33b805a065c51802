"""Reading a Dockerfile, and what one of ours has to hold, without a Docker engine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_SECRET = re.compile(r"PASSW|TOKEN|SECRET|CREDENTIAL|PRIVATE|API_?KEY", re.IGNORECASE)
_LABELS = ("title", "description", "licenses", "version", "revision")
_HEALTH = "HEALTHCHECK"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, its `--flags`, the rest of its text, and the comment lines directly above it."""

    keyword: str
    flags: dict[str, str]
    text: str
    comment: str
    line: int

    @property
    def words(self) -> list[str]:
        """Of COPY, ADD and the like: the arguments, in either form."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [each for each in self.instructions if each.keyword == keyword]


@dataclass
class Dockerfile:
    """Stages in order, and the build arguments before the first."""

    arguments: dict[str, str]
    stages: list[Stage]

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def lineage(self, stage: Stage) -> list[Stage]:
        """The stage and those that it goes on from, itself first."""
        names = {each.name: each for each in self.stages}
        found = [stage]
        while found[-1].base in names:
            found.append(names[found[-1].base])
        return found

    def last(self, stage: Stage, keyword: str) -> Instruction | None:
        """The instruction that counts in the stage, be it inherited."""
        for each in self.lineage(stage):
            if instructions := each.all(keyword):
                return instructions[-1]
        return None


def parse(text: str) -> Dockerfile:
    """A Dockerfile. Raises: ValueError: a line that is no instruction, or one before the first FROM that is no ARG."""
    parsed = Dockerfile({}, [])
    for instruction in _instructions(text):
        if instruction.keyword == "FROM":
            base, _, name = (
                instruction.text.partition(" AS ") if " AS " in instruction.text else (instruction.text, "", "")
            )
            base = _VARIABLE.sub(lambda match: parsed.arguments.get(match[1], ""), base)
            parsed.stages.append(Stage(base, name or str(len(parsed.stages))))
        elif parsed.stages:
            parsed.stages[-1].instructions.append(instruction)
        elif instruction.keyword == "ARG":
            name, _, value = instruction.text.partition("=")
            parsed.arguments[name] = value
        else:
            raise ValueError(f"line {instruction.line}: {instruction.keyword} before the first FROM")
    return parsed


def _instructions(text: str) -> Iterator[Instruction]:
    comment: list[str] = []
    buffer = ""
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            if not buffer:
                comment.append(stripped[1:].strip())
            continue
        if not stripped:
            comment = [] if not buffer else comment
            continue
        start = start if buffer else number
        buffer += stripped.removesuffix("\\")
        if stripped.endswith("\\"):
            continue
        match = re.match(r"([A-Z]+)((?:\s+--[\w-]+(?:=\S+)?)*)\s+(.*)", buffer, re.DOTALL)
        if match is None:
            raise ValueError(f"line {start}: no instruction: {buffer}")
        flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in match[2].split())
        yield Instruction(match[1], flags, match[3].strip(), " ".join(comment), start)
        comment, buffer = [], ""


def complaints(text: str, root: Path, *, targets: tuple[str, ...]) -> list[str]:
    """Everything against a Dockerfile.

    Args:
        root: the build context.
        targets: the stages that become images.
    """
    parsed = parse(text)
    found = [complaint for rule in _RULES for complaint in rule(parsed, root)]
    for name in targets:
        if name not in {stage.name for stage in parsed.stages}:
            found.append(f"no target {name}")
            continue
        found += _target(parsed, parsed.stage(name))
    return found


def _bases(parsed: Dockerfile, root: Path) -> Iterator[str]:
    names = {stage.name for stage in parsed.stages}
    for stage in parsed.stages:
        if stage.base in names:
            continue
        tag = stage.base.rpartition("/")[2].partition("@")[0].partition(":")[2]
        # A version in full: `3.11` is another image next month.
        if "@sha256:" not in stage.base and not re.match(r"v?\d+\.\d+\.\d+", tag):
            yield f"stage {stage.name}: base {stage.base!r} is not pinned to a full version"


def _copies(parsed: Dockerfile, root: Path) -> Iterator[str]:
    names = {stage.name for stage in parsed.stages}
    allowed = _context(root)
    for stage in parsed.stages:
        for each in stage.all("ADD"):
            yield f"line {each.line}: ADD (of a URL, nobody knows what comes; of a file, COPY says the same)"
        for each in stage.all("COPY"):
            if "from" in each.flags:
                if each.flags["from"] not in names:
                    yield f"line {each.line}: no stage {each.flags['from']}"
                continue
            for source in each.words[:-1]:
                if not (root / source).exists():
                    yield f"line {each.line}: {source} does not exist"
                elif source.rstrip("/").split("/")[0] not in allowed:
                    yield f"line {each.line}: .dockerignore leaves {source} out"


def _context(root: Path) -> set[str]:
    """The top-level names that .dockerignore lets in; ours denies everything first."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    if rules[0] != "*":
        return {path.name for path in root.iterdir()} - set(rules)
    return {rule[1:] for rule in rules if rule.startswith("!")}


def _runs(parsed: Dockerfile, root: Path) -> Iterator[str]:
    for stage in parsed.stages:
        for each in stage.all("RUN"):
            commands = re.split(r"&&|;", each.text)
            for command in commands:
                if re.search(r"pip3? (install|wheel)", command) and "--no-cache-dir" not in command:
                    yield f"line {each.line}: pip without --no-cache-dir leaves its cache in the layer"
            if re.search(r"apt-get (\S+ )*install", each.text) and "rm -rf /var/lib/apt/lists" not in each.text:
                yield f"line {each.line}: apt's lists stay in the layer"
            if re.search(r"(curl|wget)\b.*\|\s*(ba)?sh", each.text):
                yield f"line {each.line}: runs what a URL gives"


def _secrets(parsed: Dockerfile, root: Path) -> Iterator[str]:
    for name in parsed.arguments:
        if _SECRET.search(name):
            yield f"ARG {name} looks like a secret, and would stay in the image's history"
    for stage in parsed.stages:
        for each in [*stage.all("ARG"), *stage.all("ENV")]:
            for name in re.findall(r"(\w+)=|^(\w+)", each.text):
                if _SECRET.search("".join(name)):
                    yield f"line {each.line}: {each.keyword} {''.join(name)} looks like a secret"


def _target(parsed: Dockerfile, stage: Stage) -> Iterator[str]:
    user = parsed.last(stage, "USER")
    if user is None or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user.text):
        yield f"target {stage.name}: USER has to be a number other than 0, for Kubernetes to see that it is not root"
    health = parsed.last(stage, _HEALTH)
    if health is None:
        yield f"target {stage.name}: no {_HEALTH}"
    elif health.text == "NONE":
        if len(health.comment) < 20:
            yield f"target {stage.name}: {_HEALTH} NONE, and no comment above it that says why"
    elif not _is_exec_form(health.text.removeprefix("CMD").strip()):
        yield f"target {stage.name}: {_HEALTH} in shell form"
    command = parsed.last(stage, "CMD")
    if command is None or not _is_exec_form(command.text):
        yield f"target {stage.name}: CMD in shell form, or none: the shell would get the signals"
    entry = parsed.last(stage, "ENTRYPOINT")
    if entry is not None and not entry.text.startswith("["):
        yield f"target {stage.name}: ENTRYPOINT in shell form"
    labels = " ".join(each.text for one in parsed.lineage(stage) for each in one.all("LABEL"))
    for label in _LABELS:
        if f"org.opencontainers.image.{label}=" not in labels:
            yield f"target {stage.name}: no label org.opencontainers.image.{label}"
    environment = " ".join(each.text for one in parsed.lineage(stage) for each in one.all("ENV"))
    if not re.search(r"\bHOME=/tmp\b", environment):
        yield f"target {stage.name}: HOME is not where a read-only root file system can be written to (/tmp)"


def _is_exec_form(text: str) -> bool:
    try:
        words = json.loads(text)
    except ValueError:
        return False
    return isinstance(words, list) and bool(words)


Rule = Callable[[Dockerfile, Path], Iterator[str]]
_RULES: tuple[Rule, ...] = (_bases, _copies, _runs, _secrets)
