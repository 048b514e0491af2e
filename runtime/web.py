"""Serves the page of a running loop, `/metrics` and `/health`, in a thread of its own.

Needs the extra [web], so it is imported where it is used. Nobody needs a password: it listens on this machine alone
unless told otherwise, and no page of another site can read it, frame it or ask questions through it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefuse.runtime.board import Board
from edgefuse.runtime.errors import MissingExtraError, WebError
from edgefuse.runtime.metrics import CONTENT_TYPE
from edgefuse.runtime.web_guard import headers, is_own, is_same_site, own_names

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError:
    raise MissingExtraError("the page needs Starlette and uvicorn: pip install 'edgefuse[web]'") from None

LOOPBACK = "127.0.0.1"
TICK_S = 0.1  # between two states that a viewer gets
MOST_VIEWERS = 16
MOST_CHARACTERS = 1000  # of a question
MOST_BYTES = 8192  # of its JSON
CLOSE_S = 1.0

_PAGE = Path(__file__).with_name("web.html")
_log = logging.getLogger(__name__)


class Question(BaseModel):
    """What the page posts; an empty text withdraws the question."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str = Field(max_length=MOST_CHARACTERS)


class Web:
    """Serves a board from `open` to `close`.

    Args:
        board: what there is to see.
        port: 0 takes a free one.
        host: address or name of this machine to listen on.
    """

    def __init__(self, board: Board, port: int, host: str = LOOPBACK) -> None:
        self._board = board
        self._host, self._port = host, port
        self._viewers = 0
        self._is_closing = False
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}/"

    def open(self) -> None:
        """Listen and serve.

        Raises:
            WebError: the address cannot be used.
        """
        listener = _listen(self._host, self._port)
        address, self._port = listener.getsockname()[:2]
        if not ip_address(address).is_loopback:
            _log.warning("%s is open to the network: who reaches it sees the camera and may ask questions", self.url)
        page = _PAGE.read_text(encoding="utf-8")
        config = uvicorn.Config(
            _guarded(self._app(page), own_names(self._host)),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=list(headers(page).items()),
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop within a second; calling it twice is fine."""
        self._is_closing = True
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(CLOSE_S)

    def __enter__(self) -> Web:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _app(self, page: str) -> Starlette:
        async def index(request: Request) -> Response:
            return HTMLResponse(page)

        routes = {"/": index, "/events": self._events, "/frame.jpg": self._frame}
        routes |= {"/metrics": self._metrics, "/health": self._health}
        asking = Route("/text", self._text, methods=["POST"])
        return Starlette(routes=[*(Route(path, endpoint) for path, endpoint in routes.items()), asking])

    async def _events(self, request: Request) -> Response:
        if self._viewers >= MOST_VIEWERS:
            return PlainTextResponse(f"{MOST_VIEWERS} viewers are the most", 503)
        return StreamingResponse(self._states(), media_type="text/event-stream")

    async def _states(self) -> AsyncIterator[str]:
        """The state again and again: one that is late is followed by a new one, never by those that were missed."""
        self._viewers += 1
        try:
            while not self._is_closing:
                yield f"data: {json.dumps(self._board.state(), allow_nan=False)}\n\n"
                await asyncio.sleep(TICK_S)
        finally:
            self._viewers -= 1

    async def _frame(self, request: Request) -> Response:
        jpeg = self._board.jpeg()
        return Response(jpeg, media_type="image/jpeg") if jpeg else PlainTextResponse("no picture yet", 404)

    async def _metrics(self, request: Request) -> Response:
        return Response(self._board.metrics.text(), media_type=CONTENT_TYPE)

    async def _health(self, request: Request) -> Response:
        status, document = self._board.metrics.health()
        return JSONResponse(document, 503 if status == "down" else 200)

    async def _text(self, request: Request) -> Response:
        _check_asker(request)
        try:
            question = Question.model_validate_json(await _body(request))
        except ValidationError:
            raise HTTPException(400, f'wanted {{"text": "..."}}, at most {MOST_CHARACTERS} characters') from None
        if not self._board.ask(" ".join(question.text.split())):
            raise HTTPException(404, "this model reads no text")
        return Response(status_code=204)


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port <= 65535:
            raise OSError("a port is 0 to 65535")
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], port), family=family)
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.args[-1]  # the error's own words would repeat the address
        found = f"the page cannot be served on {host} port {port} ({why})"
        raise WebError(f"{found}; give another --web or --web-host") from None


def _guarded(app: ASGIApp, names: frozenset[str]) -> ASGIApp:
    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "")
        wrong = PlainTextResponse("this is another machine; open the page by its address or --web-host", 421)
        await (app if is_own(host, names) else wrong)(scope, receive, send)

    return guard


def _check_asker(request: Request) -> None:
    """A question comes from this page or from no browser: for JSON, another site needs a leave that we never give."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "wanted application/json")
    if not is_same_site(request.headers):
        raise HTTPException(403, "another site may not ask")


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"more than {MOST_BYTES} bytes")
    return body
