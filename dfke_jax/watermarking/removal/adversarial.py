"""Removal by adversarial fine-tuning: what the marked network gets wrong under small changes is
learnt again.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.evaluation.transfer import pgd
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.watermarking.removal.common import (
    FINE_TUNING,
    Removed,
    TrainingSettings,
    Watch,
    aside,
    carry_out,
    check_attacker,
)
from dfke_jax.watermarking.removal.fine_tuning import fine_tuned, fine_tuning


def adversarial_fine_tuning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    epsilon: float = 0.1,
    attack_steps: int = 10,
    samples: int = 6000,
    settings: TrainingSettings = FINE_TUNING,
    watch: Watch | None = None,
) -> Removed:
    """Fine-tunes all layers on clean images and as many adversarial ones, under their true labels.

    The adversarial images are made by projected gradient ascent on the marked network, once. Marks
    near the decision boundary and patterns to which the network is sensitive are unlearnt with
    them.

    Args:
      epsilon: largest change of a pixel. attack_steps: of the ascent.
      samples: images used, the first of a random order; all if there are fewer.
      settings: of the fine-tuning.

    Raises:
      InputError: for numbers out of range, or images and labels that do not fit.

    Source: adversarial examples of Madry et al., ICLR 2018; as a removal attack Lukas et al., SoK:
    How Robust is Image Classification Deep Neural Network Watermarking?, IEEE S&P 2022. Deviation:
    the examples are not renewed.
    """
    check_attacker(marked, images, labels)
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    order = jax.random.permutation(aside(key, 1), len(images))[:samples]
    clean, truth = as_float(jnp.asarray(images)[order]), jnp.asarray(labels)[order]
    batch, noise_key = 500, aside(key, 2)
    attacked = [
        pgd(
            jax.random.fold_in(noise_key, start),
            marked,
            clean[start : start + batch],
            truth[start : start + batch],
            epsilon,
            steps=attack_steps,
            box=marked.preprocessing.box,
        )
        for start in range(0, len(clean), batch)
    ]
    rows, twice = jnp.asarray(np.concatenate([clean, *attacked])), jnp.concatenate([truth, truth])
    method = fine_tuning(marked, rows, twice, "ftal", settings)
    numbers = {
        "epsilon": epsilon,
        "attack_steps": attack_steps,
        "samples": samples,
        **settings.numbers(),
    }

    def read(state) -> Removed:
        removed = fine_tuned(marked, state, "ftal", settings)
        words = "fine-tuning on adversarial images"
        return dataclasses.replace(
            removed, attack="adversarial_fine_tuning", description=words, settings=numbers
        )

    return carry_out(method, key, settings.steps, read, watch)


__all__ = ["adversarial_fine_tuning"]
