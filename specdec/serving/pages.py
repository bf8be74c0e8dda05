"""The page that comes with the server, and a policy that lets it load nothing else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from specdec.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript"}  # whatever this system takes them for
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router(folder: Path = FOLDER) -> APIRouter:
    """Routes to the files of `folder`; 404 where there is no page."""
    routes = APIRouter(include_in_schema=False)
    _add(routes, "/", folder / "index.html")
    for kind in _TYPES:
        for file in sorted(folder.glob(f"*{kind}")):
            _add(routes, f"/{file.name}", file)
    return routes


def _add(routes: APIRouter, path: str, file: Path) -> None:
    @routes.get(path)
    async def page() -> Response:
        if not file.is_file():
            raise ApiError(404, f"this copy of specdec has no {file.name}")
        return FileResponse(file, headers=_HEADERS, media_type=_TYPES.get(file.suffix))
