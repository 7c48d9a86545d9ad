"""The web server: what it answers, and what it refuses. Flask's own client asks, without a network."""

from __future__ import annotations

import pytest

pytest.importorskip("flask")

from paddle_vheat.app import __main__ as command
from paddle_vheat.app.server import UPLOAD, is_loopback, make_app, open_server
from paddle_vheat.app.session import MAX_BYTES, Session
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from tests.app.test_session import png


class Heat:
    """In the place of a model's."""

    def describe(self):
        return {"blocks": []}

    def spread(self, block, y, x, time):
        if block:
            raise UserError(f"block {block} does not exist")
        return {"asked": [block, y, x, time]}


def predict(path):
    return ClassificationPrediction([{"class": 0, "name": "cat", "score": 1.0}])


def client(host="127.0.0.1", **options):
    return make_app(Session("demo", [], **{"predict_file": predict, "heat": Heat(), **options}), host).test_client()


def test_the_page_and_its_files_are_served_and_nothing_else():
    asked = client()
    page = asked.get("/")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    for name in ("static/style.css", "static/page.js"):
        assert name in page.text
        assert asked.get(f"/{name}").status_code == 200
    for address in (
        "/static/",
        "/static",
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/etc/passwd",
        "/predict",
    ):
        assert asked.get(address).status_code in (404, 405), address


def test_no_file_of_the_page_names_another_address():
    asked = client()
    for address in ("/", "/static/style.css", "/static/page.js"):
        text = asked.get(address).text.replace("http://www.w3.org/2000/svg", "")  # a namespace, which is not fetched
        assert "//" not in text.replace("// ", ""), address


def test_the_browser_is_told_to_fetch_and_send_nowhere_else():
    for response in (client().get("/"), client().get("/nowhere"), client().post("/predict")):
        policy = dict(rule.strip().split(" ", 1) for rule in response.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert (policy["connect-src"], policy["script-src"], policy["form-action"]) == ("'self'", "'self'", "'none'")
        assert response.headers["Cache-Control"] == "no-store"


def test_a_picture_is_predicted():
    response = client().post("/predict", data=png(), content_type=UPLOAD)
    assert (response.status_code, response.json["classes"][0]["name"]) == (200, "cat")


def test_heat_is_answered():
    assert client().get("/heat?block=0&y=0.25&x=0.5&time=4").json == {"asked": [0, 0.25, 0.5, 4.0]}


def fail(path):
    raise RuntimeError("of the model")


@pytest.mark.parametrize(
    ("options", "ask", "status", "text"),
    [
        ({}, lambda c: c.post("/predict", data=b"?", content_type=UPLOAD), 400, "cannot be read: the file is no image"),
        ({"max_pixels": 9}, lambda c: c.post("/predict", data=png(), content_type=UPLOAD), 400, "8 x 6 = 48 pixels"),
        (
            {},
            lambda c: c.post("/predict", data=bytes(MAX_BYTES + 1), content_type=UPLOAD),
            413,
            f"at most {MAX_BYTES} byt",
        ),
        ({}, lambda c: c.post("/predict", data=png(), content_type="image/png"), 400, f"as {UPLOAD}, got image/png"),
        ({"predict_file": fail}, lambda c: c.post("/predict", data=png(), content_type=UPLOAD), 500, "RuntimeError"),
        ({}, lambda c: c.get("/heat?block=1&y=0&x=0&time=0"), 400, "block 1 does not exist"),
        ({}, lambda c: c.get("/heat?block=0&y=&x=0&time=0"), 400, "y: expected a number, got ''"),
        ({"heat": None, "why_no_heat": "a graph"}, lambda c: c.get("/heat?block=0"), 400, "a graph"),
        ({}, lambda c: c.get("/model", headers={"Host": "example.org"}), 400, "Host"),
    ],
    ids=["damaged", "pixels", "bytes", "type", "fault", "block", "number", "no heat", "foreign name"],
)
def test_mistakes_are_answered_by_their_text(options, ask, status, text):
    response = ask(client(**options))
    assert (response.status_code, text in response.json["error"]) == (status, True), response.json


def test_other_names_are_taken_where_others_are_to_reach_it():
    assert client("0.0.0.0").get("/model", headers={"Host": "laboratory:7860"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False)],
)
def test_addresses_that_only_this_computer_reaches(host, local):
    assert is_loopback(host) is local


def test_a_port_in_use_is_named():
    session = Session("demo", [], predict)
    server, address = open_server(session, "127.0.0.1", 0)
    try:
        port = int(address.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {port}: .*in use"):
            open_server(session, "127.0.0.1", port)
    finally:
        server.server_close()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "error: give --config and --model_path, or --exported"),
        (["--config", "c.yml"], "error: give --config and --model_path, or --exported"),
        (["--exported", "f", "--config", "c.yml"], "takes no --config, --model_path or --opts"),
        (["--exported", "nowhere"], "nowhere"),
        (["--config", "nowhere.yml", "--model_path", "w"], "nowhere.yml"),
    ],
)
def test_mistakes_of_the_command_line_are_one_line(given, text, capsys):
    assert command.main(given) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_flask_is_asked_for_by_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--exported", "f"]) == 2
    assert "pip install 'paddle-vheat[app]'" in capsys.readouterr().err
