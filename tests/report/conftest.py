"""A hand-made run's directory."""

import json

import numpy as np
import pytest

from dfke_jax.experiments.bench.result import Arm, Published, Result


@pytest.fixture
def result():
    return made_result()


def made_result():
    budget = {
        "synthetic_samples": 24000,
        "synthesis_steps": 1500,
        "teacher_rows": 36_000_000,
        "distillation_steps": 20000,
    }
    return Result(
        recipe="zskd",
        title="Zero-shot knowledge distillation with data impressions",
        dataset="digits",
        config={
            "dataset": "digits",
            "seeds": 3,
            "teacher": "lenet5",
            "learning_rate": 0.001,
            "beta": [1.0, 0.1],
            "augment": False,
            "width": None,
        },
        seeds=[0, 1, 2],
        arms=[
            Arm("teacher", "LeNet-5 teacher", "teacher", [98.06, 97.5, 98.33]),
            Arm(
                "data_impressions",
                "Data impressions",
                "method",
                [93.06, 92.22, 94.17],
                [93.6, 92.9, 94.5],
                budget,
                {"entropy": [1.0, 1.1, 1.2]},
            ),
            Arm(
                "control",
                "Unoptimised noise",
                "control",
                [61.4, 55.0, 63.9],
                [62.0, 55.8, 64.1],
                budget | {"synthesis_steps": 0},
            ),
            Arm(
                "uniform",
                "Uniform noise",
                "baseline",
                [31.1, 28.6, 35.3],
                [31.0, 29.0, 35.0],
                {"synthetic_samples": 24000},
            ),
            Arm(
                "real",
                "Real training images",
                "anchor",
                [97.2, 97.5, 96.9],
                [98.2, 98.5, 97.9],
                {"real_samples": 1437},
            ),
        ],
        published=[
            Published(
                "data_impressions",
                "digits",
                93.3,
                "Nayak et al. 2019, Table 1",
                "table",
                "MNIST-sized images",
            ),
            Published("real", "digits", 98.9, "Nayak et al. 2019, Table 1", "recalled"),
            Published("data_impressions", "mnist", 98.77, "Nayak et al. 2019, Table 1", "code"),
        ],
        seconds={"teacher": 4.2, "synthesis": 31.0, "distillation": 12.25, "compile": 6.0, "total": 53.45},
        environment={
            "python": "3.12.1",
            "versions": {"jax": "0.10.2", "flax": "0.12.8", "dfke-jax": None},
            "backend": "cpu",
            "device": "cpu",
            "revision": "abc1234",
        },
        notes=["The digits have 8×8 pixels."],
    )


@pytest.fixture
def directory(tmp_path, result):
    """Everything that a run can leave."""
    return filled(tmp_path / "run", result)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The same with its report, for tests that only look."""
    from dfke_jax import report

    path = filled(tmp_path_factory.mktemp("drawn") / "run", made_result())
    report.render(path)
    return path


def filled(path, result):
    rng = np.random.default_rng(0)
    path.mkdir()
    result.write(path)
    labels = np.repeat(np.arange(10), 12)
    images = rng.integers(0, 256, (120, 8, 8, 1), dtype=np.uint8)
    np.savez(
        path / "samples.npz",
        data_impressions=images,
        data_impressions_labels=labels,
        control=images[::-1],
        control_labels=labels,
    )
    features = rng.normal(size=(10, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.savez(
        path / "similarity.npz",
        class_similarity=features @ features.T,
        class_names=np.array(list("0123456789")),
    )
    with (path / "metrics.jsonl").open("w") as file:
        for seed in range(3):
            for step in range(50, 1501, 50):
                synthesis = {
                    f"seed{seed}/synthesis/loss": 2.3 * float(np.exp(-step / 200)) + 0.002 * float(rng.uniform(1, 2))
                }
                student = {
                    f"seed{seed}/student/loss": 1.2 / (1 + step / 300) + 0.05 * float(rng.normal()),
                    f"seed{seed}/student/accuracy": 1 - 0.8 / (1 + step / 200),
                }
                file.write(json.dumps({"step": step, **synthesis}) + "\n")
                file.write(json.dumps({"step": step * 10, **student}) + "\n")
    return path
