"""`python -m api.probe`: asks the API of this container for `/health`; for the health check of an image.

Status 0 if it answers with 200. Imports the standard library only, because it starts every few seconds.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request


def main() -> int:
    """The exit status. The certificate is not checked: it names the service, not 127.0.0.1."""
    tls = bool(os.environ.get("ALIGNEZ_API_TLS_CERT"))
    context = ssl._create_unverified_context() if tls else None
    address = f"{'https' if tls else 'http'}://127.0.0.1:{os.environ.get('ALIGNEZ_API_PORT', '8000')}/health"
    try:
        with urllib.request.urlopen(address, timeout=4, context=context) as response:
            return int(response.status != 200)
    except OSError as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
