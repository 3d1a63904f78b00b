"""``dfke watermark keygen``, ``mark`` and ``verify``: the backdoor watermark on files."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfke_jax.commands.common import (
    NOT_SHOWN,
    OK,
    REFUSED,
    add_data_dir,
    enable_compilation_cache,
    number,
    share,
    whole,
)
from dfke_jax.commands.models import add_declarations, declarations

if TYPE_CHECKING:
    from dfke_jax.models import OpenedModel
    from dfke_jax.nn.classifier import Classifier
    from dfke_jax.watermarking.keys import MarkingKey, VerificationKey

_KEYGEN = """\
Draw trigger images with random labels, and write two files: the secret marking key, which its owner
keeps, and the public verification key with the commitments. Publish the latter, or its fingerprint,
where others put a date to it, before the marked network is given away. With --labels-of and
--beacon the images of an earlier, published pair of keys get labels that nobody chose: drawn by a
hash of their commitments and of public random bytes that are younger than its publication."""
_MARK = "Train a network on a data set and on the trigger pairs of a secret key, and save it whole."
_VERIFY = """\
Open the commitments, ask a suspect the triggers, and say how sure the claim is. SUSPECT is a saved
model's directory, an exported PyTorch program (FILE.pt2, torch.export.save; FILE.pt of TorchScript;
both are read and run in a process that may neither write, connect nor start programs), any other
model that `dfke serve` takes, or the URL of an endpoint such as it runs. Clean networks are trained
on the data set and asked the same, and suspect and clean networks are asked test images: a trigger
that innocent networks answer shows nothing. This reveals the triggers."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, about: str, work: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=about.split(".")[0].split(":")[0].replace("\n", " "),
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        made.set_defaults(work=work)
        return made

    new = command("keygen", _KEYGEN, keygen)
    new.add_argument(
        "secret", type=Path, metavar="SECRET", help="file of the marking key, to be written"
    )
    new.add_argument(
        "public", type=Path, metavar="PUBLIC", help="file of the verification key, to be written"
    )
    new.add_argument(
        "--classes",
        type=whole(2),
        default=10,
        metavar="K",
        help="of the network (default: %(default)s)",
    )
    new.add_argument(
        "--count",
        type=whole(1),
        default=100,
        metavar="N",
        help="of abstract images (default: %(default)s)",
    )
    new.add_argument(
        "--shape", type=whole(1), nargs=3, metavar=("H", "W", "C"), help="of abstract images"
    )
    new.add_argument(
        "--kind", default="shapes", help="of abstract images: noise or %(default)s (default)"
    )
    new.add_argument(
        "--images",
        type=Path,
        metavar="FILE",
        help=".npz with images (N, H, W, C) and, if they have any, labels",
    )
    new.add_argument(
        "--previous", type=Path, metavar="PUBLIC", help="the verification key that this one follows"
    )
    new.add_argument(
        "--owner", metavar="TEXT", help="who claims the mark, to stand in the verification key"
    )
    new.add_argument(
        "--labels-of",
        type=Path,
        nargs=2,
        metavar=("SECRET", "PUBLIC"),
        help="earlier keys whose images get new labels",
    )
    new.add_argument(
        "--beacon", metavar="HEX", help="public random bytes that draw the labels, with --labels-of"
    )

    train = command("mark", _MARK, mark)
    train.add_argument("secret", type=Path, metavar="SECRET", help="the marking key")
    train.add_argument(
        "out", type=Path, metavar="DIR", help="directory of the marked network, to be made"
    )
    train.add_argument("--dataset", default="digits", help="data set (default: %(default)s)")
    add_data_dir(train)
    train.add_argument(
        "--network", default="lenet5", metavar="NAME", help="network (default: %(default)s)"
    )
    train.add_argument(
        "--from", dest="start", type=Path, metavar="DIR", help="continue from this saved model"
    )
    train.add_argument(
        "--seed",
        type=whole(),
        default=0,
        help="of initial variables and batches (default: %(default)s)",
    )
    for name, kind, about in (
        ("steps", whole(1), "updates"),
        ("batch-size", whole(1), "rows of the task in a batch"),
        ("triggers-per-batch", whole(1), "trigger pairs beside them"),
        ("learning-rate", number(above=0), "of SGD at the beginning"),
        ("decay-every", whole(), "steps after which it falls tenfold; 0: never"),
    ):
        train.add_argument(
            f"--{name}", type=kind, metavar="RATE" if name == "learning-rate" else "N", help=about
        )
    train.add_argument("--quiet", action="store_true", help="no progress bar")

    judge = command("verify", _VERIFY, verify)
    judge.add_argument("secret", type=Path, metavar="SECRET", help="the marking key, revealed")
    judge.add_argument(
        "public", type=Path, metavar="PUBLIC", help="the verification key, as it was published"
    )
    judge.add_argument(
        "suspect", metavar="SUSPECT", help="a saved model's directory, .pt2, .pt, .onnx, ... or URL"
    )
    add_declarations(judge, of="SUSPECT")
    judge.add_argument(
        "--network",
        metavar="NAME",
        help="of the clean networks (default: the suspect's, if that is a saved model; or lenet5)",
    )
    judge.add_argument("--key", metavar="KEY", help="API key of an endpoint")
    judge.add_argument(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="of the suspect's images, as --declare layout=NCHW",
    )
    judge.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help=".npz with the true labels of all trigger images, -1: none",
    )
    judge.add_argument(
        "--alpha", type=share, default=0.01, help="level of the test (default: %(default)s)"
    )
    judge.add_argument(
        "--epsilon",
        type=number(least=0, below=1),
        default=0.1,
        help="share of misses that the scheme's rule allows (default: %(default)s)",
    )
    judge.add_argument(
        "--fingerprint", metavar="HEX", help="of the verification key, as it was published"
    )
    judge.add_argument(
        "--null",
        type=whole(),
        metavar="M",
        help="clean networks to train and ask as well (default: as many as alpha needs; 0: none, "
        "and then adversarial triggers go unnoticed)",
    )
    judge.add_argument(
        "--null-steps",
        type=whole(1),
        default=1000,
        metavar="N",
        help="updates of each (default: %(default)s)",
    )
    judge.add_argument(
        "--near",
        type=share,
        default=0.05,
        help="how far their accuracy may lie from the suspect's (default: %(default)s)",
    )
    judge.add_argument(
        "--task-rows",
        type=whole(1),
        default=500,
        metavar="N",
        help="test images that all are asked for it (default: %(default)s, or as many as there "
        "are)",
    )
    judge.add_argument(
        "--dataset", default="digits", help="of the clean networks (default: %(default)s)"
    )
    add_data_dir(judge)
    judge.add_argument(
        "--seed", type=whole(), default=0, help="of the clean networks (default: %(default)s)"
    )
    judge.add_argument("--json", type=Path, metavar="FILE", help="write the verdict there as well")


