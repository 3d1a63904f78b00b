"""Which training a recipe's settings ask for."""

import jax
import numpy as np
import pytest

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.experiments.bench.settings import AIRBENCH, SupervisedSettings
from dfke_jax.experiments.bench.supervision import independent_models, supervised_training
from dfke_jax.nn.airbench import Airbench
from dfke_jax.nn.airbench_training import AirbenchState
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.named import network
from dfke_jax.nn.training import Training

SHAPE = (3, 3, 1)
IMAGES, LABELS = np.zeros((6, *SHAPE), np.uint8), np.arange(6) % 2
SMALL = {**AIRBENCH, "teacher_batch": 3, "teacher_steps": 2}


def kind(method, keys):
    return type(jax.eval_shape(method.init, keys))


@pytest.mark.parametrize(("training", "expected"), [("airbench", AirbenchState), ("adam", Training)])
def test_the_family_is_trained_as_asked_and_others_by_adam(training, expected):
    config = SupervisedSettings(**{**SMALL, "teacher_training": training})
    small = Classifier.create(Airbench(2, (1,)), jax.random.key(0), SHAPE)
    keys, table = jax.random.split(jax.random.key(0)), np.array([[0, 1, 2], [3, 4, 5]])
    assert kind(supervised_training(config, small, IMAGES, LABELS), keys[0]) is expected
    assert kind(independent_models(config, small, IMAGES, LABELS, table), keys) is expected
    other = network("mlp_small", 2, SHAPE)
    assert kind(supervised_training(config, other, IMAGES, LABELS), keys[0]) is Training


def test_another_network_is_no_teacher_of_the_speed_run():
    with pytest.raises(InputError, match="not lenet5; take --teacher airbench94"):
        SupervisedSettings(teacher_training="airbench")
    with pytest.raises(UnknownNameError, match="unknown training 'airbnch'"):
        SupervisedSettings(teacher_training="airbnch")  # type: ignore[arg-type]
