"""The interactive documentation at `/docs`, from files of an installed package: nothing comes from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

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

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    app.mount(f"/{_ASSETS}", StaticFiles(directory=str(files("fastapi_swagger.resources"))))
