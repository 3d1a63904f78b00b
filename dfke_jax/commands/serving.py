"""``dfke serve``: a model behind the endpoint of `dfke_jax.oracle.serve`, so that it can be
attacked over HTTP.
"""

import argparse
import os
from pathlib import Path

from dfke_jax.commands.common import OK, complain, enable_compilation_cache, number, whole
from dfke_jax.commands.models import MODEL, add_declarations, declarations

KEYS = "DFKE_SERVE_KEYS"
"""The variable of API keys: a command line can be read by every user of the machine."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_declarations(parser)
    parser.add_argument("--network", metavar="NAME", help="of the model, as --declare network=NAME")
    parser.add_argument(
        "--classes", type=whole(1), metavar="K", help="of the model, as --declare classes=K"
    )
    parser.add_argument(
        "--shape",
        type=whole(1),
        nargs=3,
        metavar=("H", "W", "C"),
        help="of its images, as --declare shape=H,W,C",
    )
    parser.add_argument(
        "--reveal",
        metavar="KIND",
        help="label, top_k, logits or probabilities (default, if the model has any)",
    )
    parser.add_argument("--top", type=whole(1), metavar="K", help="how many, with --reveal top_k")
    parser.add_argument("--round", type=whole(0), metavar="DECIMALS", help="round what is revealed")
    parser.add_argument(
        "--explain",
        metavar="KIND",
        help="explain answers as well: gradient, smooth_grad, ...; or KIND:key=value,... "
        "(classes=top, samples=8, ...)",
    )
    parser.add_argument(
        "--explain-quota",
        type=whole(0),
        metavar="ROWS",
        help="rows of a key that are explained, ever",
    )
    parser.add_argument(
        "--rate", type=number(above=0), metavar="ROWS", help="rows a second of a key"
    )
    parser.add_argument("--quota", type=whole(0), metavar="ROWS", help="rows of a key, ever")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"API keys, one a line; or put them in {KEYS}, one a line as well; none: open to all",
    )
    parser.add_argument(
        "--journal",
        metavar="FILE",
        help="remember charges and answered requests there, for the next start",
    )
    parser.add_argument(
        "--max-rows",
        type=whole(1),
        default=1024,
        metavar="N",
        help="in a request (default: %(default)s)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument(
        "--port", type=whole(0, 65_535), default=8000, help="0 for any (default: %(default)s)"
    )


def execute(options: argparse.Namespace) -> int:
    """Loads or trains what is asked for and serves it until interrupted.

    Raises:
      InputError, UnknownNameError, CheckpointError: for options that do not fit together, or no
        such model.
    """
    from dfke_jax.core.errors import InputError
    from dfke_jax.models import open_model
    from dfke_jax.oracle.answering import answering, explaining
    from dfke_jax.oracle.journal import Journal
    from dfke_jax.oracle.registry import explanation
    from dfke_jax.oracle.reveal import Reveal
    from dfke_jax.oracle.serve import create_app, serve

    enable_compilation_cache()
    reveal = Reveal(options.reveal or "probabilities", k=options.top, decimals=options.round)
    setting = explanation(options.explain) if options.explain else None
    if setting and reveal.kind in ("label", "logits"):
        raise InputError(
            f"--explain explains probabilities, which --reveal {reveal.kind} does not reveal"
        )
    if options.model.startswith(("http://", "https://")):
        raise InputError(f"{options.model} is served already; give a model")
    journal = Journal(options.journal) if options.journal else None
    allowed = keys(options.key_file)
    said = declarations(
        options.declare,
        network=options.network,
        num_classes=options.classes,
        input_shape=options.shape,
    )
    with open_model(options.model, said) as model:
        if model.gives == "label" and options.reveal is None:
            reveal = Reveal("label")
        explained = (
            explaining(model.needed_classifier("--explain"), reveal, setting) if setting else None
        )
        oracle = model.oracle(reveal)
        app = create_app(
            oracle if model.on_host else answering(model.victim, reveal, model.gives),  # type: ignore[arg-type]
            input_shape=model.input_shape,
            reveal=reveal,
            num_classes=model.num_classes,
            box=model.box,
            keys=allowed,
            quota=options.quota,
            rate=options.rate,
            max_rows=options.max_rows,
            journal=journal,
            explain=explained,
            explanation=setting,
            explanation_quota=options.explain_quota,
        )
        for note in model.notes:
            complain(f"{model.name}: {note}")
        shown = f"{reveal.kind}, explained by {setting.kind}" if setting else reveal.kind
        said_of = f"serving {options.model} ({shown}) until interrupted at"
        serve(app, options.host, options.port, ready=lambda url: print(said_of, url, flush=True))
    return OK


def keys(file: Path | None) -> list[str] | None:
    """API keys, one a line of a file, or else of the variable `KEYS`; None where there is neither.

    Raises:
      InputError: when the file cannot be read, or there is no key in it.
    """
    from dfke_jax.core.errors import InputError

    if file is None:
        text, source = os.environ.get(KEYS), KEYS
    else:
        source = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read API keys from {file}: {error}") from error
    if text is None:
        return None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(f"there is no API key in {source}")
    return found


__all__ = ["KEYS", "add_options", "execute", "keys"]