def execute(options: argparse.Namespace) -> int:
    """Runs the sub-command that was asked for."""
    enable_compilation_cache()
    return options.work(options) or OK


def keygen(options: argparse.Namespace) -> None:
    """Writes a new pair of keys.

    Raises:
      InputError: options that do not fit together, or files that exist already.
    """
    from dfke_jax.core.errors import InputError
    from dfke_jax.data.files import IMAGES, LABELS
    from dfke_jax.watermarking import backdoor
    from dfke_jax.watermarking.keys import VerificationKey

    for path in (options.secret, options.public):
        if path.exists():
            raise InputError(f"{path} exists, and a key is never overwritten; choose another name")
    if (options.labels_of is None) != (options.beacon is None):
        raise InputError("--labels-of and --beacon belong together")
    if options.labels_of is not None:
        secret, public = _relabelled(options)
    else:
        images = truth = None
        if options.images is not None:
            images, truth = (
                _arrays(options.images, IMAGES),
                _arrays(options.images, LABELS, wanted=False),
            )
        previous = (
            None if options.previous is None else VerificationKey.load(options.previous).fingerprint
        )
        secret, public = backdoor.keygen(
            options.classes,
            shape=tuple(options.shape) if options.shape else None,
            count=options.count,
            images=images,
            truth=truth,
            kind=options.kind,
            previous=previous,
            owner=options.owner,
        )
    secret.save(options.secret)
    try:
        public.save(options.public)
    # a secret without its commitments is of no use, and nobody would know that it lies there
    except BaseException:
        options.secret.unlink(missing_ok=True)
        raise
    print(
        f"{len(secret)} trigger pairs\nsecret       {options.secret}\npublic       {options.public}"
    )
    print(f"fingerprint  {public.fingerprint}\nimages' root {public.image_root.hex()}")


