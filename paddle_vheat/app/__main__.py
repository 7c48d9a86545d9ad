"""The command: ``python -m paddle_vheat.app --help``."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle_vheat.cli_options import user_path
from paddle_vheat.cpu import configure_cpu
from paddle_vheat.errors import UserError


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    text = (
        "A page in the browser: predictions, and the heat in a model. It runs on the CPU; nothing leaves the machine."
    )
    parser = argparse.ArgumentParser(prog="python -m paddle_vheat.app", description=text)
    add = parser.add_argument
    add("--config", type=user_path, help="configuration of the model, with --model_path")
    add("--model_path", type=user_path, help="checkpoint, or a folder with model.pdparams")
    add(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="replace values of the configuration, as of train.py"
    )
    add("--exported", metavar="FOLDER", type=user_path, help="an exported model instead: predictions, and no heat")
    add("--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1, which only this computer reaches")
    add("--port", type=int, default=7860, help="0 for any that is free; default 7860")
    add(
        "--max_pixels", type=int, metavar="N", help="largest width x height of a picture; default 4194304 (2048 x 2048)"
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise a UserError for options that do not go together."""
    if importlib.util.find_spec("flask") is None:
        raise UserError("the page needs Flask: pip install 'paddle-vheat[app]'")
    if args.exported is None and (args.config is None or args.model_path is None):
        raise UserError("give --config and --model_path, or --exported")
    if args.exported is not None and (args.config or args.model_path or args.opts):
        raise UserError("--exported: the folder says all that is needed, and takes no --config, --model_path or --opts")


def make_session(args: argparse.Namespace, folder: str) -> Any:
    """The session of a trained or of an exported model; ``folder`` is for the files that it reads."""
    from paddle_vheat.app.session import MAX_PIXELS, Session

    limit = MAX_PIXELS if args.max_pixels is None else args.max_pixels
    if args.exported is not None:
        from paddle_vheat.deploy import Predictor

        predictor = Predictor(args.exported)
        description = predictor.description
        return Session(
            title=Path(args.exported).resolve().name,
            facts=[description.task, f"exported model, {predictor.runtime}"],
            predict_file=lambda path: predictor.predictions([path])[0],
            why_no_heat="An exported model is a graph without layers, so its heat and k cannot be shown. To see them, "
            "start the page with --config and --model_path.",
            folder=folder,
            max_pixels=limit,
        )
    from paddle_vheat._paddle import paddle
    from paddle_vheat.app.heat import HeatView
    from paddle_vheat.cli_tools import trained
    from paddle_vheat.engine.evaluate import evaluation_form

    paddle.set_device("cpu")
    task, model = trained(args)
    heat, why = None, ""
    try:
        heat = HeatView(model)
    except ValueError as error:
        why = f"There is no heat to show: {error}."
    fast, millions = evaluation_form(model), sum(int(p.size) for p in model.parameters()) / 1e6
    return Session(
        title=Path(args.config).stem,
        facts=[task.name, f"{millions:.1f} million parameters", args.model_path],
        predict_file=lambda path: task.predict(fast, path),
        heat=heat,
        why_no_heat=why,
        folder=folder,
        max_pixels=limit,
    )


def run(args: argparse.Namespace) -> None:
    from paddle_vheat.app.server import is_loopback, open_server

    with tempfile.TemporaryDirectory(prefix="paddle_vheat_app_") as folder:
        session = make_session(args, folder)
        # Importing Paddle put a handler of its own there; this one raises KeyboardInterrupt, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        server, address = open_server(session, args.host, args.port)
        if not is_loopback(args.host):
            print("warning: whoever reaches this address can use the page: it asks for no password", file=sys.stderr)
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the page until Ctrl-C or SIGTERM; returns the exit code."""
    args = parse(argv)

    try:
        check(args)
        if "paddle" not in sys.modules:
            print(configure_cpu(), flush=True)
        run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
