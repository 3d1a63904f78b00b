"""Two generators in the plane, one by belief matching (ZSKT) and one by the distance of logits
(DFAD): where are the points that they make, and how far from the teacher's decision boundary?

python examples/boundary_walk.py
"""

import sys
from pathlib import Path

import flax.linen as flax_nn
import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax import core, distillation, nn
from dfke_jax.display.drawing import COLOURS, INK, MUTED, SEEDS, new_figure, tidy
from dfke_jax.nn.mlp import MLP

# A point of the plane is an image of two pixels, so that everything of the package takes it.
PLANE, BOX = (1, 2, 1), (-1.0, 1.0)
POINTS, MOMENTS = 100, (0, 10, 40, 100, 400)
GRID = np.stack(np.meshgrid(*[np.linspace(*BOX, 81)] * 2), -1)


class PlaneGenerator(flax_nn.Module):
    """Latents (B, Z) -> points (B, 1, 2, 1)."""

    latent: int = 4
    units: int = 32

    def __call__(self, z, *, train=False):
        return self.pre_activation(z, train=train)

    @flax_nn.compact
    def pre_activation(self, z, *, train=False):
        """What goes into the tanh that keeps points in the box."""
        hidden = flax_nn.tanh(flax_nn.Dense(self.units, name="hidden")(z))
        return flax_nn.Dense(2, name="point")(hidden).reshape(-1, *PLANE)


def network(units: tuple[int, ...], seed: int) -> nn.Classifier:
    """A small network from points to two classes."""
    return nn.Classifier.create(
        MLP(2, units), jax.random.key(seed), PLANE, nn.Preprocessing(box=BOX)
    )


def wave(points):
    """The class of points (N, 2): above or below a wave."""
    return (points[:, 1] > 0.5 * np.sin(3.5 * points[:, 0])).astype(np.int32)


def new_teacher(seed: int, steps: int) -> nn.Classifier:
    """A network that has learnt the wave from 4,000 points."""
    points = np.random.default_rng(seed).uniform(*BOX, (4000, 2)).astype(np.float32)
    empty = network((32, 32), seed)
    images, labels = jnp.asarray(points.reshape(-1, *PLANE)), jnp.asarray(wave(points))
    training = distillation.cross_entropy_training(empty, images, labels, steps=steps)
    return nn.trained(empty, core.run(training, jax.random.key(seed), steps).state)


def boundary(classifier: nn.Classifier) -> np.ndarray:
    """Points (N, 2) between neighbours of the grid that a network puts into different classes."""
    classes = on_grid(classifier) > 0
    across, down = classes[:, 1:] != classes[:, :-1], classes[1:] != classes[:-1]
    halfway = [(GRID[:, 1:] + GRID[:, :-1])[across], (GRID[1:] + GRID[:-1])[down]]
    return np.concatenate(halfway) / 2


def on_grid(classifier: nn.Classifier) -> np.ndarray:
    """Difference of the two logits at every point of the grid."""
    logits = classifier.predict(GRID.reshape(-1, *PLANE).astype(np.float32))
    return (logits[:, 1] - logits[:, 0]).reshape(GRID.shape[:2])


def distance(points: np.ndarray, line: np.ndarray) -> float:
    """Mean distance of points (N, 2) to the nearest of a line's."""
    return float(np.linalg.norm(points[:, None] - line[None], axis=-1).min(1).mean())


def methods(steps: int):
    """Name -> the method of a teacher and a student, at the same budget; the control never learns."""
    plain = {"batch_size": POINTS, "latent": 4, "steps": steps, "student_rate": 3e-3}
    belief = distillation.ZSKTSettings(**plain, attention=0.0, generator_rate=3e-3)
    logits = distillation.DFADSettings(**plain, student_optimizer="adam", generator_rate=3e-3)
    still = distillation.ZSKTSettings(**plain, attention=0.0, generator_rate=0.0)
    return {
        "ZSKT": (distillation.zskt, belief),
        "DFAD": (distillation.dfad, logits),
        "never learns": (distillation.zskt, still),
    }


def walk(name: str, teacher: nn.Classifier, seed: int, steps: int) -> dict:
    """One duel: at every moment the generator's points, their distance to the boundary, the student."""
    make, settings = methods(steps)[name]
    empty, generator = network((16,), seed + 50), PlaneGenerator()
    method = make(teacher, empty, settings, generator=generator)
    z = jax.random.normal(jax.random.key(seed), (POINTS, generator.latent))
    line, truth = boundary(teacher), on_grid(teacher) > 0
    found = {"moments": [], "points": [], "distance": [], "agreement": [], "students": []}

    def look(step, state, metrics):
        if step not in (*MOMENTS, steps):
            return
        points = np.asarray(jnp.tanh(generator.apply(state.generator.variables, z)).reshape(-1, 2))
        student = on_grid(distillation.student_of(empty, state))
        found["moments"].append(step)
        found["points"].append(points)
        found["distance"].append(distance(points, line))
        found["agreement"].append(100 * float(((student > 0) == truth).mean()))
        found["students"].append(student)

    key = jax.random.key(seed)
    state = jax.jit(method.init)(key)
    look(0, state, {})
    core.run(method, key, steps, chunk=10, state=state, callback=look)
    return found


def draw(teacher: nn.Classifier, walks: dict):
    """A row of panels a method: regions of the teacher, the student's boundary, points."""
    names, moments = list(walks), next(iter(walks.values()))["moments"]
    figure = new_figure((2.1 * len(moments), 2.3 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(moments), squeeze=False, sharex=True, sharey=True)
    regions = on_grid(teacher)
    x, y = GRID[..., 0], GRID[..., 1]
    for row, name in zip(panels, names, strict=True):
        for axes, moment, points, away, student in zip(
            row, *(walks[name][what] for what in ("moments", "points", "distance", "students")),
            strict=True,
        ):  # fmt: skip
            axes.contourf(x, y, regions, [-1e9, 0, 1e9], colors=["#F3E3D3", "#DCE9F3"])
            if student.min() < 0 < student.max():
                axes.contour(x, y, student, [0], colors=[COLOURS["anchor"]], linewidths=1.5)
            axes.plot(*points.T, ".", color=SEEDS[0], markersize=2)
            axes.set_title(f"step {moment}, distance {away:.2f}", fontsize=8, color=INK)
            axes.set_aspect("equal")
            tidy(axes)
        row[0].set_ylabel(name, fontsize=9, color=MUTED)
    return figure


def main(
    steps: int = MOMENTS[-1], teacher_steps: int = 1000, seeds: int = 3, out: str = ""
) -> dict[str, np.ndarray]:
    """Name -> mean distances to the teacher's boundary (seeds, moments); the picture is of seed 0."""
    found: dict[str, list] = {}
    for seed in range(seeds):
        teacher = new_teacher(seed, teacher_steps)
        walks = {name: walk(name, teacher, seed, steps) for name in methods(steps)}
        for name, one in walks.items():
            found.setdefault(name, []).append(one["distance"])
            pairs = zip(one["moments"], one["distance"], one["agreement"], strict=True)
            told = "; ".join(f"{step}: {far:.3f}, {same:.1f} %" for step, far, same in pairs)
            print(f"seed {seed}, {name}: distance and agreement at step {told}")
        if seed == 0 and out:
            draw(teacher, walks).savefig(Path(out), dpi=90)
    return {name: np.asarray(values) for name, values in found.items()}


if __name__ == "__main__":
    main(out=sys.argv[1] if len(sys.argv) > 1 else "boundary_walk.png")
