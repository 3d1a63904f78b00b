"""Seconds of joint methods: what the student's updates take by themselves is distillation, the rest synthesis."""

import contextlib
from types import SimpleNamespace

import jax
import pytest

from dfke_jax.experiments.bench import splitting
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP


def network(seed):
    return Classifier.create(MLP(3, (4,)), jax.random.key(seed), (2, 2, 1))


@pytest.mark.parametrize(
    ("spent", "updates", "synthesis"),
    [
        (12.0, 100, 7.0),  # 100 updates of 0.05 s each
        (12.0, 1000, 0.0),  # timed on a busier machine than the stage: nothing is left over
        (4.0, 10, None),  # too short to be looked at
    ],
)
def test_seconds_are_moved(monkeypatch, spent, updates, synthesis):
    timed = []

    def run_method(method, key, steps, **options):
        _, batch = jax.eval_shape(method.step, key, jax.eval_shape(method.init, key))  # it is a method that runs
        timed.append((steps, sorted(batch)))
        return SimpleNamespace(seconds=0.05 * steps)

    monkeypatch.setattr(splitting, "run_method", run_method)
    notes, written = [], []
    account = SimpleNamespace(write=lambda: written.append(True))
    bench = SimpleNamespace(seconds={"distillation": 30.0, "synthesis": 1.0}, account=account)
    run = SimpleNamespace(
        bench=bench,
        teacher=network(0),
        key=lambda name: jax.random.key(1),
        dataset=SimpleNamespace(shape=(2, 2, 1)),
        clock=lambda kind: contextlib.nullcontext(),
        note=notes.append,
    )
    with splitting.synthesis_apart(run, network(1), updates, rows=8):  # pyright: ignore[reportArgumentType]
        bench.seconds["distillation"] += spent
    moved = synthesis or 0.0
    assert bench.seconds == pytest.approx({"distillation": 30 + spent - moved, "synthesis": 1 + moved})
    assert bool(timed) == bool(notes) == bool(written) == (synthesis is not None)
