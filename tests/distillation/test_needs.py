"""What methods read of a teacher: models that lack it are refused before any work, and the others are named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core, distillation
from dfke_jax.core import InputError
from dfke_jax.distillation.needs import NEEDS
from dfke_jax.nn import Classifier
from dfke_jax.nn.adapters import from_linen
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.whitebox import WORDS

SHAPE = (4, 4, 1)
STUDENT = Classifier.create(MLP(3, (4,)), jax.random.key(0), SHAPE)
IMAGES = np.random.default_rng(0).random((6, *SHAPE), np.float32)


class Bare(nn.Module):
    """A user's network that shows logits alone: they are no dense layer's output."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        return x @ self.variable("constants", "kernel", lambda: jax.random.normal(jax.random.key(1), (16, 3))).value


@pytest.fixture(scope="module")
def bare():
    variables = {"params": {}, **Bare().init(jax.random.key(0), IMAGES)}
    return from_linen(Bare(), variables, SHAPE)


def made(name, teacher):
    small = {"steps": 1, "batch_size": 6, "width": 4, "latent": 4}
    plain = distillation.InversionSettings(steps=1, statistics=0.0)
    records = distillation.RecordSettings(steps=1)
    return {
        "knowledge_distillation": lambda: distillation.knowledge_distillation(STUDENT, teacher, IMAGES, batch_size=6),
        "rdskd": lambda: distillation.rdskd(
            teacher, distillation.RDSKDSettings(batch_size=6, width=4, latent=4)
        ),
        "class_impressions": lambda: distillation.class_impressions(
            teacher, distillation.ClassImpressionSettings(steps=1), 6, 6
        ),
        "dfnd": lambda: distillation.dfnd(teacher, STUDENT, IMAGES, distillation.DFNDSettings(steps=1)),
        "hint_training": lambda: distillation.hint_training(STUDENT, teacher, IMAGES),
        "attention_distillation": lambda: distillation.attention_distillation(
            STUDENT, teacher, IMAGES, distillation.AttentionSettings()
        ),
        "relation_distillation": lambda: distillation.relation_distillation(
            STUDENT, teacher, IMAGES, distillation.RelationSettings()
        ),
        "dfad": lambda: distillation.dfad(teacher, STUDENT, distillation.DFADSettings(**small)),
        "deep_inversion(statistics=0)": lambda: distillation.deep_inversion(teacher, plain, 6, 6),
        "zskt(attention=0)": lambda: distillation.zskt(
            teacher, STUDENT, distillation.ZSKTSettings(attention=0.0, **small)
        ),
        "data_impressions": lambda: distillation.data_impressions(
            teacher, distillation.ImpressionSettings(steps=1), 6, 6
        ),
        "dafl": lambda: distillation.dafl(teacher, STUDENT, distillation.DAFLSettings(**small)),
        "zskt": lambda: distillation.zskt(teacher, STUDENT, distillation.ZSKTSettings(**small)),
        "record_activations": lambda: distillation.record_activations(teacher, IMAGES, np.arange(6) % 3),
        "from_records": lambda: distillation.from_records(teacher, {}, records, 6, 6),
        "deep_inversion": lambda: distillation.deep_inversion(
            teacher, distillation.InversionSettings(steps=1), 6, 6
        ),
        "adaptive_deep_inversion": lambda: distillation.adaptive_deep_inversion(
            teacher, STUDENT, distillation.InversionSettings(steps=1), 6, 6
        ),
        **{
            f"{method}{'' if weight else '(statistics=0)'}": lambda method=method, kind=kind, weight=weight: getattr(
                distillation, method
            )(teacher, *((STUDENT,) if method != "statistics_generators" else ()), getattr(distillation, kind)(
                batch_size=6, width=4, latent=4, **({} if weight is True else {"statistics": 0.0}),
                **{"dfq": {"schedule": "constant"}, "statistics_generators": {"groups": 3}}.get(method, {}),
            ))
            for method, kind in BANKS.items()
            for weight in (True, False)
        },
        "knowledge_within": lambda: distillation.knowledge_within(teacher, distillation.WithinSettings(steps=1), 6, 6),
    }[name]()  # fmt: skip


BANKS = {
    "cmi": "CMISettings",
    "fast_dfkd": "FastSettings",
    "nayer": "NAYERSettings",
    "dfq": "DFQSettings",
    "statistics_generators": "GroupSettings",
}
TESTED_BESIDE = ("degan", "gan_sampling", "dfka")  # they take a GAN, proxy images, or several teachers


@pytest.mark.filterwarnings("ignore:.*images a class")
@pytest.mark.parametrize("name", [name for name in NEEDS if name not in TESTED_BESIDE])
def test_a_method_takes_the_models_that_show_what_it_needs(name, bare):
    if NEEDS[name] == ("logits",):
        assert isinstance(made(name, bare), core.Method)
        return
    need = next(need for need in NEEDS[name] if need != "logits")
    with pytest.raises(InputError) as refused:
        made(name, bare)
    message = str(refused.value)
    assert message.startswith(f"{name} needs {WORDS[need]}, and Bare shows none: ")
    able = "knowledge_distillation, class_impressions, dfad, deep_inversion(statistics=0), zskt(attention=0)"
    assert f"methods that work with it: {able}" in message


class Convolved(nn.Module):
    """A network of hidden layers that ends in none that is dense."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(3, (3, 3))(nn.relu(nn.Conv(4, (3, 3))(x))).mean((1, 2))


def test_relations_need_the_input_of_the_last_layer_and_not_just_any():
    network = Classifier.create(Convolved(), jax.random.key(0), SHAPE)
    teacher = from_linen(Convolved(), network.variables, SHAPE)
    assert (teacher.lacks("activations"), bool(teacher.lacks("features"))) == ("", True)
    settings = distillation.RelationSettings()
    with pytest.raises(InputError, match=r"relation_distillation needs the input of the last layer.*hint_training"):
        distillation.relation_distillation(STUDENT, teacher, IMAGES, settings)
    with pytest.raises(InputError, match="of the student it records no 'features'"):
        distillation.relation_distillation(network, STUDENT, IMAGES, settings)


def test_a_users_model_is_distilled_from(bare):
    settings = distillation.DFADSettings(steps=2, batch_size=6, width=4, latent=4)
    state = core.run(distillation.dfad(bare, STUDENT, settings), jax.random.key(1), 2).state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.student.variables))
    learning = distillation.knowledge_distillation(STUDENT, bare, jnp.asarray(IMAGES), augment=None, batch_size=6)
    assert np.isfinite(core.run(learning, jax.random.key(2), 2).metrics["loss"]).all()
