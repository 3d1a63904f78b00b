"""Serves a PyTorch model of your own over HTTP, and copies it from its answers within a budget.

    pip install -e ".[torch,serve]"
    python examples/attack_pytorch_over_http.py

Put your own module in the place of `model_of_digits`, and its input shape in that of the digits.
"""

import tempfile
from pathlib import Path

import jax
import torch

from dfke_jax import core, data, nn
from dfke_jax.extraction import SMALL_DISGUIDE, disagreement, vote
from dfke_jax.oracle import (
    Ledger,
    Metered,
    RemoteVictim,
    Reveal,
    background,
    create_app,
    oracle_for,
)


def model_of_digits(digits: data.Dataset, steps: int) -> torch.nn.Module:
    """A small network in PyTorch, trained on the digits."""
    torch.manual_seed(0)
    shape = digits.shape[0] * digits.shape[1]
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(shape, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    images = torch.tensor(digits.train.images).permute(0, 3, 1, 2)  # PyTorch's NCHW
    labels = torch.tensor(digits.train.labels).long()
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    for _ in range(steps):
        batch = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images[batch]), labels[batch]).backward()
        optimizer.step()
    return module


def main(
    budget: int = 20_000, victim_steps: int = 500, folder: str | None = None
) -> dict[str, float]:
    """Accuracies of victim and clone, their agreement (per cent), and the queries that were
    charged.
    """
    digits = data.load("digits")
    module = model_of_digits(digits, victim_steps)

    # Your side: the model behind an endpoint that gives probabilities and allows each client so
    # many queries.
    reveal = Reveal("probabilities")
    victim = oracle_for(module, reveal, input_shape=digits.shape)
    app = create_app(victim, input_shape=digits.shape, reveal=reveal, num_classes=10, quota=budget)

    # The other side knows the address, the shape of an image and the number of classes. No image of
    # a digit.
    clone = nn.Classifier.create(nn.build("mlp_small"), jax.random.key(0), digits.shape)
    settings = SMALL_DISGUIDE.with_budget(budget)
    attack = disagreement(
        clone, settings
    )  # DisGUIDE: two clones, and a generator that seeks where they differ
    ledger_file = Path(folder or tempfile.mkdtemp()) / "ledger.sqlite"
    with (
        background(app) as url,
        RemoteVictim(url) as endpoint,
        Ledger(ledger_file, budget=budget) as ledger,
    ):
        # Every question is entered in the ledger before it is sent: a run that is killed and
        # started again pays for nothing twice, and none exceeds the budget.
        method = core.against(attack, Metered(endpoint, ledger), host=True)
        state = core.run(method, jax.random.key(1), settings.steps).state
        charged = ledger.counts()["rows"]
    stolen = vote(clone, state)

    answered = victim(digits.test.images).argmax(1)
    copied = jax.device_get(stolen(digits.test.images)).argmax(1)
    found = {
        "victim": 100 * float((answered == digits.test.labels).mean()),
        "clone": 100 * float((copied == digits.test.labels).mean()),
        "agreement": 100 * float((copied == answered).mean()),
        "queries": float(charged or 0),
    }
    print(
        f"victim {found['victim']:.1f} %, clone {found['clone']:.1f} %, "
        f"agreement {found['agreement']:.1f} % after {charged:,} queries"
    )
    return found


if __name__ == "__main__":
    main()
