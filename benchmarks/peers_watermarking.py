"""Marking and null models in eager PyTorch. Import this module only where PyTorch is installed."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from benchmarks.peers import DEVICE, images_from
from dfke_jax.watermarking import MarkingSettings


def _labels(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), device=DEVICE).long()


class Marking:
    """Training on batches of the task with trigger pairs concatenated, as in the released code of Adi et al."""

    def __init__(self, network: nn.Module, task: tuple, triggers: tuple, settings: MarkingSettings, steps: int):
        self.network, self.settings, self.steps = network.train(), settings, steps
        self.images, self.labels = images_from(task[0]), _labels(task[1])
        self.triggers, self.marks = images_from(triggers[0]), _labels(triggers[1])
        self.optimizer = torch.optim.SGD(
            network.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, settings.decay_every, settings.decay)

    def step(self, rows: torch.Tensor, beside: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        batch = torch.cat([self.images[rows], self.triggers[beside]])
        labels = torch.cat([self.labels[rows], self.marks[beside]])
        F.cross_entropy(self.network(batch), labels).backward()
        self.optimizer.step()
        self.schedule.step()

    def __call__(self) -> None:
        for _ in range(self.steps):
            rows = torch.randint(len(self.images), (self.settings.batch_size,), device=DEVICE)
            beside = torch.randperm(len(self.triggers), device=DEVICE)[: self.settings.triggers_per_batch]
            self.step(rows, beside)


class NullModels:
    """Cross-entropy training of one network after another, each on its share of one array."""

    def __init__(self, networks: list[Any], images: Any, labels: Any, table: Any, batch: int, rate: float, steps: int):
        self.images, self.labels, self.table = images_from(images), _labels(labels), _labels(table)
        self.batch, self.steps = batch, steps
        self.members = [(network.train(), torch.optim.Adam(network.parameters(), lr=rate)) for network in networks]

    def __call__(self) -> None:
        for _ in range(self.steps):
            for (network, optimizer), share in zip(self.members, self.table, strict=True):
                rows = share[torch.randint(len(share), (self.batch,), device=DEVICE)]
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(self.images[rows]), self.labels[rows]).backward()
                optimizer.step()
