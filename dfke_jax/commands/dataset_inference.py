"""``dfke dataset-inference``: a verdict on a suspect, from files and endpoints."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfke_jax.commands.common import (
    NOT_SHOWN,
    OK,
    console,
    enable_compilation_cache,
    number,
    share,
    table,
    whole,
)
from dfke_jax.commands.models import MODEL, add_declarations, declarations

if TYPE_CHECKING:
    import numpy as np

    from dfke_jax.dataset_inference import InferenceSettings, Verdict
    from dfke_jax.nn.classifier import Classifier
    from dfke_jax.nn.whitebox import WhiteBox

NOISES = (1.0, 2.0, 4.0, 8.0, 16.0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add(
        "--victim",
        required=True,
        metavar="MODEL",
        help="a saved model's directory, or digits; its weights are needed",
    )
    add_declarations(parser, "--declare-victim", "the victim (and --independent models)")
    add("--suspect", required=True, metavar="MODEL", help=MODEL)
    add_declarations(parser, "--declare-suspect", "the suspect")
    add(
        "--private",
        required=True,
        type=Path,
        metavar="X.npz",
        help="images and labels that the victim was trained on",
    )
    add(
        "--public",
        required=True,
        type=Path,
        metavar="Y.npz",
        help="as many of the same kind that nobody was trained on",
    )
    add(
        "--others",
        type=Path,
        metavar="Z.npz",
        help="more of the same kind, at least twice --private, to train independent models on "
        "(advised)",
    )
    add(
        "--independents",
        type=whole(1),
        default=21,
        metavar="N",
        help="how many, with --others (default: %(default)s)",
    )
    add(
        "--references",
        type=whole(),
        default=4,
        metavar="N",
        help="further ones, for calibration (default: %(default)s)",
    )
    add(
        "--training-steps",
        type=whole(1),
        default=1500,
        metavar="N",
        help="of each of them (default: %(default)s)",
    )
    add(
        "--independent",
        action="append",
        default=[],
        metavar="MODEL",
        help="an independent model that exists; repeat it",
    )
    add(
        "--network",
        metavar="NAME",
        help="of the independent models that are trained (default: the victim's own)",
    )
    add(
        "--classes", type=whole(2), metavar="K", help="of the victim, as --declare-victim classes=K"
    )
    add(
        "--embedding",
        default="blind_walk",
        metavar="KIND",
        help="blind_walk (labels; default) or mingd (gradients)",
    )
    add(
        "--noise",
        type=number(above=0),
        metavar="X",
        help="of the walk (default: what turns most of the victim's labels)",
    )
    add(
        "--starts",
        type=whole(1),
        default=10,
        metavar="N",
        help="walks of a kind and sample (default: %(default)s)",
    )
    add(
        "--max-steps",
        type=whole(1),
        default=50,
        metavar="N",
        help="of a walk (default: %(default)s)",
    )
    add("--alpha", type=share, default=0.05, help="p-values below it accuse (default: %(default)s)")
    add(
        "--looks",
        type=whole(1),
        default=1,
        metavar="N",
        help="verdicts that you will look at in all (suspects, growing --revealed, seeds); each "
        "accuses below alpha / N (default: %(default)s)",
    )
    add(
        "--revealed",
        type=whole(2),
        metavar="M",
        help="private, and as many public, samples shown to the suspect (default: half)",
    )
    add(
        "--both-correct",
        action="store_true",
        help="test only samples that victim and suspect classify correctly",
    )
    add(
        "--seed",
        type=whole(),
        default=0,
        help="of everything random; fix it before you look (default: %(default)s)",
    )
    add("--key", metavar="KEY", help="API key of the endpoint")
    add(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="keeps every answer of the endpoint; a second run pays for nothing twice",
    )
    add(
        "--budget",
        type=whole(),
        metavar="ROWS",
        help="rows that the endpoint may be asked, at most",
    )
    add(
        "--out",
        type=Path,
        default=Path("verdict.json"),
        metavar="FILE",
        help="result (default: %(default)s)",
    )


def execute(options: argparse.Namespace) -> int:
    """Tests the suspect and prints the verdict; the exit code says whether it accuses."""
    from rich.markup import escape

    enable_compilation_cache()
    verdict, beside = judge_files(options)
    view = table(show_header=False)
    view.add_column(no_wrap=True, style="bold")
    view.add_column(overflow="fold")
    for name, text in fields(verdict):
        view.add_row(name.replace("_", " "), escape(text))
    screen = console()
    screen.print(view)
    if beside["ledger"]:
        rows = beside["ledger"]
        print(
            f"endpoint  {rows['rows']:,} rows asked in {rows['requests']:,} requests, "
            f"{rows['cache_hits']:,} known before"
        )
    print(f"result    {options.out}")
    return OK if verdict.stolen else NOT_SHOWN


def judge_files(options: argparse.Namespace) -> "tuple[Verdict, dict[str, Any]]":
    """Reads what the options name, tests the suspect, and writes the verdict.

    Returns:
      The verdict, and what stands beside it in the file.

    Raises:
      InputError, UnknownNameError, MissingDataError, CheckpointError: for files and options that do
        not do, before any walk.
      BudgetError, EndpointError: from an endpoint; what it answered before is in the ledger.
    """
    import jax
    import numpy as np

    from dfke_jax.commands.outputs import claim_file, write_found
    from dfke_jax.core.errors import InputError
    from dfke_jax.dataset_inference import judge, prepare
    from dfke_jax.dataset_inference.case import check_case
    from dfke_jax.experiments.bench.result import environment
    from dfke_jax.models import open_model
    from dfke_jax.oracle import Ledger, Metered

    out = claim_file(options.out, "--out")
    remote = options.suspect.startswith(("http://", "https://"))
    if not remote and (options.ledger or options.budget is not None or options.key):
        raise InputError(
            "--ledger, --budget and --key belong to a suspect behind an address (http://...)"
        )
    settings = _settings(options, remote)
    samples = {
        name: read_samples(getattr(options, name))
        for name in ("private", "public", "others")
        if getattr(options, name)
    }
    private, public = samples["private"], samples["public"]
    shape = private[0].shape[1:]
    to_train = options.independents if "others" in samples else 0
    check_case(private, public, len(options.independent) + to_train, settings)
    of_victim = declarations(options.declare_victim, num_classes=options.classes, input_shape=shape)
    of_suspect = declarations(options.declare_suspect, input_shape=shape, key=options.key)
    weights = lambda where: open_model(where, of_victim).needed_classifier(
        "dataset inference, of its victim,"
    )
    victim = weights(options.victim)
    largest = int(max(private[1].max(), public[1].max()))
    if largest >= victim.num_classes:
        raise InputError(
            f"the victim has {victim.num_classes} classes, and there are labels up to {largest}"
        )
    key = jax.random.key(options.seed)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(open_model(options.suspect, of_suspect))
        if model.num_classes != victim.num_classes:
            raise InputError(
                f"the victim has {victim.num_classes} classes, and the suspect {model.num_classes}"
            )
        metered = None
        if remote:
            metered = Metered(
                model.oracle(),  # type: ignore[arg-type]
                stack.enter_context(Ledger(options.ledger, budget=options.budget)),
            )
        if options.noise is None and settings.embedding == "blind_walk":
            settings = _with_noise(settings, victim, private)
        said: tuple[str, ...] = ()
        innocent, references = [weights(where) for where in options.independent], []
        if "others" in samples:
            trained, said = _trained(options, _of_independents(options, victim), samples)
            references, innocent = (
                trained[: options.references],
                [*innocent, *trained[options.references :]],
            )
        case = prepare(
            private,
            public,
            victim=victim,
            key=key,
            independents=innocent,
            references=references,
            settings=settings,
        )
        verdict = judge(case, metered or model.victim)
        of_model = tuple(f"the suspect's {note}" for note in model.notes)
        verdict = dataclasses.replace(verdict, notes=(*verdict.notes, *said, *of_model))
        counts = metered.counts() if metered else None
    beside = {
        "victim": options.victim,
        "suspect": options.suspect,
        "files": {
            name: {"path": str(getattr(options, name)), "sha256": _sha256(getattr(options, name))}
            for name in samples
        },
        "independents": len(innocent),
        "references": len(references),
        "settings": dataclasses.asdict(settings),
        "ledger": counts,
        "environment": environment(),
    }
    found = {"verdict": verdict.to_json(), **beside}
    write_found(out, json.dumps(found, indent=1, default=np.ndarray.tolist) + "\n")
    return verdict, beside


def read_samples(path: Path) -> "tuple[np.ndarray, np.ndarray]":
    """Images (N, H, W, C) and labels (N,) of an `.npz` file; of a file of two splits, the training images.

    Raises:
      MissingDataError: no such file. InputError: no such arrays, or none that are images with labels.
    """
    from dfke_jax.core.errors import InputError
    from dfke_jax.data.files import read_npz, split_of

    parts = read_npz(path).parts
    try:
        split = split_of(*parts["all" if "all" in parts else "train"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return split.images, split.labels


def fields(verdict: "Verdict") -> list[tuple[str, str]]:
    """Every field of a verdict as (name, text), for the terminal."""
    t, curve = verdict.test, verdict.curve
    percent = lambda side: ", ".join(f"{name} {100 * value:.1f} %" for name, value in side.items())
    shown = {
        "stolen": "yes" if verdict.stolen else "inconclusive (which is not innocent)",
        "p_value": f"{verdict.p_value:.3g}",
        "p_values": ", ".join(f"{name} {value:.3g}" for name, value in verdict.p_values.items()),
        "false_alarm_rate": f"{verdict.false_alarm_rate:.3g}",
        "accused_independents": "no independent models"
        if verdict.accused_independents is None
        else "{} of {} by the Welch test".format(*verdict.accused_independents),
        "test": f"effect {t.effect:.3f} [{t.interval[0]:.3f}, {t.interval[1]:.3f}], t = "
        f"{t.statistic:.2f}, {t.freedom:.0f} degrees of freedom, standardised {t.standardised:.2f}",
        "control": f"{verdict.control:.3g} (the victim itself)",
        "curve": ", ".join(
            f"{p:.2g} at {m}" for m, p in zip(curve.samples, curve.median, strict=True)
        ),
        "tested": "{} private, {} public".format(*verdict.tested),
        "queries": f"{verdict.queries:,}",
        "rows_sent": f"{verdict.rows_sent:,}",
        "gradients": f"{verdict.gradients:,}",
        "never": f"{100 * verdict.never:.0f} %",
        "saturated": f"{100 * verdict.saturated:.0f} %",
        "accuracy": "; ".join(f"{who}: {percent(side)}" for who, side in verdict.accuracy.items()),
        "assumptions": "\n".join(f"· {text}" for text in verdict.assumptions),
        "notes": "\n".join(f"· {text}" for text in verdict.notes) or "–",
    }
    return [
        (f.name, shown.get(f.name, str(getattr(verdict, f.name))))
        for f in dataclasses.fields(verdict)
    ]


def _settings(options: argparse.Namespace, remote: bool) -> "InferenceSettings":
    from dfke_jax.dataset_inference import BlindWalkSettings, InferenceSettings

    speed = {"block": 1} if remote else {}  # an endpoint charges for every row: step by step
    noise = 1.0 if options.noise is None else options.noise
    return InferenceSettings(
        embedding=options.embedding,
        walk=BlindWalkSettings(
            starts=options.starts, max_steps=options.max_steps, noise=noise, **speed
        ),
        alpha=options.alpha,
        looks=options.looks,
        revealed=options.revealed,
        both_correct=options.both_correct,
        seed=options.seed,
    )


def _with_noise(
    settings: "InferenceSettings", victim: "WhiteBox", samples: Any
) -> "InferenceSettings":
    """The least noise that turns two thirds of the victim's walks, on up to a hundred private
    samples.
    """
    import jax

    from dfke_jax.dataset_inference import BlindWalkSettings, blind_walk
    from dfke_jax.nn.classifier import as_float

    images, labels = as_float(jax.numpy.asarray(samples[0][:100])), samples[1][:100]
    walk = settings.walk
    for noise in NOISES:
        walk = BlindWalkSettings(walk.starts, walk.max_steps, noise=noise)
        if blind_walk(jax.random.key(settings.seed), victim, images, labels, walk).never <= 1 / 3:
            break
    return dataclasses.replace(settings, walk=dataclasses.replace(settings.walk, noise=walk.noise))


def _of_independents(options: argparse.Namespace, victim: "WhiteBox") -> "Classifier":
    """The network of the independent models: the victim's own, or what is declared."""
    from dfke_jax.core.errors import InputError
    from dfke_jax.nn.classifier import Classifier
    from dfke_jax.nn.named import network

    if options.network is not None:
        return network(options.network, victim.num_classes, victim.input_shape)
    if not isinstance(victim, Classifier):
        raise InputError(
            "the victim's network is not of this package, and cannot be trained anew; name one by "
            "--network"
        )
    return victim


