"""The page's web server: Flask and Werkzeug, which do not keep what they are sent."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from paddle_vheat.app.session import MAX_BYTES, Session
from paddle_vheat.errors import UserError

UPLOAD = "application/octet-stream"

HEADERS = {
    # The browser itself refuses whatever is not from here, so the page cannot send a picture anywhere else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(session: Session, host: str) -> Flask:
    """The pages: ``/``, ``/model`` (facts), ``/predict`` (POST of a file's bytes) and ``/heat``; answers are JSON.

    A mistake is answered by status 4xx and {"error": text}.

    Args:
        host: the address that is listened on. If only this computer reaches it, requests under other names are
            refused: a foreign page could otherwise have its own name lead here.
    """
    app = Flask(__name__, static_folder="static", static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES
    if is_loopback(host):
        app.config["TRUSTED_HOSTS"] = ["127.0.0.1", "localhost", "[::1]", host]

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/model")
    def model() -> Response:
        return jsonify(session.describe())

    @app.post("/predict")
    def predict() -> Response:
        if request.mimetype != UPLOAD:  # a foreign page may not send this type without being asked first
            raise UserError(f"expected the bytes of a picture as {UPLOAD}, got {request.mimetype or 'nothing'}")
        return jsonify(session.predict(request.get_data(cache=False)))

    @app.get("/heat")
    def heat() -> Response:
        if session.heat is None:
            raise UserError(session.why_no_heat)
        place = (_number(name, float) for name in ("y", "x", "time"))
        return jsonify(session.heat.spread(_number("block", int), *place))

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(UserError)
    def mistake(error: UserError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        text = f"the file is too large: at most {MAX_BYTES} bytes are taken" if error.code == 413 else error.description
        return jsonify(error=text), error.code or 500

    @app.errorhandler(Exception)
    def fault(error: Exception) -> tuple[Response, int]:
        app.logger.error("fault", exc_info=error)
        text = f"a fault of the program ({type(error).__name__}); its terminal shows where"
        return jsonify(error=text), 500

    return app


def _number(name: str, kind: Callable[[str], Any]) -> Any:
    text = request.args.get(name, "")
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name}: expected a number, got {text[:40]!r}") from None


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(WSGIRequestHandler):
    timeout = 60  # seconds without a byte, after which a connection is closed

    def log_request(self, *args: Any) -> None:
        """Say nothing of requests that went well."""


def open_server(session: Session, host: str, port: int) -> tuple[BaseWSGIServer, str]:
    """A server that listens, and its address; ``serve_forever`` runs it.

    Raises:
        UserError: if it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {text} (--port 0 takes any port that is free)") from error
    with listening:
        port = listening.getsockname()[1]
        name = f"[{host}]" if family == socket.AF_INET6 else host
        server = make_server(
            host, port, make_app(session, host), threaded=True, request_handler=_Handler, fd=listening.fileno()
        )
    return server, f"http://{name}:{port}/"
