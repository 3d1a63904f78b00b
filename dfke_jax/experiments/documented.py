"""The experiments whose results the documentation shows, by name, with what they change against their recipe's preset."""

import dataclasses
from typing import Any

from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.settings import AIRBENCH
from dfke_jax.watermarking.removal import REMOVALS


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One documented run.

    Attributes:
      recipe, dataset: what is run on what.
      description: what it shows.
      time: what it took on a machine of two CPU cores, where it was measured.
      changes: configuration fields that differ from the preset; those of nested settings as a dictionary.
    """

    recipe: str
    dataset: str
    description: str
    time: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def config(self) -> Any:
        """The configuration."""
        base = recipe(self.recipe).settings(self.dataset)
        changes = {
            name: dataclasses.replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in self.changes.items()
        }
        return dataclasses.replace(base, **changes)


_LARGE = {"samples": 24000, "distillation_steps": 20000, "baselines": False}
# The noise baseline depends on teacher, data and distillation budget alone; the data-impressions rows carry it.
_NO_NOISE = {"baselines": False}

# what two cores can do on CIFAR-10: the speed run's network at half its width, and students of a quarter
_SPEED_RUN = {
    **AIRBENCH,
    "teacher": "airbench94_half",
    "student": "airbench94_quarter",
    "real_augmentation": "crop_flip",
    "distillation_steps": 2000,
    "seeds": 1,
}

# for the clean network and for every copy
_TEN_EPOCHS = {
    "seeds": 5,
    "teacher": "two_conv",
    "student": "two_conv",
    "teacher_steps": 4690,
    "extraction_steps": 4690,
}
_QUARTER = {"teacher": "two_conv_quarter", "student": "two_conv_quarter"}
# extraction with a pool, and without any data
_CLONES = ("knockoff", "copycat", "jbda", "dfme", "maze", "disguide", "dfms")
# all triggers, a constant rate
_EWE = {**_TEN_EPOCHS, "triggers": 0, "decay": False}

# every recipe without data, by its preset for the data that come with the package
_ON_DIGITS = {
    "dafl": "a generator of images that the teacher is sure of",
    "dfad": "a generator of images that divide teacher and student",
    "zskt": "the same by belief matching",
    "dfq": "the same under stored statistics",
    "cmi": "a fresh generator for every batch",
    "fast-dfkd": "inversion in ten steps from a start that learns",
    "nayer": "inversion out of embeddings of labels",
    "statistics-generators": "a generator for every group of classes",
    "knowledge-within": "pixels with the stored Gaussians",
    "deep-inversion": "DeepDream, plain and adaptive",
    "data-impressions": "image prior, Dirichlet answers",
    "class-impressions": "image prior, sure answers",
    "degan": "a GAN of random shapes that covers the classes",
    "rdskd": "a generator of sure, balanced and different images",
    "gan-sampling": "samples of a GAN of the real images, made hard",
    "dfka": "two teachers of five classes each, one student",
    "transfer-sets": "noise and random shapes, balanced or not",
    "dfnd": "random shapes that the teacher chooses",
    "few-shot": "200 real images",
    "feature-distillation": "hidden layers of 200 real images",
}

EXPERIMENTS: dict[str, Experiment] = {
    **{
        f"{name}-digits": Experiment(name, "digits", description, "not measured")
        for name, description in _ON_DIGITS.items()
    },
    "dfka-digits-four": Experiment(
        "dfka", "digits", "four teachers of two or three classes each", "not measured", {"teachers": 4}
    ),
    "anchors-mnist": Experiment("anchors", "mnist", "what real data gives", "5 min"),
    "anchors-fashion_mnist": Experiment(
        "anchors", "fashion_mnist", "what real data gives", "13 min, one core, shared in part"
    ),
    "anchors-fashion_mnist-shifted": Experiment(
        "anchors",
        "fashion_mnist",
        "the same, distilled at a temperature of 20 on shifted images",
        "not measured",
        {"temperature": 20.0, "real_augmentation": "shift"},
    ),
    "anchors-fashion_mnist-unshifted": Experiment(
        "anchors",
        "fashion_mnist",
        "the same, distilled at a temperature of 20",
        "4 min, one shared core",
        {"temperature": 20.0},
    ),
    "data-impressions-mnist": Experiment(
        "data-impressions", "mnist", "image prior, 3,000 impressions", "14 min, shared core"
    ),
    "data-impressions-fashion_mnist": Experiment(
        "data-impressions", "fashion_mnist", "image prior, 3,000", "24 min, shared core"
    ),
    "data-impressions-mnist-blind": Experiment(
        "data-impressions",
        "mnist",
        "the same, start level and contrast blind to the data",
        "8 min, shared cores",
        {"baselines": False, "synthesis": {"start_mean": (0.0, 1.0), "start_sd": (0.0, 1.0)}},
    ),
    "zskd-mnist": Experiment(
        "zskd", "mnist", "no image prior, 3,000 impressions of 200 steps", "12 min, shared core", _NO_NOISE
    ),
    "zskd-fashion_mnist": Experiment(
        "zskd", "fashion_mnist", "no image prior, 3,000 of 200 steps", "not measured", _NO_NOISE
    ),
    "activation-records-mnist": Experiment(
        "activation-records", "mnist", "top layer and all layers", "17 min, shared core"
    ),
    "class-impressions-mnist": Experiment(
        "class-impressions", "mnist", "3,000 class impressions", "6 min, one core", _NO_NOISE
    ),
    "class-impressions-fashion_mnist": Experiment(
        "class-impressions", "fashion_mnist", "3,000 class impressions", "29 min, shared core", _NO_NOISE
    ),
    "deep-inversion-mnist": Experiment(
        "deep-inversion", "mnist", "DeepDream, plain and adaptive", "32 min, shared core"
    ),
    "deep-inversion-fashion_mnist": Experiment(
        "deep-inversion",
        "fashion_mnist",
        "DeepDream, plain and adaptive, out of Gaussian noise",
        "61 min, half a core",
        {
            "seeds": 5,
            "synthesis": {"start": "gaussian", "start_mean": (0.5, 0.5), "start_sd": (0.5, 0.5)},
        },
    ),
    "deep-inversion-fashion_mnist-smooth": Experiment(
        "deep-inversion",
        "fashion_mnist",
        "the same out of smooth strokes of any level and contrast",
        "21 min, one core",
        {"seeds": 5},
    ),
    "transfer-sets-mnist": Experiment(
        "transfer-sets", "mnist", "noise; clothes as unrelated images", "28 min, one shared core"
    ),
    "transfer-sets-fashion_mnist": Experiment(
        "transfer-sets", "fashion_mnist", "noise; digits as unrelated", "6 min, one core"
    ),
    "dafl-mnist": Experiment(
        "dafl", "mnist", "a generator beside a student, one batch for both", "21 min, one shared core"
    ),
    # which of the three losses does what; published on MNIST: activation < one-hot < entropy < all
    **{
        f"dafl-mnist-{name}": Experiment(
            "dafl",
            "mnist",
            words + ", 1,000 updates",
            "4 min, one core",
            {"iterations": 1000, "arbitrary": 0, "method": dict.fromkeys(without, 0.0)},
        )
        for name, words, without in (
            ("all", "all three losses", ()),
            ("one-hot", "the one-hot loss alone", ("activation", "entropy")),
            ("activation", "the activation loss alone", ("one_hot", "entropy")),
            ("entropy", "the entropy loss alone", ("one_hot", "activation")),
        )
    },
    "dfad-mnist": Experiment(
        "dfad", "mnist", "1,000 updates of the generator, five times as many of the student", "16 min, one shared core"
    ),
    "dfad-fashion_mnist": Experiment("dfad", "fashion_mnist", "the same of clothes", "not measured"),
    "zskt-mnist": Experiment(
        "zskt", "mnist", "800 updates of the generator, ten times as many of the student", "22 min, one shared core"
    ),
    "zskt-mnist-slow": Experiment(
        "zskt",
        "mnist",
        "1,600 updates of the generator at a twentieth of the rate",
        "57 min, one core",
        {"iterations": 1600, "method": {"generator_rate": 1e-3}},
    ),
    "zskt-fashion_mnist": Experiment("zskt", "fashion_mnist", "the same of clothes", "10 min, one shared core"),
    "dfq-mnist": Experiment(
        "dfq",
        "mnist",
        "400 updates of the generator, ten times as many of the student",
        "5 min a seed, one core",
        {"iterations": 400},
    ),
    "fast-dfkd-mnist": Experiment(
        "fast-dfkd", "mnist", "110 batches of 120 in ten steps each", "13 min, one shared core"
    ),
    "cmi-mnist": Experiment("cmi", "mnist", "40 batches of 120 in 100 steps each", "26 min, one shared core"),
    "nayer-mnist": Experiment("nayer", "mnist", "50 rounds of two batches in 40 steps each", "20 min, one shared core"),
    "anchors-cifar10-half": Experiment(
        "anchors", "cifar10", "the speed run at half its width, students of a quarter", "not measured", _SPEED_RUN
    ),
    "fast-dfkd-cifar10-half": Experiment(
        "fast-dfkd",
        "cifar10",
        "60 batches of 120 in ten steps each, from that network",
        "35 min, one shared core",
        {
            **_SPEED_RUN,
            "rounds": 60,
            "arbitrary": 0,
            "method": {
                "batch_size": 120,
                "warm_up": 10,
                "width": 16,
                "latent": 64,
                "student_steps": 25,
                "student_batch": 64,
                "student_optimizer": "adam",
                "student_rate": 3e-3,
            },
        },
    ),
    "fast-dfkd-fashion_mnist": Experiment(
        "fast-dfkd", "fashion_mnist", "the same of clothes", "11 min, one shared core"
    ),
    "cmi-fashion_mnist": Experiment("cmi", "fashion_mnist", "the same of clothes", "6 min a seed, one shared core"),
    "nayer-fashion_mnist": Experiment("nayer", "fashion_mnist", "the same of clothes", "5 min a seed, one shared core"),
    "dafl-fashion_mnist": Experiment("dafl", "fashion_mnist", "the same as on MNIST", "5 min a seed, one shared core"),
    "dfka-mnist": Experiment(
        "dfka", "mnist", "two teachers of five classes each, one student", "13 min, one shared core"
    ),
    "dfka-mnist-four": Experiment(
        "dfka", "mnist", "four teachers of two or three classes each", "5 min a seed, one core", {"teachers": 4}
    ),
    "degan-fashion_mnist": Experiment(
        "degan", "fashion_mnist", "a GAN of 8×8 digits, enlarged", "15 min a seed, one shared core"
    ),
    "dfnd-mnist": Experiment(
        "dfnd", "mnist", "clothes and random shapes that the teacher chooses", "4 min a seed, one shared core"
    ),
    "few-shot-mnist": Experiment("few-shot", "mnist", "200 real images", "2 min a seed, one shared core"),
    "feature-distillation-mnist": Experiment(
        "feature-distillation", "mnist", "hidden layers of 200 real images", "not measured"
    ),
    "data-impressions-mnist-24k": Experiment(
        "data-impressions", "mnist", "image prior, 24,000", "28 min, shared cores", _LARGE
    ),
    "data-impressions-fashion_mnist-24k": Experiment(
        "data-impressions", "fashion_mnist", "image prior, 24,000", "not measured", _LARGE
    ),
    "zskd-mnist-published": Experiment(
        "zskd",
        "mnist",
        "the published budget: 24,000 impressions of 1,500 steps, both scalings, the paper's augmentations",
        "12 min",
        {
            "samples": 24000,
            "synthesis_batch": 100,
            "synthesis": {"steps": 1500},
            "seeds": 1,
            "distillation_steps": 10000,
            "other_augmentations": ("published",),
            **_NO_NOISE,
        },
    ),
    **{
        f"zskd-cifar10-{name}": Experiment(
            "zskd",
            "cifar10",
            f"{words}, the published budget; needs a GPU",
            "not measured",
            {"teacher": teacher, "student": student, **_NO_NOISE},
        )
        for name, words, teacher, student in (
            ("alexnet", "AlexNet to its half", "alexnet", "alexnet_half"),
            ("vgg19-vgg11", "VGG-19 to VGG-11", "vgg19", "vgg11"),
            ("vgg19-resnet18", "VGG-19 to ResNet-18", "vgg19", "resnet18"),
            ("resnet18", "ResNet-18 to its half", "resnet18", "resnet18_half"),
        )
    },
    "dfme-mnist": Experiment("dfme", "mnist", "extraction from answers, with its control", "21 min, one shared core"),
    "dfme-mnist-1m": Experiment(
        "dfme",
        "mnist",
        "the same with a million queries, in larger batches",
        "60 min, half a core",
        {"budgets": (1_000_000,), "control": False, "attack": {"batch_size": 256, "replay_capacity": 200_000}},
    ),
    "dfme-cifar10": Experiment("dfme", "cifar10", "20 million queries, as published; needs a GPU", "not measured"),
    "dfme-cifar10-short": Experiment(
        "dfme",
        "cifar10",
        "the same, a million queries",
        "9 min with its victims, shared H200",
        {"budgets": (1_000_000,), "control": False, "teacher_steps": 4000},
    ),
    "dfms-cifar10": Experiment("dfms", "cifar10", "8 million labels, as published; needs a GPU", "not measured"),
    "dfms-cifar10-short": Experiment(
        "dfms",
        "cifar10",
        "the same, half a million labels",
        "2 min without its victims, H200",
        {
            "budgets": (500_000,),
            "control": False,
            "teacher_steps": 4000,
            "pretraining_steps": 5000,
            "first_clone": {"steps": 8000},
            "tuning_steps": 4000,
        },
    ),
    "megex-mnist": Experiment(
        "megex", "mnist", "extraction with explanations, with its control", "25 min, one shared core"
    ),
    "disguide-mnist": Experiment(
        "disguide",
        "mnist",
        "extraction by two clones that disagree, with its control",
        "25 min, one core",
    ),
    "dual-students-mnist": Experiment(
        "dual-students", "mnist", "the same by the distance of the clones' logits, with its control", "not measured"
    ),
    "api-theft-digits": Experiment(
        "api-theft", "digits", "a softmax regression and a network stolen whole, with the bill", "40 s of CPU time"
    ),
    "last-layer": Experiment(
        "last-layer", "source_text", "width and last layer of a language model", "5 min, one core"
    ),
    "api-extraction-tables": Experiment(
        "api-extraction",
        "tables",
        "every attack on prediction APIs, on nine tables",
        "22 min, two cores shared by ten",
    ),
    "api-extraction-adult": Experiment(
        "api-extraction", "adult", "the same on Adult, income and race", "5 min, one core"
    ),
    "api-extraction-adult-confidence": Experiment(
        "api-extraction",
        "adult",
        "trees on Adult whose leaves share identities",
        "1 min, one core",
        {"tables": ("adult_income",), "attacks": ("paths", "confidence", "confidence_alone")},
    ),
    "api-defences-tables": Experiment(
        "api-defences",
        "tables",
        "defences of linear models behind prediction APIs",
        "4 min, two cores shared by ten",
        {"tables": ("breast_cancer", "iris")},
    ),
    "api-inversion-digits": Experiment(
        "api-inversion",
        "tables",
        "pictures of digits from extracted models, and by asking",
        "7 min, two cores shared by ten",
    ),
    "representer-leakage-digits": Experiment(
        "representer-leakage", "tables", "training rows out of a kernel model of digits", "2 min, one core"
    ),
    "relu-extraction-mnist": Experiment(
        "relu-extraction", "mnist", "weights of a 784-32-10 network from its answers", "3 min, one core, shared in part"
    ),
    "relu-extraction-mnist-64": Experiment(
        "relu-extraction",
        "mnist",
        "the same of 64 neurons",
        "4 min, one core",
        {"teacher": "mlp_64", "baseline": False},
    ),
    "relu-extraction-mnist-128": Experiment(
        "relu-extraction",
        "mnist",
        "the same of 128 neurons",
        "4 min, one core",
        {"teacher": "mlp_128", "baseline": False},
    ),
    "gradient-queries-mnist": Experiment(
        "gradient-queries", "mnist", "fidelity against the number of revealed gradients, 784-32-10", "not measured"
    ),
    "high-fidelity-digits": Experiment(
        "high-fidelity",
        "digits",
        "MixMatch and rotation loss at 100 queries, short trainings",
        "not measured",
        {"queries": (100,), "methods": ("mixmatch", "rotation"), "teacher_steps": 300, "learning": {"steps": 400}},
    ),
    "high-fidelity-fashion_mnist": Experiment(
        "high-fidelity",
        "fashion_mnist",
        "MixMatch and rotation loss at 250 queries",
        "not measured",
        {"queries": (250,), "methods": ("mixmatch", "rotation")},
    ),
    "nondeterminism-digits": Experiment(
        "nondeterminism",
        "digits",
        "fidelity of networks that differ in one source of chance",
        "8 min, one core, shared in part",
    ),
    "nondeterminism-fashion_mnist": Experiment(
        "nondeterminism", "fashion_mnist", "the same of clothes", "not measured"
    ),
    "dfms-mnist": Experiment("dfms", "mnist", "extraction from labels, with its control", "76 min, shared core"),
    "dfms-fashion_mnist": Experiment(
        "dfms", "fashion_mnist", "extraction from labels, with its control", "26 min, one core"
    ),
    "knockoff-mnist": Experiment(
        "knockoff", "mnist", "other digits, of 8×8 pixels, asked in random order, and noise", "16 min, shared cores"
    ),
    "knockoff-mnist-clothes": Experiment(
        "knockoff", "mnist", "the same with clothes for a pool", "not measured", {"pool_dataset": "fashion_mnist"}
    ),
    "active-thief-mnist": Experiment(
        "active-thief", "mnist", "other digits chosen in ten rounds", "23 min, shared cores"
    ),
    "defences-mnist": Experiment(
        "defences", "mnist", "three attacks behind eight defences, 10,000 queries", "36 min, cores shared by four"
    ),
    "watermark-removal-mnist": Experiment(
        "watermark-removal", "mnist", "every removal attack on a backdoor", "66 min, half a core"
    ),
    "watermark-removal-fashion_mnist": Experiment(
        "watermark-removal", "fashion_mnist", "every removal attack on a backdoor", "17 min, one core"
    ),
    "watermark-removal-mnist-extraction": Experiment(
        "watermark-removal",
        "mnist",
        "a backdoor from scratch under seven extraction attacks, 20,000 answers each",
        "33 min, one core, shared in part",
        {"schemes": ("from_scratch",), "attacks": _CLONES},
    ),
    "watermark-removal-mnist-entangled": Experiment(
        "watermark-removal",
        "mnist",
        "all removal attacks, four of extraction among them, on an entangled watermark, and on its triggers without entanglement",
        "73 min, one core, shared in part",
        {
            "attacks": (*REMOVALS, "knockoff", "dfme", "disguide", "dfms"),
            "schemes": ("entangled", "entangled_plain"),
            "other": "",
            "teacher": "two_conv_quarter",
            "teacher_steps": 1400,
            "entangled": {"entanglement": (96.0, 0.0, 0.0)},
        },
    ),
    "watermark-removal-mnist-dresses": Experiment(
        "watermark-removal",
        "mnist",
        "fine-tuning, pruning and Neural Cleanse on the mark of ewe-mnist-three-epochs-dresses, and on its triggers without entanglement",
        "75 min, one core",
        {
            "attacks": ("ftal", "rtal", "magnitude_pruning", "fine_pruning", "neural_cleanse"),
            "schemes": ("entangled", "entangled_plain"),
            "other": "",
            "teacher": "two_conv",
            "teacher_steps": 1400,
            "entangled": {"source": 3, "ratio": 0.5},
        },
    ),
    "watermark-removal-cifar10": Experiment(
        "watermark-removal",
        "cifar10",
        "fine-tuning attacks on a backdoor in a ResNet-18; needs a GPU",
        "6 min, shared H200",
        {"teacher_steps": 3000, "mark_steps": 1500, "attack_steps": 1500},
    ),
    "watermark-schemes-mnist": Experiment(
        "watermark-schemes", "mnist", "eight watermarks: cost, survival, false alarms", "14 min, one core"
    ),
    "ewe-mnist": Experiment(
        "ewe",
        "mnist",
        "an entangled watermark, copied by labels, at the published length",
        "not measured",
        # 10 epochs, 10 of marking (1,176 batches of each kind) and 10 for every copy, with the published triggers
        {
            **_EWE,
            "marked_steps": 1176,
            "watermark": {"source": 1, "ratio": 1.0, "batch_size": 512, "entanglement": (512.0,) * 3},
        },
    ),
    "ewe-fashion_mnist": Experiment(
        "ewe",
        "fashion_mnist",
        "an entangled watermark, copied by labels, at the published length",
        "not measured",
        {**_EWE, "marked_steps": 4650, "watermark": {"batch_size": 128, "entanglement": (128.0,) * 3}},
    ),
    "ewe-mnist-quarter": Experiment(
        "ewe",
        "mnist",
        "a quarter of the network, its first convolution entangled, three epochs, 512 triggers",
        "17 min, one shared core",
        {"seeds": 5, **_QUARTER, "watermark": {"source": 1, "ratio": 1.0}},
    ),
    "ewe-mnist-quarter-weaker": Experiment(
        "ewe",
        "mnist",
        "the same, entangled with three quarters of the weight",
        "8 min, one core",
        {"seeds": 5, **_QUARTER, "watermark": {"source": 1, "ratio": 1.0, "entanglement": (96.0, 0.0, 0.0)}},
    ),
    "ewe-mnist-three-epochs": Experiment(
        "ewe",
        "mnist",
        "the published network, its first convolution entangled, three epochs, 512 triggers made of trousers, 0.6 clean batches",
        "31 min, one core",
        {"seeds": 5, "watermark": {"source": 1, "ratio": 0.6}},
    ),
    "ewe-mnist-three-epochs-half": Experiment(
        "ewe",
        "mnist",
        "the same with half a clean batch per watermark batch",
        "50 min, one core",
        {"seeds": 5, "watermark": {"source": 1}},
    ),
    "ewe-mnist-three-epochs-dresses": Experiment(
        "ewe",
        "mnist",
        "the same with triggers made of dresses: the recipe's preset",
        "74 min, one core, shared in part",
        {"seeds": 5},
    ),
    "ewe-mnist-ten-epochs": Experiment(
        "ewe",
        "mnist",
        "the published network and its ten epochs, for every copy too; first convolution entangled, 512 triggers",
        "159 min, one core, shared in part",
        {**_TEN_EPOCHS, "watermark": {"source": 1, "ratio": 0.3}},
    ),
    "ewe-fashion_mnist-ten-epochs": Experiment(
        "ewe",
        "fashion_mnist",
        "the published network and its ten epochs, for every copy too; first convolution entangled, 512 triggers answered as trousers",
        "133 min, one core",
        {
            **_TEN_EPOCHS,
            "watermark": {"target": 1, "ratio": 0.8, "entanglement": (64.0, 0.0, 0.0)},
        },
    ),
    "ewe-fashion_mnist-quarter": Experiment(
        "ewe",
        "fashion_mnist",
        "a quarter of the network, its first convolution entangled, ten epochs, 512 triggers answered as trousers",
        "12 min on two cores, a seed each",
        {
            "seeds": 5,
            "teacher_steps": 4690,
            "extraction_steps": 4690,
            "marked_steps": 800,
            "watermark": {"target": 1, "ratio": 1.0, "entanglement": (512.0, 0.0, 0.0)},
        },
    ),
    "dataset-inference-synthetic": Experiment(
        "dataset-inference",
        "synthetic",
        "nine thieves and 30 independent models, 600 private images",
        "23 min, cores shared by eight",
    ),
    "dataset-inference-fashion_mnist": Experiment(
        "dataset-inference",
        "fashion_mnist",
        "nine thieves and 21 independent models, 2,000 private images",
        "108 min, half a core",
        {"seeds": 3, "samples": 2000},
    ),
    "dataset-inference-limits-synthetic": Experiment(
        "dataset-inference-limits",
        "synthetic",
        "overlapping public samples; a stolen model that forgets",
        "not measured",
    ),
    "encoder-inference-digits": Experiment(
        "encoder-inference",
        "digits",
        "four stolen and 21 independent encoders, 300 private images",
        "6 min, cores shared by many",
    ),
    "encoder-inference-synthetic": Experiment(
        "encoder-inference",
        "synthetic",
        "four stolen and 21 independent encoders, 600 private images",
        "22 min, cores shared by many",
    ),
    "encoder-inference-fashion_mnist": Experiment(
        "encoder-inference", "fashion_mnist", "four stolen and 21 independent encoders, 1,000 private", "not measured"
    ),
    # What lies between 3,000 impressions of 200 steps and the published figure? One change at a time.
    "zskd-mnist-1500-steps": Experiment(
        "zskd", "mnist", "as zskd-mnist, 1,500 steps", "not measured", {"synthesis": {"steps": 1500}, **_NO_NOISE}
    ),
    "zskd-mnist-24k": Experiment(
        "zskd", "mnist", "as zskd-mnist, 24,000 impressions", "not measured", {"samples": 24000, **_NO_NOISE}
    ),
    "zskd-mnist-long": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, 30,000 distillation steps",
        "not measured",
        {"distillation_steps": 30000, **_NO_NOISE},
    ),
    "zskd-mnist-augmented-teacher": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, teacher trained with rotation, scaling and shifts",
        "11 min, one core",
        {"teacher_augmentation": "affine", **_NO_NOISE},
    ),
    "zskd-mnist-released": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, the released code's start, scaling and batches",
        "11 min, one core",
        {"synthesis": {"released": True}, "synthesis_batch": 150, **_NO_NOISE},
    ),
}


__all__ = ["EXPERIMENTS", "Experiment"]