def _trained(
    options: argparse.Namespace, victim: "Classifier", samples: dict[str, Any]
) -> "tuple[list[Classifier], tuple[str, ...]]":
    """References and independent models of the victim's network, and what is to be said of them.

    They are trained on images that are neither private nor public.
    """
    import jax
    import jax.numpy as jnp

    from dfke_jax.core.errors import InputError
    from dfke_jax.core.loop import run
    from dfke_jax.dataset_inference import overlap
    from dfke_jax.dataset_inference.samples import distinct
    from dfke_jax.nn.many import independent_training, member, separate_shares
    from dfke_jax.nn.training import optimiser

    images, labels = samples["others"]
    if images.shape[1:] != victim.input_shape or labels.max() >= victim.num_classes:
        raise InputError(
            f"--others holds images {images.shape[1:]} and labels up to {labels.max()}; the victim "
            f"takes {victim.input_shape} and has {victim.num_classes} classes"
        )
    for name in ("private", "public"):
        if common := overlap(samples[name][0], images):
            raise InputError(
                f"{len(common)} images of --others are {name} ones too (first: {name} "
                f"{common[0][0]} = other {common[0][1]}); independent models must not have seen "
                "them"
            )
    kept = distinct(images)
    images, labels = images[kept], labels[kept]
    count = options.references + options.independents
    size = len(samples["private"][0])
    try:
        rows = separate_shares(len(images), count, size, options.seed)
    except InputError as error:
        raise InputError(f"--others is too small: {error}") from error
    said = ()
    if count * size > len(images):
        said = (
            f"--others has {len(images)} different images for {count} independent and reference "
            f"models of {size} each: any two of them share {size / len(images):.0%} of their "
            f"images, which makes them more alike than a suspect that shares none; {count * size} "
            "images would do for models that share none",
        )
    method = independent_training(
        victim,
        jnp.asarray(images),
        jnp.asarray(labels),
        jnp.asarray(rows),
        optimizer=optimiser("adam", 2e-3, options.training_steps),
    )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), 1), count)
    state = run(method, keys, options.training_steps, progress="independent models").state
    return [member(victim, state, index) for index in range(count)], said


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


__all__ = ["add_options", "execute", "fields", "judge_files", "read_samples"]