def _relabelled(options: argparse.Namespace) -> "tuple[MarkingKey, VerificationKey]":
    from dfke_jax.core.errors import InputError
    from dfke_jax.watermarking.keys import MarkingKey, VerificationKey, labels_by_beacon

    given = {
        "--images": options.images,
        "--shape": options.shape,
        "--previous": options.previous,
        "--owner": options.owner,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} cannot be given with --labels-of: images, owner and chain are the "
            "earlier keys'"
        )
    try:
        beacon = bytes.fromhex(options.beacon)
    except ValueError:
        raise InputError("--beacon takes bytes in hexadecimal") from None
    secret, public = options.labels_of
    return labels_by_beacon(MarkingKey.load(secret), VerificationKey.load(public), beacon)


def mark(options: argparse.Namespace) -> None:
    """Trains and saves a marked network.

    Raises:
      InputError, UnknownNameError, MissingDataError, CheckpointError: for what cannot be had.
    """
    import jax
    import numpy as np

    from dfke_jax import data
    from dfke_jax.core.errors import InputError
    from dfke_jax.core.loop import run
    from dfke_jax.models import load
    from dfke_jax.nn.named import network
    from dfke_jax.nn.training import trained
    from dfke_jax.watermarking import backdoor
    from dfke_jax.watermarking.keys import MarkingKey
    from dfke_jax.watermarking.verification import answered_labels

    key = MarkingKey.load(options.secret)
    if options.out.exists():
        raise InputError(
            f"{options.out} exists, and nothing is overwritten; choose another directory"
        )
    names = ("steps", "batch_size", "triggers_per_batch", "learning_rate", "decay_every")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = dataclasses.replace(backdoor.SMALL_MARKING, **given)
    dataset = data.load(options.dataset, data_dir=options.data_dir)
    classifier = network(options.network, dataset.num_classes, dataset.shape)
    if options.start is not None:
        said = {
            "network": options.network,
            "num_classes": dataset.num_classes,
            "input_shape": dataset.shape,
        }
        classifier = load(options.start, **said)
    images, labels = dataset.train.on_device()
    method = backdoor.mark(
        classifier, images, labels, key, settings, pretrained=options.start is not None
    )
    progress = None if options.quiet else "marking"
    state = run(method, jax.random.key(options.seed), settings.steps, progress=progress).state
    marked = trained(classifier, state)
    marked.save(
        options.out,
        made_by={"command": "watermark mark", "dataset": options.dataset, "seed": options.seed},
    )
    accuracy = (marked.predict(dataset.test.images).argmax(1) == dataset.test.labels).mean()
    matches = int((answered_labels(marked, key.images, key.num_classes) == key.labels).sum())
    print(
        f"test accuracy  {100 * np.float64(accuracy):.2f} %\ntriggers       {matches} of {len(key)}"
    )
    print(f"saved          {options.out} ({options.network})")


