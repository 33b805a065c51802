"""Self-signed certificates, made by the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 and localhost, and its key."""

    cert: Path
    key: Path


def make_certificate(directory: Path, name: str = "server") -> Certificate:
    """Skips the test where there is no `openssl` program."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program to make a certificate with")
    made = Certificate(directory / f"{name}.crt", directory / f"{name}.key")
    command = [
        program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(made.key), "-out", str(made.cert),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made


def encrypted_key(certificate: Certificate) -> Path:
    """The key, with a password."""
    path = certificate.key.with_suffix(".encrypted")
    command = ["openssl", "pkey", "-in", str(certificate.key), "-aes256", "-passout", "pass:secret", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path
