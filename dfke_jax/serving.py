"""``dfke serve``: a classifier behind the endpoint of `dfke_jax.oracle.serve`, so that it can be attacked over HTTP."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dfke_jax.nn.classifier import Classifier
    from dfke_jax.oracle.explanations import Explanation
    from dfke_jax.oracle.reveal import Reveal


KEYS = "DFKE_SERVE_KEYS"
"""The variable of API keys: a command line can be read by every user of the machine."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="digits (a small network trained at once), or a directory of saved variables"
    )
    parser.add_argument("--network", default="mlp_small", metavar="NAME", help="network (default: %(default)s)")
    parser.add_argument(
        "--classes", type=int, default=10, metavar="K", help="of a saved network (default: %(default)s)"
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(8, 8, 1), metavar=("H", "W", "C"), help="of a saved network's images"
    )
    parser.add_argument(
        "--reveal", default="probabilities", metavar="KIND", help="label, top_k, logits or %(default)s (default)"
    )
    parser.add_argument("--top", type=int, metavar="K", help="how many, with --reveal top_k")
    parser.add_argument("--round", type=int, metavar="DECIMALS", help="round what is revealed")
    parser.add_argument(
        "--explain",
        metavar="KIND",
        help="explain answers as well: gradient, smooth_grad, ...; or KIND:key=value,... (classes=top, samples=8, ...)",
    )
    parser.add_argument("--explain-quota", type=int, metavar="ROWS", help="rows of a key that are explained, ever")
    parser.add_argument("--rate", type=float, metavar="ROWS", help="rows a second of a key")
    parser.add_argument("--quota", type=int, metavar="ROWS", help="rows of a key, ever")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"API keys, one a line; or put them in {KEYS}, one a line as well; none: open to all",
    )
    parser.add_argument(
        "--journal", metavar="FILE", help="remember charges and answered requests there, for the next start"
    )
    parser.add_argument("--max-rows", type=int, default=1024, metavar="N", help="in a request (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any (default: %(default)s)")


def serve_model(options: argparse.Namespace) -> None:
    """Loads or trains what is asked for and serves it until interrupted.

    Raises:
      InputError, UnknownNameError, CheckpointError: for options that do not fit together, or no such model.
    """
    from dfke_jax.core.errors import InputError
    from dfke_jax.oracle.journal import Journal
    from dfke_jax.oracle.registry import explanation
    from dfke_jax.oracle.reveal import Reveal
    from dfke_jax.oracle.serve import create_app, serve

    reveal = Reveal(options.reveal, k=options.top, decimals=options.round)
    setting = explanation(options.explain) if options.explain else None
    if setting and reveal.kind in ("label", "logits"):
        raise InputError(f"--explain explains probabilities, which --reveal {reveal.kind} does not reveal")
    journal = Journal(options.journal) if options.journal else None
    allowed = keys(options.key_file)
    classifier = load(options.model, options.network, options.classes, options.shape)
    app = create_app(
        answering(classifier, reveal),
        input_shape=classifier.input_shape,
        reveal=reveal,
        num_classes=classifier.num_classes,
        box=classifier.preprocessing.box,
        keys=allowed,
        quota=options.quota,
        rate=options.rate,
        max_rows=options.max_rows,
        journal=journal,
        explain=explaining(classifier, reveal, setting) if setting else None,
        explanation=setting,
        explanation_quota=options.explain_quota,
    )
    shown = f"{options.reveal}, explained by {setting.kind}" if setting else options.reveal
    said = f"serving {options.model} ({shown}) until interrupted at"
    serve(app, options.host, options.port, ready=lambda url: print(said, url, flush=True))


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


def load(model: str, name: str, num_classes: int, shape: tuple[int, int, int]) -> "Classifier":
    """The classifier to serve.

    Args:
      model: ``digits``, or a directory that `dfke_jax.core.save` wrote of a `Classifier`. Such a directory holds
        variables only, so the rest must be said; preprocessing is what `experiments.settings.network` gives.
      name, num_classes, shape: of a saved network; `digits` takes the name alone.
    """
    from dfke_jax.core.checkpoint import restore
    from dfke_jax.experiments.bench.settings import network

    height, width, channels = shape
    if model == "digits":
        return trained_on_digits(name)
    return restore(model, network(name, num_classes, (height, width, channels)))


def trained_on_digits(name: str, steps: int = 600) -> "Classifier":
    """A network trained on the bundled digits; the same one every time."""
    import jax

    from dfke_jax import data
    from dfke_jax.core.loop import run
    from dfke_jax.distillation.response import cross_entropy_training
    from dfke_jax.experiments.bench.settings import network
    from dfke_jax.nn.training import trained

    digits = data.load("digits")
    images, labels = digits.train.on_device()
    classifier = network(name, digits.num_classes, digits.shape)
    return trained(
        classifier, run(cross_entropy_training(classifier, images, labels, steps=steps), jax.random.key(0), steps).state
    )


def answering(classifier: "Classifier", reveal: "Reveal") -> "Callable[[np.ndarray], np.ndarray]":
    """Rows (B, H, W, C) on the host -> what `reveal` leaves of the classifier's answers.

    Batches are padded to powers of two, so that few programs are compiled.
    """
    import jax

    compiled = jax.jit(lambda classifier, rows: reveal.of_logits(classifier(rows)))
    return _padded(lambda rows: compiled(classifier, rows))


def explaining(classifier: "Classifier", reveal: "Reveal", setting: "Explanation") -> "Callable[[np.ndarray], Any]":
    """Rows (B, H, W, C) on the host -> `Explained`; padded as `answering` pads."""
    import jax

    from dfke_jax.oracle.explanations import explanation_oracle

    oracle = explanation_oracle(classifier, setting, reveal)
    compiled = jax.jit(lambda oracle, rows: oracle(rows))
    return _padded(lambda rows: compiled(oracle, rows))


def _padded(answer: "Callable[[np.ndarray], Any]") -> "Callable[[np.ndarray], Any]":
    import jax
    import numpy as np

    def predict(rows: "np.ndarray") -> Any:
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rows)], answer(padded))

    return predict


__all__ = ["add_options", "answering", "explaining", "load", "serve_model", "trained_on_digits"]