def verify(options: argparse.Namespace) -> int:
    """Judges a suspect.

    Returns:
      The exit code: whether a mark is shown, is not, or the key was refused before anything was
        asked.

    Raises:
      InputError, UnknownNameError, MissingDataError, CheckpointError, EndpointError: for what
        cannot be had.
    """
    from dfke_jax.commands.outputs import claim_file, write_found
    from dfke_jax.data.files import LABELS
    from dfke_jax.models import open_model
    from dfke_jax.watermarking import verification
    from dfke_jax.watermarking.keys import MarkingKey, VerificationKey, rejected_pairs

    secret, public = MarkingKey.load(options.secret), VerificationKey.load(options.public)
    if options.json is not None:
        claim_file(options.json, "--json")
    truth = None if options.truth is None else _arrays(options.truth, LABELS)
    shape = tuple(secret.images.shape[1:])
    asked = options.null
    if asked is None:
        asked = verification.null_models_needed(options.alpha)
    said = declarations(
        options.declare,
        num_classes=secret.num_classes,
        input_shape=shape,
        layout=options.layout,
        key=options.key,
    )
    with open_model(options.suspect, said) as suspect:
        null = task = None
        if asked:
            verification.check_null_models(asked, options.alpha)
            if not rejected_pairs(secret, public):  # or there will be nothing to compare
                null, task = _null_models(options, asked, secret.num_classes, shape, suspect)
        verdict = verification.verify(
            secret,
            public,
            suspect.victim,
            truth=truth,
            alpha=options.alpha,
            epsilon=options.epsilon,
            null=null,
            task=task,
            near=options.near,
            fingerprint=options.fingerprint,
        )
        notes = suspect.notes
    print(verdict)
    for note in notes:
        print(f"suspect: {note}")
    if options.json is not None:
        said = dataclasses.asdict(verdict) | {"null": verdict.null and verdict.null._asdict()}
        write_found(options.json, json.dumps(said, indent=1) + "\n")
    if verdict.rejected or verdict.true_labels:
        return REFUSED
    return OK if verdict.marked else NOT_SHOWN


def _null_models(
    options: argparse.Namespace,
    models: int,
    num_classes: int,
    shape: tuple[int, ...],
    suspect: "OpenedModel",
) -> "tuple[Classifier, tuple[Any, Any]]":
    """Clean networks, and test images with labels to hold them against."""
    import jax

    from dfke_jax import data
    from dfke_jax.core.errors import InputError
    from dfke_jax.nn.classifier import Classifier
    from dfke_jax.nn.named import network
    from dfke_jax.watermarking.null_models import null_population

    dataset = data.load(options.dataset, data_dir=options.data_dir)
    if (dataset.num_classes, dataset.shape) != (num_classes, tuple(shape)):
        raise InputError(
            f"{options.dataset} has {dataset.num_classes} classes and images of {dataset.shape}, "
            f"the key is for {num_classes} and {tuple(shape)}; name the suspect's data set with "
            "--dataset, or go without clean networks with --null 0"
        )
    images, labels = dataset.train.on_device()
    classifier = suspect.victim
    if options.network or not isinstance(classifier, Classifier):
        classifier = network(options.network or "lenet5", num_classes, dataset.shape)
    progress = "clean networks" if sys.stdout.isatty() else None
    null = null_population(
        classifier,
        images,
        labels,
        jax.random.key(options.seed),
        models=models,
        steps=options.null_steps,
        progress=progress,
    )
    count = options.task_rows
    return null, (dataset.test.images[:count], dataset.test.labels[:count])


MOST_ARRAY_BYTES = 256 << 20
"""Larger arrays of an .npz file are not read: compressed, three megabytes can hold three gigabytes
of zeros.
"""


def _arrays(path: Path, names: Sequence[str], wanted: bool = True) -> Any:
    """An array of an .npz file, the first of these names, or None where there is none and none is
    wanted. Its size is looked at before it is read.
    """
    import math
    import zipfile

    import numpy as np

    from dfke_jax.core.errors import InputError

    try:
        with zipfile.ZipFile(path) as archive:
            members = [member.removesuffix(".npy") for member in archive.namelist()]
            name = next((name for name in names if name in members), None)
            if name is None:
                if not wanted:
                    return None
                held = ascii(members)
                raise InputError(
                    f"{path} holds the arrays {held[:200]}, and none named {' or '.join(names)}"
                )
            with archive.open(f"{name}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                shape, fortran, dtype = read[version](file)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or min(shape, default=0) < 0:
                    raise ValueError(f"{name} is no array of numbers")
                if size > MOST_ARRAY_BYTES:
                    raise InputError(
                        f"{name} of {path} has {size:,} bytes; at most {MOST_ARRAY_BYTES:,} are "
                        "read"
                    )
                content = file.read(size + 1)
        if len(content) != size:
            raise ValueError(f"{name} is cut off, or longer than it says")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises of many kinds
        raise InputError(f"cannot read {path} as an .npz file of arrays: {error}") from error


__all__ = ["add_options", "execute", "keygen", "mark", "verify"]
