"""The same work in eager PyTorch, as one would write it there: NCHW, modules, autograd, `torch.optim`.

Import this module only where PyTorch is installed. Every class below is the work of one row: calling it does the steps
of one call. Networks take Flax variables, so that both sides compute the same function of the same weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

DEVICE = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def images_from(array: Any) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return torch.tensor(np.asarray(array), device=DEVICE).permute(0, 3, 1, 2).contiguous()


def images_to(tensor: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C)."""
    return tensor.detach().permute(0, 2, 3, 1).cpu().numpy().copy()


class LeNet5(nn.Module):
    """LeNet-5 for 28×28 images, which it pads to 32×32; with `normalised`, batch normalisation before each ReLU."""

    def __init__(self, filters=(6, 16), units=(120, 84), classes: int = 10, normalised: bool = False):
        super().__init__()
        widths = (1, *filters)
        sizes = (25 * filters[-1], *units)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5) for a, b in zip(widths, filters, strict=False))
        self.denses = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, units, strict=False))
        self.conv_norms = nn.ModuleList(nn.BatchNorm2d(f) if normalised else nn.Identity() for f in filters)
        self.dense_norms = nn.ModuleList(nn.BatchNorm1d(u) if normalised else nn.Identity() for u in units)
        self.head = nn.Linear(units[-1], classes)
        self.to(DEVICE)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the last layer."""
        x = F.pad(x, (2, 2, 2, 2))
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        x = x.flatten(1)
        for dense, norm in zip(self.denses, self.dense_norms, strict=True):
            x = F.relu(norm(dense(x)))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = self.shortcut_norm = None
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y)


class ResNet(nn.Module):
    """A residual network for 32×32 colour images."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks, inputs = {}, widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            for i in range(1, depth + 1):
                blocks[f"stage{stage}_block{i}"] = Block(inputs, width, 2 if stage > 1 and i == 1 else 1)
                inputs = width
        self.blocks = nn.ModuleDict(blocks)
        self.head = nn.Linear(inputs, classes)
        self.to(DEVICE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for block in self.blocks.values():
            x = block(x)
        return self.head(x.mean((2, 3)))


def _tensor(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), device=DEVICE)


@torch.no_grad()
def _set_conv(conv: nn.Conv2d, tree: Mapping) -> None:
    conv.weight.copy_(_tensor(tree["kernel"]).permute(3, 2, 0, 1))
    if conv.bias is not None:
        conv.bias.copy_(_tensor(tree["bias"]))


