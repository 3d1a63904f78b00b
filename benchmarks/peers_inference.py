"""Dataset inference's embeddings in eager PyTorch, step by step on a batch of samples, as the paper's code goes.

Import this module only where PyTorch is installed. Both go through families (or targets and norms) one after another; a
batch steps on until none of its samples remains, and every step looks at the whole batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import DEVICE, _set_dense, images_from


def mlp_from(variables: Mapping) -> nn.Module:
    """The network that these Flax variables of a `dfke_jax.nn.mlp.MLP` on one-channel images describe, frozen."""
    params = variables["params"]
    names = [*sorted(name for name in params if name.startswith("dense")), "head"]
    layers: list[nn.Module] = [nn.Flatten()]
    for name in names:
        inputs, outputs = params[name]["kernel"].shape
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        _set_dense(layers[-2], params[name])  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1]).to(DEVICE).eval().requires_grad_(False)


class BlindWalk:
    """Walks of one batch of samples.

    Attributes:
      steps: (N, S, 3), at which step each walk of the last call flipped, or the last step.
    """

    def __init__(self, network: nn.Module, images: Any, labels: Any, ways: Any, max_steps: int, forwards: int):
        """`ways` (N, S, 3, D) are drawn beforehand. `forwards` per step: the released code takes 2, where 1 would do."""
        self.network, self.max_steps, self.forwards = network, max_steps, forwards
        self.images = images_from(images)
        self.labels = torch.tensor(np.asarray(labels), device=DEVICE).long()
        ways = np.moveaxis(np.asarray(ways).reshape(*np.shape(ways)[:3], *np.shape(images)[1:]), -1, 3)
        self.ways = torch.tensor(ways.copy(), device=DEVICE)
        self.steps = torch.zeros(self.ways.shape[:3], dtype=torch.long, device=DEVICE)

    @torch.no_grad()
    def __call__(self) -> None:
        for family in range(self.ways.shape[2]):
            for start in range(self.ways.shape[1]):
                way = self.ways[:, start, family]
                at = torch.ones(len(way), dtype=torch.long, device=DEVICE)
                for _ in range(self.max_steps - 1):
                    there = (self.images + at.view(-1, 1, 1, 1) * way).clamp(0, 1)
                    for _ in range(self.forwards):
                        remaining = self.network(there).argmax(1) == self.labels
                    if not remaining.any():
                        break
                    at = at + remaining
                self.steps[:, start, family] = at


class MinGD:
    """Descents of one batch of samples to every class in three norms.

    Attributes:
      distances: (N, K, 3) of the last call.
    """

    def __init__(self, network: nn.Module, images: Any, classes: int, settings: Any):
        self.network, self.settings, self.classes = network, settings, classes
        self.images = images_from(images)
        self.distances = torch.zeros((len(self.images), classes, 3), device=DEVICE)

    def __call__(self) -> None:
        for target in range(self.classes):
            for norm in range(3):
                delta = self._descend(target, norm)
                size = (delta.abs().sum(1), delta.square().sum(1).sqrt(), delta.abs().amax(1))
                self.distances[:, target, norm] = size[norm]

    def _descend(self, target: int, norm: int) -> torch.Tensor:
        delta = torch.zeros_like(self.images, requires_grad=True)
        for _ in range(self.settings.max_steps):
            with torch.no_grad():
                remaining = self.network(self.images + delta).argmax(1) != target
            if not remaining.any():
                break
            logits = self.network(self.images + delta)
            (logits[:, target] - logits.amax(1)).sum().backward()
            with torch.no_grad():
                update = self._update(delta, norm) * remaining.view(-1, 1, 1, 1)
                delta += update
                delta.copy_((self.images + delta).clamp(0, 1) - self.images)
                delta.grad = None
        return delta.detach().flatten(1)

    def _update(self, delta: torch.Tensor, norm: int) -> torch.Tensor:
        settings, gradient = self.settings, delta.grad
        assert gradient is not None
        if norm == 2:
            return settings.linf_step * gradient.sign()
        if norm == 1:
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            return settings.l2_step * gradient / length.view(-1, 1, 1, 1)
        there = self.images + delta
        outward = ((gradient < 0) & (there <= settings.l1_gap)) | ((gradient > 0) & (there >= 1 - settings.l1_gap))
        free = gradient.masked_fill(outward, 0).flatten(1)
        count = min(settings.l1_coordinates, free.shape[1])
        edge = free.abs().kthvalue(free.shape[1] - count + 1, dim=1, keepdim=True).values
        chosen = (free.abs() >= edge) * free.sign()
        return (settings.l1_step / settings.l1_coordinates * chosen).view_as(gradient)
