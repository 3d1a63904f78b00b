"""Watermark removal: what is left of a mark, and of the network, after every attack."""

from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DIGITS
from dfke_jax.experiments.watermarks.entangled import FASHION_ENTANGLED, SMALL_ENTANGLED
from dfke_jax.experiments.watermarks.removal_attacks import Victim, enter, figures_of, prepare, stands
from dfke_jax.experiments.watermarks.removal_extractions import EXTRACTIONS
from dfke_jax.experiments.watermarks.removal_marks import SCHEMES
from dfke_jax.experiments.watermarks.removal_settings import RemovalSettings
from dfke_jax.experiments.watermarks.removal_views import MATRIX, STRENGTH
from dfke_jax.watermarking.removal import CleanseSettings, Removed
from dfke_jax.watermarking.triggers import TriggerSet


def arms(config: RemovalSettings) -> list[Arm]:
    """The unmarked networks, every mark, and every attack on it; of clones also those of the network without a mark."""
    made = [
        Arm("teacher", f"Teacher ({config.teacher})", "teacher"),
        Arm("control", "The network without a mark", "control"),
        Arm("independent", "Another network, trained independently", "anchor"),
    ]
    for name in config.schemes:
        if SCHEMES[name].control is not None:
            label = f"{SCHEMES[name].label}: the same training without triggers"
            made.append(Arm(f"{name}_control", label, "control"))
    for name in config.schemes:
        label = SCHEMES[name].label
        budget = SCHEMES[name].budget(config)
        made.append(Arm(name, label, "method", budget=budget, factors={"mark": label, "attack": "none"}))
        for attack in config.made:
            place = {"mark": label, "attack": attack.replace("_", " ")}
            if attack in EXTRACTIONS:
                made.append(Arm(f"{name}.{attack}", label, "method", factors=place))
                made.append(Arm(f"{name}.{attack}_control", f"No mark ({label})", "control", factors=place))
            else:
                made.append(Arm(f"{name}.{attack}", label, "method", control=f"{name}_control", factors=place))
    return made


def measure(run: Run[RemovalSettings]) -> None:
    """Marks networks, attacks each of them, and looks at what is left."""
    config = run.config
    run.record("teacher", run.teacher, budget=run.bench.supervised_budget)
    marks = {name: SCHEMES[name].mark(run) for name in config.schemes}
    _measure_unmarked(run, marks[config.schemes[0]][1])
    for name, (network, triggers) in marks.items():
        unattacked = Removed(network, network, "none", SCHEMES[name].label)
        enter(run, name, figures_of(run, unattacked, stands(run, unattacked, triggers), run.teacher))
        victim = Victim(run, name, network, triggers)
        for attack in config.made:
            for arm, figures in victim.figures(attack).items():
                enter(run, arm, figures)
    if "transfer_learning" in config.made:
        run.note(
            f"After transfer learning to {config.other} accuracy is measured behind the marked network's own output layer; "
            "other_accuracy is that of the new network on its task."
        )
    run.note(
        f"Networks without a mark are asked the triggers of {config.schemes[0]}; schemes of another kind have others.",
        "Trigger accuracy after rtll, rtal and transfer_learning is measured behind the marked network's own output layer.",
    )


def _measure_unmarked(run: Run[RemovalSettings], triggers: TriggerSet) -> None:
    """Networks that were never marked, asked the triggers of the first mark."""
    config, budget = run.config, run.bench.supervised_budget
    networks = [("control", run.teacher, budget), ("independent", run.bench.teacher(run.seed + 1), budget)]
    for name in config.schemes:
        if (control := SCHEMES[name].control) is not None:
            longer = {**budget, "training_steps": SCHEMES[name].budget(config)["training_steps"]}
            networks.append((f"{name}_control", control(run), longer))
    for name, network, used in networks:
        plain = Removed(network, network, name, "")
        found = figures_of(run, plain, stands(run, plain, triggers), run.teacher)
        enter(run, name, {**found, "budget": used})


_QUICK = {
    "seeds": 5,
    "companions_per_batch": 10,  # in these few steps two are not enough to learn a hundred triggers
    "teacher_steps": 2000,
    "mark_steps": 1000,
    "attack_steps": 600,
    "retraining_steps": 1500,
    "cleanse": CleanseSettings(rounds=60),
}

_CIFAR10 = {
    "seeds": 1,
    "teacher": "resnet18",
    "teacher_steps": 6000,
    "teacher_batch": 256,
    "teacher_learning_rate": 1e-3,
    "teacher_augmentation": "crop_flip",
    "companions_per_batch": 5,
    "precision": "bfloat16",
    "attacks": ("ftll", "ftal", "rtll", "rtal"),
    "mark_steps": 2000,
    "attack_steps": 2000,
}
"""For a GPU: the published network and the attacks of its paper; 30 epochs, where the paper trains 60."""

register(
    Recipe(
        name="watermark-removal",
        title="Removal of backdoor watermarks",
        summary="Marks a network by trigger images from scratch and after training, or by entangled ones, and makes every removal attack on it: "
        "clean accuracy and trigger accuracy before and after, and against the strength of the attack.",
        paper="Adi et al.: Turning Your Weakness Into a Strength, USENIX Security 2018; Lukas et al.: SoK: How Robust is "
        "Image Classification Deep Neural Network Watermarking?, IEEE S&P 2022",
        config=RemovalSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        presets={
            "digits": {
                **DIGITS,
                "triggers": 30,
                "companions_per_batch": 8,
                "mark_steps": 400,
                "attack_steps": 300,
                "retraining_steps": 600,
                "cleanse": CleanseSettings(rounds=40),
                "entangled": SMALL_ENTANGLED,
                "entangled_triggers": 128,
                "entangled_steps": 150,
            },
            "mnist": {"other": "fashion_mnist", "unrelated": "fashion_mnist", **_QUICK},
            # trained and marked for as long as it takes to survive FTAL; chosen on held-back images, see docs/removal.md
            "fashion_mnist": {
                "other": "mnist",
                "unrelated": "mnist",
                "entangled": FASHION_ENTANGLED,
                **_QUICK,
                "teacher_steps": 4000,
                "mark_steps": 2000,
            },
            "cifar10": _CIFAR10,
        },
        views=(MATRIX, STRENGTH),
    )
)

__all__ = ["RemovalSettings", "arms", "measure", "prepare"]