@torch.no_grad()
def _set_dense(dense: nn.Linear, tree: Mapping, map_size: int = 1) -> None:
    kernel = _tensor(tree["kernel"])  # rows in the order H, W, C of the map that was flattened
    if map_size > 1:
        kernel = kernel.reshape(map_size, map_size, -1, kernel.shape[1]).permute(2, 0, 1, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    dense.weight.copy_(kernel.T)
    dense.bias.copy_(_tensor(tree["bias"]))


@torch.no_grad()
def _set_norm(norm: Any, tree: Mapping, running: Mapping) -> None:
    norm.weight.copy_(_tensor(tree["scale"]))
    norm.bias.copy_(_tensor(tree["bias"]))
    norm.running_mean.copy_(_tensor(running["mean"]))
    norm.running_var.copy_(_tensor(running["var"]))


def lenet5_from(variables: Mapping) -> LeNet5:
    """The network that these Flax variables of a `dfke_jax.nn.lenet.LeNet5` describe, frozen, in evaluation mode."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    filters = tuple(params[f"conv{i}"]["kernel"].shape[-1] for i in (1, 2))
    units = tuple(params[f"dense{i}"]["kernel"].shape[-1] for i in (1, 2))
    network = LeNet5(filters, units, params["head"]["kernel"].shape[-1], bool(stats))
    for i in (1, 2):
        _set_conv(network.convs[i - 1], params[f"conv{i}"])  # type: ignore[arg-type]
        _set_dense(network.denses[i - 1], params[f"dense{i}"], 5 if i == 1 else 1)  # type: ignore[arg-type]
        if stats:
            for norms, name in (
                (network.conv_norms, f"conv{i}_norm"),
                (network.dense_norms, f"dense{i}_norm"),
            ):
                _set_norm(norms[i - 1], params[name], stats[name])
    _set_dense(network.head, params["head"])
    return network.eval().requires_grad_(False)


def resnet_from(variables: Mapping, depths: tuple[int, ...], widths: tuple[int, ...]) -> ResNet:
    """The network that these Flax variables of a `dfke_jax.nn.resnet.ResNet` describe, frozen, in evaluation mode."""
    params, stats = variables["params"], variables["batch_stats"]
    network = ResNet(depths, widths, params["head"]["kernel"].shape[-1])
    _set_conv(network.conv, params["conv"])
    _set_norm(network.norm, params["conv_norm"], stats["conv_norm"])
    for name, block in network.blocks.items():
        tree, running = params[name], stats[name]
        for conv, norm, part in (
            (block.conv1, block.norm1, "conv1"),
            (block.conv2, block.norm2, "conv2"),
            (block.shortcut, block.shortcut_norm, "shortcut"),
        ):
            if conv is not None:
                _set_conv(conv, tree[part])  # type: ignore[arg-type]
                _set_norm(norm, tree[f"{part}_norm"], running[f"{part}_norm"])
    _set_dense(network.head, params["head"])
    return network.eval().requires_grad_(False)


class NoiseOptimisation:
    """Adam on a batch of images under the softened cross-entropy of a frozen network, clipped to [0, 1]."""

    def __init__(self, network: nn.Module, start: Any, targets: Any, temperature: float, rate: float, steps: int):
        self.network, self.temperature, self.steps = network, temperature, steps
        self.targets = _tensor(targets)
        self.images = images_from(start).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.images], lr=rate)

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.optimizer.zero_grad(set_to_none=True)
            log_probabilities = F.log_softmax(self.network(self.images) / self.temperature, 1)
            loss = -(self.targets * log_probabilities).sum()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                self.images.clamp_(0.0, 1.0)


class ClassifierTraining:
    """Cross-entropy training of one network after another, on rows drawn from images in memory."""

    def __init__(self, networks: list[Any], images: Any, labels: Any, batch: int, rate: float, steps: int):
        self.images, self.labels = images_from(images), _tensor(labels).long()
        self.batch, self.steps = batch, steps
        self.members = [(network.train(), torch.optim.Adam(network.parameters(), lr=rate)) for network in networks]

    def __call__(self) -> None:
        for _ in range(self.steps):
            for network, optimizer in self.members:
                rows = torch.randint(len(self.images), (self.batch,), device=DEVICE)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(self.images[rows]), self.labels[rows]).backward()
                optimizer.step()


class Distillation:
    """A student learns a teacher's softened answers: to every augmented batch, or from a table."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: Any,
        *,
        temperature: float,
        rate: float,
        schedule: int,
        batch: int,
        steps: int,
        augmentation: Mapping[str, Any] | None,
    ):
        self.student, self.teacher, self.images = student.train(), teacher, images_from(images)
        self.temperature, self.rate, self.schedule = temperature, rate, schedule
        self.batch, self.steps, self.augmentation, self.taken = batch, steps, augmentation, 0
        self.optimizer = torch.optim.Adam(student.parameters(), lr=rate)
        with torch.no_grad():
            self.table = torch.cat([teacher(part) for part in self.images.split(500)])

    @torch.no_grad()
    def augmented(self, images: torch.Tensor) -> torch.Tensor:
        assert self.augmentation is not None
        count, size = len(images), images.shape[-1]
        rotation, (low, high), pixels, sigma = (
            self.augmentation[name] for name in ("rotation_radians", "scale", "shift_pixels", "max_sigma")
        )
        angle = rotation * (2 * torch.rand(count, device=DEVICE) - 1)
        zoom = low + (high - low) * torch.rand(count, device=DEVICE)
        shift = pixels * (2 * torch.rand(count, 2, device=DEVICE) - 1) * 2 / size
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        theta = torch.cat([turn, -(turn @ shift[:, :, None])], 2)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        spread = sigma * torch.rand(count, 1, 1, 1, device=DEVICE)
        return (images + spread * torch.randn_like(images)).clamp_(0.0, 1.0)

    def __call__(self) -> None:
        for _ in range(self.steps):
            rows = torch.randint(len(self.images), (self.batch,), device=DEVICE)
            batch = self.images[rows]
            if self.augmentation is None:
                answers = self.table[rows]
            else:
                batch = self.augmented(batch)
                with torch.no_grad():
                    answers = self.teacher(batch)
            progress = min(self.taken / self.schedule, 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * progress))
            self.taken += 1
            self.optimizer.zero_grad(set_to_none=True)
            student = F.log_softmax(self.student(batch) / self.temperature, 1)
            wanted = F.log_softmax(answers / self.temperature, 1)
            loss = self.temperature**2 * F.kl_div(student, wanted, reduction="batchmean", log_target=True)
            loss.backward()
            self.optimizer.step()


