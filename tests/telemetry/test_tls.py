"""Certificate files: what a process says about wrong ones, and what the context accepts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from telemetry.tls import TlsFiles
from tests.certificates import encrypted_key, make_certificate


def refusal(cert: Path, key: Path) -> str:
    with pytest.raises(SystemExit) as refused:
        TlsFiles(cert, key, "ALIGNEZ_API_TLS").context()
    line = str(refused.value)
    assert line.startswith("alignez: ALIGNEZ_API_TLS_")
    assert "\n" not in line
    return line


def test_the_context_needs_tls_1_2_or_newer(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    assert TlsFiles(made.cert, made.key, "X").context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_file_that_cannot_be_read_is_named_with_its_variable(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    missing = tmp_path / "missing.pem"
    assert f"_CERT: cannot read {missing} (No such file or directory)" in refusal(missing, made.key)
    assert f"_KEY: cannot read {missing}" in refusal(made.cert, missing)
    assert f"_KEY: cannot read {tmp_path} (Is a directory)" in refusal(made.cert, tmp_path)


def test_files_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    made, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    assert "KEY_VALUES_MISMATCH" in refusal(made.cert, other.key)
    for cert, key in ((text, made.key), (made.cert, text), (made.key, made.cert)):
        assert "are not a certificate and its unencrypted key" in refusal(cert, key)


def test_an_encrypted_key_is_refused_without_a_question(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    assert "unencrypted key" in refusal(made.cert, encrypted_key(made))
