"""Data-free distillation with generators in eager PyTorch: duels, inversion from a start that learns, generators of groups.

Import this module only where PyTorch is installed. Every class is the work of one row of `suites/generators.py`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from benchmarks.peers import DEVICE, DFMEGenerator, LeNet5


def pictures(before: torch.Tensor) -> torch.Tensor:
    """From what goes into the tanh to pixels."""
    return (torch.tanh(before) + 1) / 2


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """(B,), the teacher's answer is the reference."""
    ours, theirs = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)


class Duel:
    """One generator against one student: DAFL (of one teacher or, with heads, of several), DFAD and ZSKT.

    Args:
      kind: ``dafl``, ``dfad`` or ``zskt``. teachers: frozen; several share the student's classes out among them.
      updates: of the student per update of the generator.
      weights: of DAFL's one-hot, activation and entropy terms.
      optimizer: ``(parameters, rate)`` of both players.
      clip: largest norm of either gradient; 0 for any.
    """

    def __init__(
        self,
        kind: str,
        teachers: Sequence[LeNet5],
        student: LeNet5,
        generator: DFMEGenerator,
        *,
        batch: int,
        latent: int,
        updates: int,
        student_rate: float,
        generator_rate: float,
        weights: tuple[float, float, float] = (1.0, 0.1, 5.0),
        clip: float = 0.0,
        steps: int = 1,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ):
        self.kind, self.teachers, self.student = kind, list(teachers), student.train()
        self.generator, self.batch, self.latent = generator.train(), batch, latent
        self.updates, self.weights, self.clip, self.steps = updates, weights, clip, steps
        self.sizes = [teacher.head.out_features for teacher in self.teachers]
        self.student_parameters = list(student.parameters())
        self.generator_parameters = list(generator.parameters())
        self.student_optimizer = optimizer(self.student_parameters, lr=student_rate)
        self.generator_optimizer = optimizer(self.generator_parameters, lr=generator_rate)

    def draw(self) -> torch.Tensor:
        return torch.randn(self.batch, self.latent, device=DEVICE)

    def descend(self, loss: torch.Tensor, parameters: list, optimizer: torch.optim.Optimizer) -> None:
        gradients = torch.autograd.grad(loss, parameters)  # of this player alone: the other's are not formed
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.clip:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()

    def sure(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What DAFL's generator descends, over all teachers, and their answers."""
        one_hot, activation, entropy = self.weights
        loss, answers = torch.zeros((), device=DEVICE), []
        for teacher in self.teachers:
            features = teacher.features(images)
            logits = teacher.head(features)
            mean = F.softmax(logits, 1).mean(0)
            loss = loss + one_hot * F.cross_entropy(logits, logits.argmax(1)) - activation * features.abs().mean()
            loss = loss + entropy * (mean * mean.clamp_min(1e-38).log()).sum() / math.log(10)
            answers.append(logits.detach())
        return loss, answers

    def response(self, images: torch.Tensor, answers: list[torch.Tensor]) -> torch.Tensor:
        """What the student descends."""
        ours = self.student(images).split(self.sizes, 1)
        if self.kind == "dfad":
            return (ours[0] - answers[0]).abs().mean()
        each = [divergence(one, other).mean() for one, other in zip(ours, answers, strict=True)]
        return torch.stack(each).sum() / (self.sizes[0] if self.kind == "zskt" else 1)

    def learn(self, images: torch.Tensor, answers: list[torch.Tensor]) -> None:
        self.descend(self.response(images, answers), self.student_parameters, self.student_optimizer)

    @torch.no_grad()
    def made(self, z: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        images = pictures(self.generator(z))
        return images, [teacher(images) for teacher in self.teachers]

    def iteration(self, z: torch.Tensor) -> None:
        """One update of the generator, on these latents, and the student's."""
        if self.kind == "dfad":
            for _ in range(self.updates):
                self.learn(*self.made(self.draw()))
        images = pictures(self.generator(z))
        if self.kind == "dafl":
            loss, answers = self.sure(images)
            self.descend(loss, self.generator_parameters, self.generator_optimizer)
            self.learn(images.detach(), answers)
            return
        loss = -self.response(images, [teacher(images) for teacher in self.teachers])
        self.descend(loss, self.generator_parameters, self.generator_optimizer)
        if self.kind == "zskt":
            batch = self.made(z)
            for _ in range(self.updates):
                self.learn(*batch)

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.iteration(self.draw())


class Moments:
    """Forward hooks that collect the statistics of the inputs of a network's normalisation layers."""

    def __init__(self, network: nn.Module):
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for module in self.layers:
            module.register_forward_hook(self._collect)

    def _collect(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        var, mean = torch.var_mean(inputs[0], axes, unbiased=False)
        self.found.append((mean, var))

    def distance(self, averages: list | None = None, keep: float = 0.0) -> torch.Tensor:
        """Of the last batch from the stored statistics; blended with averages where there are some."""
        found = self.found
        if averages:
            found = [
                tuple((1 - keep) * new + keep * old for new, old in zip(pair, before, strict=True))
                for pair, before in zip(found, averages, strict=True)
            ]
        terms = [
            (mean - module.running_mean).norm() + (var - module.running_var).norm()  # type: ignore[operator]
            for module, (mean, var) in zip(self.layers, found, strict=True)
        ]
        return torch.stack(terms).sum()


class FastInversion:
    """Rounds of Fast-DFKD: one batch inverted from a start that learns, then steps of the student on the bank.

    Args:
      steps: of Adam on latents and generator. rounds: a call.
      weights: of statistics, classes and disagreement.
    """

    def __init__(
        self,
        teacher: LeNet5,
        student: LeNet5,
        generator: DFMEGenerator,
        *,
        batch: int,
        latent: int,
        steps: int,
        student_steps: int,
        student_batch: int,
        room: int,
        weights: tuple[float, float, float],
        generator_rate: float,
        latent_rate: float,
        student_rate: float,
        temperature: float,
        average: float,
        rounds: int = 1,
    ):
        self.teacher, self.student, self.generator = teacher, student.train(), generator.train()
        self.batch, self.latent, self.steps, self.weights = batch, latent, steps, weights
        self.student_steps, self.student_batch, self.rounds = student_steps, student_batch, rounds
        self.temperature, self.average = temperature, average
        self.generator_rate, self.latent_rate = generator_rate, latent_rate
        self.moments, self.averages = Moments(teacher), []
        self.meta = torch.optim.Adam(generator.parameters(), lr=generator_rate * steps, betas=(0.5, 0.999))
        self.learning = torch.optim.Adam(student.parameters(), lr=student_rate)
        self.bank = torch.zeros(room, 1, 28, 28, dtype=torch.uint8, device=DEVICE)
        self.written = 0

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What an inversion descends; see `dfke_jax.distillation.inversion_loss`."""
        statistics, one_hot, adversarial = self.weights
        self.moments.found.clear()
        logits, ours = self.teacher(images), self.student(images)
        agree = (ours.argmax(1) == logits.argmax(1)).float()
        loss = statistics * self.moments.distance(self.averages, self.average)
        loss = loss + one_hot * F.cross_entropy(logits, labels)
        return loss - adversarial * (agree * divergence(ours, logits)).mean()

    def invert(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The best batch out of these latents; the start learns."""
        generator = copy.deepcopy(self.generator)
        parameters = list(generator.parameters())
        z = z.clone().requires_grad_(True)
        rules = (
            torch.optim.Adam([z], lr=self.latent_rate, betas=(0.5, 0.999)),
            torch.optim.Adam(parameters, lr=self.generator_rate, betas=(0.5, 0.999)),
        )
        total = [torch.zeros_like(parameter) for parameter in parameters]
        best, kept = math.inf, torch.zeros(0)
        self.student.eval()
        for _ in range(self.steps):
            images = pictures(generator(z))
            loss = self.loss(images, labels)
            gradients = torch.autograd.grad(loss, [z, *parameters])
            if (value := loss.item()) < best:
                best, kept = value, images.detach()
            for parameter, gradient in zip([z, *parameters], gradients, strict=True):
                parameter.grad = gradient
            for summed, gradient in zip(total, gradients[1:], strict=True):
                summed.add_(gradient)
            for rule in rules:
                rule.step()
        for parameter, gradient in zip(self.generator.parameters(), total, strict=True):
            parameter.grad = gradient
        self.meta.step()
        found = [tuple(part.detach() for part in pair) for pair in self.moments.found]
        before = self.averages or found  # the first batch's are its own
        self.averages = [
            tuple(self.average * old + (1 - self.average) * new for old, new in zip(kept_pair, pair, strict=True))
            for kept_pair, pair in zip(before, found, strict=True)
        ]
        return kept

    def learn(self) -> None:
        """One step of the student on a draw of the bank."""
        self.student.train()
        rows = torch.randint(min(self.written, len(self.bank)), (self.student_batch,), device=DEVICE)
        images = self.bank[rows].float() / 255
        with torch.no_grad():
            answers = self.teacher(images)
        self.moments.found.clear()
        self.learning.zero_grad(set_to_none=True)
        divergence(self.student(images), answers, self.temperature).mean().backward()
        self.learning.step()

    def __call__(self) -> None:
        for _ in range(self.rounds):
            labels = torch.randint(10, (self.batch,), device=DEVICE)
            made = self.invert(torch.randn(self.batch, self.latent, device=DEVICE), labels)
            places = (self.written + torch.arange(self.batch, device=DEVICE)) % len(self.bank)
            self.bank[places] = (made * 255).round().to(torch.uint8)
            self.written += self.batch
            for _ in range(self.student_steps):
                self.learn()


class GroupGenerators:
    """Generators of groups of classes, which learn together that their mixture has the stored statistics."""

    def __init__(
        self, teacher: LeNet5, generators: list[DFMEGenerator], *, batch: int, latent: int, statistics: float,
        rate: float, steps: int = 1,
    ):  # fmt: skip
        self.teacher, self.generators = teacher, [generator.train() for generator in generators]
        self.batch, self.latent, self.statistics, self.steps = batch, latent, statistics, steps
        self.moments = Moments(teacher)
        self.parameters = [p for generator in generators for p in generator.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, betas=(0.5, 0.999))

    def loss(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of latents (G, B/G, Z) and classes (G, B/G)."""
        told = torch.cat([z, F.one_hot(labels, 10).float()], 2)
        images = pictures(torch.cat([g(part) for g, part in zip(self.generators, told, strict=True)]))
        self.moments.found.clear()
        loss = F.cross_entropy(self.teacher(images), labels.flatten())
        return loss + self.statistics * self.moments.distance()

    def __call__(self) -> None:
        groups = len(self.generators)
        each = self.batch // groups
        for _ in range(self.steps):
            labels = torch.arange(groups, device=DEVICE)[:, None].expand(groups, each)
            if groups < 10:
                members = (10 - labels + groups - 1) // groups
                labels = labels + groups * (torch.rand(groups, each, device=DEVICE) * members).long()
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(torch.randn(groups, each, self.latent, device=DEVICE), labels).backward()
            self.optimizer.step()