class DeepInversion:
    """Images whose normalisation statistics match the stored ones; forward hooks collect the batch's."""

    def __init__(
        self,
        network: nn.Module,
        batch: int,
        *,
        statistics: float,
        total_variation: float,
        jitter: int,
        rate: float,
        steps: int,
    ):
        self.network, self.batch, self.rate, self.steps = network, batch, rate, steps
        self.statistics, self.total_variation, self.jitter = statistics, total_variation, jitter
        self.labels = torch.arange(batch, device=DEVICE) % 10
        self.terms: list[torch.Tensor] = []
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.register_forward_hook(self._collect)

    def _collect(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        var, mean = torch.var_mean(inputs[0], axes, unbiased=False)
        self.terms.append((mean - module.running_mean).norm() + (var - module.running_var).norm())

    def __call__(self) -> None:
        start = (0.5 + 0.5 * torch.randn(self.batch, 1, 28, 28, device=DEVICE)).clamp_(0.0, 1.0)
        images = start.requires_grad_(True)
        optimizer = torch.optim.Adam([images], lr=self.rate)
        for _ in range(self.steps):
            self.terms.clear()
            optimizer.zero_grad(set_to_none=True)
            down, right = np.random.randint(-self.jitter, self.jitter + 1, 2).tolist()  # noqa: NPY002
            x = torch.roll(images, (down, right), (2, 3))
            loss = F.cross_entropy(self.network(x), self.labels) + self.statistics * torch.stack(self.terms).sum()
            variation = (
                (x[:, :, 1:] - x[:, :, :-1]).norm()
                + (x[:, :, :, 1:] - x[:, :, :, :-1]).norm()
                + (x[:, :, 1:, 1:] - x[:, :, :-1, :-1]).norm()
                + (x[:, :, 1:, :-1] - x[:, :, :-1, 1:]).norm()
            )
            (loss + self.total_variation * variation).backward()
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0.0, 1.0)


