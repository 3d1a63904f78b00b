"""Data-free distillation with generators: duels of one or several teachers, inversion from a start that learns, and
generators of class groups.
"""

import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import GREY, classifier
from dfke_jax.core import Method
from dfke_jax.distillation import (
    DAFLSettings,
    DFADSettings,
    DFKASettings,
    FastSettings,
    GroupSettings,
    ZSKTSettings,
    dafl,
    dfad,
    dfka,
    fast_dfkd,
    statistics_generators,
    zskt,
)
from dfke_jax.nn import Classifier, Preprocessing, build
from dfke_jax.nn.heads import Heads

LATENT = 64


def written_out(method: Method) -> Method:
    """The same method without loops, whose bodies would be counted once; for counting arithmetic alone."""
    return Method(method.init, jax.tree_util.Partial(_written_out, method))


def _written_out(method: Method, key: Any, state: Any) -> Any:
    with mock.patch("jax.lax.scan", functools.partial(jax.lax.scan, unroll=True)), mock.patch("jax.lax.map", _each):
        return method.step(key, state)


def _each(function: Any, rows: Any) -> Any:
    count = len(jax.tree.leaves(rows)[0])
    made = [function(jax.tree.map(lambda leaf, i=i: leaf[i], rows)) for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


def of_classes(name: str, classes: int, seed: int) -> Classifier:
    """A LeNet of so many classes with fresh parameters."""
    return Classifier.create(build(name, classes), jax.random.key(seed), GREY, Preprocessing(size=(32, 32)))


def duel_row(
    kind: str, width: int, batch: int, updates: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11
) -> Row:
    """One iteration of a duel of LeNet-5, or of two of five classes each, with its half."""
    shared = {"batch_size": batch, "width": width, "latent": LATENT, "schedule": "constant", "student_rate": 2e-3}
    teacher, student = classifier("lenet5"), classifier("lenet5_half", 7)
    teachers, weights, clip = [teacher], (1.0, 0.1, 5.0), 0.0
    if kind == "dafl":
        method = dafl(teacher, student, DAFLSettings(**shared, generator_rate=1e-3))
    elif kind == "dfad":
        method = dfad(teacher, student, DFADSettings(**shared, student_optimizer="adam", student_steps=updates))
    elif kind == "zskt":
        settings = ZSKTSettings(**shared, attention=0.0, student_steps=updates)
        method, clip = zskt(teacher, student, settings), settings.clip
    else:
        teachers = [of_classes("lenet5", 5, seed) for seed in (0, 1)]
        module = Heads(build("lenet5_half", 10), (5, 5))
        student = Classifier.create(module, jax.random.key(7), GREY, Preprocessing(size=(32, 32)))
        method = dfka(teachers, student, DFKASettings(**shared))
    key = jax.random.key(12)

    def peer() -> Any:
        from benchmarks import peers, peers_generators

        return peers_generators.Duel(
            "dafl" if kind == "dfka" else kind,
            [peers.lenet5_from(one.variables) for one in teachers],
            peers.LeNet5((3, 8)),
            peers.DFMEGenerator(width, LATENT),
            batch=batch, latent=LATENT, updates=updates, student_rate=2e-3, generator_rate=1e-3,
            weights=weights, clip=clip, steps=peer_steps,
        )  # fmt: skip

    one = written_out(method)
    contenders = {
        "ours": Program(method, key, units=1, length=length, elementary=one, spread=True),
        "ours_one_device": Program(method, key, units=1, length=length, elementary=one),
        "lax_scan": Program(method, key, units=1, length=plain_length, convolution="lax", elementary=one),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"teachers": len(teachers), "teacher": "lenet5", "student": "lenet5_half", "width": width}
    params |= {"batch": batch, "latent": LATENT, "student_updates": updates}
    return Row("iterations/s", params, contenders, also={"student updates/s": updates}, blocks=blocks)


def fast_row(
    width: int, batch: int, steps: int, student_steps: int, length: int, plain_length: int, peer_rounds: int,
    blocks: int = 11,
) -> Row:  # fmt: skip
    """One round of Fast-DFKD out of LeNet-5 with batch normalisation: a batch inverted, and steps of the student."""
    settings = FastSettings(
        batch_size=batch, width=width, latent=LATENT, steps=steps, rounds=50, warm_up=0, student_steps=student_steps,
        student_batch=64, student_optimizer="adam", student_rate=3e-3, schedule="constant",
    )  # fmt: skip
    teacher, student = classifier("lenet5_bn"), classifier("lenet5_half", 7)
    method, key = fast_dfkd(teacher, student, settings), jax.random.key(13)

    def peer() -> Any:
        from benchmarks import peers, peers_generators

        s = settings
        return peers_generators.FastInversion(
            peers.lenet5_from(teacher.variables),
            peers.LeNet5((3, 8)),
            peers.DFMEGenerator(width, LATENT, normalised_output=False),
            batch=batch, latent=LATENT, steps=steps, student_steps=student_steps, student_batch=s.student_batch,
            room=s.room, weights=(s.statistics, s.one_hot, s.adversarial), generator_rate=s.generator_rate,
            latent_rate=s.latent_rate, student_rate=s.student_rate, temperature=s.temperature, average=s.average,
            rounds=peer_rounds,
        )  # fmt: skip

    one = written_out(method)
    contenders = {
        "ours": Program(method, key, units=1, length=length, elementary=one),
        "lax_scan": Program(method, key, units=1, length=plain_length, convolution="lax", elementary=one),
        "pytorch": Peer(peer, units=peer_rounds),
    }
    params = {"teacher": "lenet5_bn", "student": "lenet5_half", "width": width, "batch": batch, "latent": LATENT}
    params |= {"steps": steps, "student_steps": student_steps, "student_batch": settings.student_batch}
    return Row("rounds/s", params, contenders, also={"images/s": batch}, blocks=blocks)


def group_row(
    width: int, batch: int, groups: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11
) -> Row:
    """One step of generators of class groups against LeNet-5 with batch normalisation."""
    settings = GroupSettings(groups=groups, batch_size=batch, width=width, latent=LATENT)
    teacher = classifier("lenet5_bn")
    method, key = statistics_generators(teacher, settings), jax.random.key(14)

    def peer() -> Any:
        from benchmarks import peers, peers_generators

        return peers_generators.GroupGenerators(
            peers.lenet5_from(teacher.variables),
            [peers.DFMEGenerator(width, LATENT + 10, normalised_output=False) for _ in range(groups)],
            batch=batch, latent=LATENT, statistics=settings.statistics, rate=settings.rate, steps=peer_steps,
        )  # fmt: skip

    one = written_out(method)
    contenders = {
        "ours": Program(method, key, units=1, length=length, elementary=one),
        "lax_scan": Program(method, key, units=1, length=plain_length, convolution="lax", elementary=one),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"teacher": "lenet5_bn", "groups": groups, "width": width, "batch": batch, "latent": LATENT}
    return Row("steps/s", params, contenders, also={"images/s": batch}, blocks=blocks)


UPDATES = {"dafl": 1, "dfka": 1, "dfad": 5, "zskt": 10}
"""Of the student, per update of the generator, as published."""


def rows(suite: str) -> Rows:
    """The rows of this file."""
    found: Rows = {}
    small = suite == "smoke"
    width = 2 if small else 16
    for kind, updates in UPDATES.items():
        sizes = (2, 20, min(updates, 2), 2, 1, 1, 7) if small else (16, 128, updates, 4, 1, 2)
        found[f"duel/{kind}/{width}"] = functools.partial(duel_row, kind, *sizes)
    sizes = (2, 8, 2, 2, 2, 1, 1, 7) if small else (16, 120, 10, 10, 2, 1, 1)
    found[f"inversion_rounds/fast_dfkd/{width}"] = functools.partial(fast_row, *sizes)
    sizes = (2, 10, 5, 2, 1, 1, 7) if small else (16, 250, 10, 2, 1, 1)
    found[f"group_generators/lenet5_bn/{width}"] = functools.partial(group_row, *sizes)
    return found
