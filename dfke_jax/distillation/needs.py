"""What each white-box method reads of its teacher."""

from collections.abc import Mapping

from dfke_jax.nn.whitebox import Need, WhiteBox, check_shows

NEEDS: Mapping[str, tuple[Need, ...]] = {
    "knowledge_distillation": ("logits",),
    "class_impressions": ("logits",),
    "dfad": ("logits",),
    "deep_inversion(statistics=0)": ("logits",),
    "zskt(attention=0)": ("logits",),
    "data_impressions": ("logits", "head"),
    "dafl": ("logits", "features"),
    "degan": ("logits",),
    "gan_sampling": ("logits",),
    "rdskd": ("logits",),
    "dfka": ("logits", "features"),
    "dfnd": ("logits",),
    "hint_training": ("logits", "activations"),
    "attention_distillation": ("logits", "activations"),
    "relation_distillation": ("logits", "features"),
    "zskt": ("logits", "activations"),
    "record_activations": ("logits", "activations"),
    "from_records": ("logits", "activations"),
    "deep_inversion": ("logits", "moments"),
    "adaptive_deep_inversion": ("logits", "moments"),
    "knowledge_within": ("logits", "moments"),
    "statistics_generators": ("logits", "moments"),
    "statistics_generators(statistics=0)": ("logits",),
    "dfq": ("logits", "moments"),
    "dfq(statistics=0)": ("logits",),
    "cmi": ("logits", "moments", "activations"),
    "cmi(statistics=0)": ("logits", "activations"),
    "fast_dfkd": ("logits", "moments"),
    "fast_dfkd(statistics=0)": ("logits",),
    "nayer": ("logits", "moments"),
    "nayer(statistics=0)": ("logits",),
}
"""Method -> what it needs, see `dfke_jax.nn.whitebox.WORDS`."""


def named(method: str, statistics: float) -> str:
    """How `NEEDS` calls a method whose statistics prior has this weight."""
    return method if statistics else f"{method}(statistics=0)"


def check_teacher(teacher: WhiteBox, method: str) -> None:
    """Raises `InputError` where a teacher lacks what a method of `NEEDS` reads; the message names
    methods that work.
    """
    check_shows(teacher, method, NEEDS[method], NEEDS)


__all__ = ["NEEDS", "check_teacher", "named"]