class DFMEGenerator(nn.Module):
    """The generator of data-free model extraction, for images of `size` pixels; returns what goes into the tanh.

    Without `normalised_output` the last convolution has a bias in the place of the normalisation.
    """

    def __init__(self, width: int, latent: int, size: int = 28, channels: int = 1, normalised_output: bool = True):
        super().__init__()
        self.base = size // 4
        self.dense = nn.Linear(latent, 2 * width * self.base**2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(maps) for maps in (2 * width, 2 * width, width))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False)
            for a, b in ((2 * width, 2 * width), (2 * width, width), (width, channels))
        )
        self.image_norm: nn.Module = nn.BatchNorm2d(channels, affine=False)
        if not normalised_output:
            self.convs[2] = nn.Conv2d(width, channels, 3, padding=1)
            self.image_norm = nn.Identity()
        self.to(DEVICE)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](self.dense(z).reshape(len(z), -1, self.base, self.base))
        for i in range(2):
            x = self.convs[i](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = F.leaky_relu(self.norms[i + 1](x), 0.2)
        return self.image_norm(self.convs[2](x))


def dfme_generator_from(variables: Mapping) -> DFMEGenerator:
    """The network that these Flax variables of a `dfke_jax.nn.generators.DFMEGenerator` describe, in training mode."""
    params, stats = variables["params"], variables["batch_stats"]
    latent = params["dense"]["kernel"].shape[0]
    normalised = "image_bias" not in params
    network = DFMEGenerator(params["conv3"]["kernel"].shape[2], latent, normalised_output=normalised)
    with torch.no_grad():
        kernel = _tensor(params["dense"]["kernel"]).reshape(latent, 7, 7, -1).permute(3, 1, 2, 0)
        network.dense.weight.copy_(kernel.reshape(-1, latent))
        network.dense.bias.copy_(_tensor(params["dense"]["bias"]).reshape(7, 7, -1).permute(2, 0, 1).reshape(-1))
    for i, name in enumerate(("dense_norm", "conv1_norm", "conv2_norm")):
        _set_norm(network.norms[i], params[name], stats[name])
    for i in range(3):
        tree = params[f"conv{i + 1}"]
        bias = {"bias": np.asarray(params["image_bias"]).reshape(-1)} if i == 2 and not normalised else {}
        _set_conv(network.convs[i], {**tree, **bias})  # type: ignore[arg-type]
    return network


class DataFreeExtraction:
    """DFME: the clone's steps on fresh batches, then a step of the generator by forward differences."""

    def __init__(
        self,
        victim: nn.Module,
        *,
        width: int,
        batch: int,
        latent: int,
        clone_batches: int,
        epsilon: float,
        directions: int,
        clone_rate: float,
        generator_rate: float,
        steps: int,
        clone: nn.Module | None = None,
        size: int = 28,
        channels: int = 1,
        momentum: float | None = None,
    ):
        self.victim, self.clone = victim, clone or LeNet5()
        self.generator = DFMEGenerator(width, latent, size, channels)
        self.batch, self.latent, self.clone_batches, self.steps = batch, latent, clone_batches, steps
        self.epsilon, self.directions = epsilon, directions
        parameters = self.clone.parameters()
        self.clone_optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=clone_rate)
            if momentum is None
            else torch.optim.SGD(parameters, clone_rate, momentum, weight_decay=5e-4)
        )
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=generator_rate)

    @torch.no_grad()
    def answers(self, rows: torch.Tensor) -> torch.Tensor:
        logs = F.softmax(self.victim(rows), 1).clamp_min(1e-7).log()
        return logs - logs.mean(1, keepdim=True)

    def losses(self, before: torch.Tensor) -> torch.Tensor:
        rows = (torch.tanh(before) + 1) / 2
        return (self.answers(rows) - self.clone(rows)).abs().mean(1)

    @torch.no_grad()
    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        """The gradient of the mean loss by forward differences."""
        count = self.directions
        drawn = torch.randn(count, *x.shape, device=DEVICE)
        drawn /= drawn.flatten(2).norm(dim=2).reshape(count, len(x), 1, 1, 1)
        points = torch.cat([x[None], x[None] + self.epsilon * drawn])
        losses = self.losses(points.flatten(0, 1)).reshape(count + 1, len(x))
        slopes = (losses[1:] - losses[:1]) / self.epsilon
        scale = x[0].numel() / count / len(x)
        return scale * (slopes[:, :, None, None, None] * drawn).sum(0)

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.clone.train()
            for _ in range(self.clone_batches):
                with torch.no_grad():
                    rows = (torch.tanh(self.generator(torch.randn(self.batch, self.latent, device=DEVICE))) + 1) / 2
                wanted = self.answers(rows)
                self.clone_optimizer.zero_grad(set_to_none=True)
                (self.clone(rows) - wanted).abs().mean().backward()
                self.clone_optimizer.step()
            self.clone.eval()
            self.generator_optimizer.zero_grad(set_to_none=True)
            x = self.generator(torch.randn(self.batch, self.latent, device=DEVICE))
            x.backward(-self.estimate(x.detach()))
            self.generator_optimizer.step()
