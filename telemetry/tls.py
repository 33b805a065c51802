"""The certificate of a server: two PEM files, checked when a process starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TlsFiles:
    """A certificate with its chain, and its unencrypted key.

    Args:
        setting: the environment variables' prefix, as `ALIGNEZ_API_TLS` of `ALIGNEZ_API_TLS_CERT` and `…_KEY`.
    """

    cert: Path
    key: Path
    setting: str

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer with this certificate.

        Raises: SystemExit: a file cannot be used; one line names its environment variable.
        """
        for name, path in (("CERT", self.cert), ("KEY", self.key)):
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                raise SystemExit(f"alignez: {self.setting}_{name}: cannot read {path} ({error.strerror})") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # The empty password makes an encrypted key an error; without it OpenSSL would ask at the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except OSError as error:
            reason = getattr(error, "reason", None) or str(error)
            raise SystemExit(
                f"alignez: {self.setting}_CERT, {self.setting}_KEY: {self.cert} and {self.key} are not a certificate "
                f"and its unencrypted key in PEM format ({reason})"
            ) from None
        return context
