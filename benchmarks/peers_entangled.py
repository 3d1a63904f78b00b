"""The soft nearest neighbour loss in eager PyTorch, from one product of the features as well. Import where PyTorch is installed."""

from typing import Any

import numpy as np
import torch

from benchmarks.peers import DEVICE


def soft_nearest_neighbour_loss(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The paper's form with squared Euclidean distances, in log space."""
    rows = features.flatten(1)
    squared = rows.square().sum(1)
    distances = (squared[:, None] + squared[None] - 2 * rows @ rows.T).clamp(min=0)
    closeness = (-distances / temperature).fill_diagonal_(-torch.inf)
    same = labels[:, None] == labels[None]
    among = torch.logsumexp(closeness.masked_fill(~same, -torch.inf), 1)
    return (torch.logsumexp(closeness, 1) - among).mean()


class SoftNearestNeighbour:
    """Gradients of the loss with respect to features (B, ...), `repeats` per call.

    Attributes:
      gradient: the last one. peak: bytes that autograd keeps for the way back, the features among them.
    """

    def __init__(self, features: Any, labels: Any, temperature: float, repeats: int = 1):
        self.features = torch.tensor(np.asarray(features), device=DEVICE, requires_grad=True)
        self.labels = torch.tensor(np.asarray(labels), device=DEVICE)
        self.temperature, self.repeats = temperature, repeats
        self.gradient = torch.zeros(())
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        self.peak = sum(kept.values())

    def loss(self) -> torch.Tensor:
        return soft_nearest_neighbour_loss(self.features, self.labels, self.temperature)

    def __call__(self) -> None:
        for _ in range(self.repeats):
            (self.gradient,) = torch.autograd.grad(self.loss(), self.features)


__all__ = ["SoftNearestNeighbour", "soft_nearest_neighbour_loss"]
