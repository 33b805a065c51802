"""The interactive documentation at `/docs`, from files of an installed package: nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from os import PathLike

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.http.security import content_policy, inline_source

_ASSETS = "docs/assets"


def serve_docs(app: FastAPI) -> None:
    """Adds the page; FastAPI's own loads its program from a content delivery network.

    Its links are relative, so that it works behind a path prefix.
    """
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
    )
    scripts = re.findall(r"<script>(.*?)</script>", bytes(page.body).decode(), re.DOTALL)
    page.headers["content-security-policy"] = content_policy(
        {
            "script-src": " ".join(["'self'", *map(inline_source, scripts)]),
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": "'self'",
        }
    )

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    app.mount(f"/{_ASSETS}", _Assets(directory=str(files("fastapi_swagger.resources"))))


class _Assets(StaticFiles):
    """Files that browsers may keep, and ask by ETag whether they are still current."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response
