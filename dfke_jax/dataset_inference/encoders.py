"""Dataset inference for encoders without labels: are private images likelier than public ones under
their own density?
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.dataset_inference.case import check_null, compare
from dfke_jax.dataset_inference.density import DensitySettings, fit_density, representations
from dfke_jax.dataset_inference.judgement import Decision, Judgement, decide, looked_at
from dfke_jax.dataset_inference.samples import checked_images, overlap
from dfke_jax.dataset_inference.statistics import WelchTest, p_value_curve, two_sided


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderVerdict(Judgement):
    """What can be said about a suspected encoder.

    Attributes:
      test: its effect is the mean log-likelihood of private minus public rows, nats a dimension.
      curve: Welch p-value, one-sided whatever the alternative, against the number of tested images
        of each kind; those that fit the density come on top.
      fitted: private images that fitted the suspect's density.
      queries: representations that the suspect was asked for, one an image.
      dimensions: principal components that its density has.
      converged: whether the fit of its mixture did.

    All others are those of `Judgement`.
    """

    fitted: int
    dimensions: int
    converged: bool

    @property
    def effort(self) -> str:
        """Images fitted and tested, queries."""
        return (
            f" nats a dimension, {self.fitted} private images fitted, {self.tested[0]} private and "
            f"{self.tested[1]} public ones tested, {self.queries} queries"
        )


class Likelihoods(NamedTuple):
    """An encoder on a case's images.

    Attributes:
      private, public: (m,) and (n,), minus the log-likelihood of each tested row, nats a dimension:
        large for what looks public, which is the direction of
        `dfke_jax.dataset_inference.statistics`.
      dimensions, converged: of its density.
    """

    private: np.ndarray
    public: np.ndarray
    dimensions: int
    converged: bool


class EncoderImages(NamedTuple):
    """What an encoder is shown, each (N, H, W, C): private images that fit its density, other
    private ones, public ones.
    """

    fitting: np.ndarray
    private: np.ndarray
    public: np.ndarray


class EncoderCase(NamedTuple):
    """All that does not depend on the suspect (`judge_encoder`).

    Attributes:
      settings: as given.
      images: what a suspect is shown.
      control: Welch test of the victim itself.
      null: Welch tests of the independent encoders.
    """

    settings: DensitySettings
    images: EncoderImages
    control: WelchTest
    null: tuple[WelchTest, ...]


def prepare_encoders(
    victim_private: Any,
    victim_public: Any,
    *,
    victim: Callable,
    independents: Sequence[Callable] = (),
    settings: DensitySettings | None = None,
    box: tuple[float, float] = (0.0, 1.0),
) -> EncoderCase:
    """Splits the private images, and puts victim and independent encoders to the test.

    Arguments and errors are those of `encoder_inference`.
    """
    settings = settings or DensitySettings()
    private, public = (
        checked_images(victim_private, "private", box),
        checked_images(victim_public, "public", box),
    )
    if private.shape[1:] != public.shape[1:]:
        raise InputError(
            f"private and public images differ in shape: {private.shape} and {public.shape}"
        )
    order = np.random.default_rng(settings.seed).permutation(len(private))
    fitting, tested = np.split(private[order], [round(settings.fit * len(private))])
    fewest = max(settings.minimum, settings.components)
    if len(fitting) < fewest or min(len(tested), len(public)) < settings.minimum:
        raise InputError(
            f"{len(private)} private images leave {len(fitting)} to fit a density of "
            f"{settings.components} components with and {len(tested)} to test, against "
            f"{len(public)} public ones; at least {fewest}, {settings.minimum} and "
            f"{settings.minimum} are needed"
        )
    if common := overlap(private, public, box):
        raise InputError(
            f"{len(common)} public images are private ones too (first: private {common[0][0]} = "
            f"public {common[0][1]}); public images must be unknown to the victim"
        )
    if common := overlap(fitting, tested, box):
        raise InputError(
            f"{len(common)} private images occur more than once, and would both fit the density "
            "and be tested under it; give every image once"
        )
    check_null(len(independents), settings.level)
    images = EncoderImages(fitting, tested, public)
    control, *null = (
        compare(*likelihoods(images, encoder, settings)[:2]) for encoder in (victim, *independents)
    )
    return EncoderCase(settings, images, control, tuple(null))


def likelihoods(
    images: EncoderImages, encoder: Callable, settings: DensitySettings, *, host: bool | None = None
) -> Likelihoods:
    """Fits the density of an encoder's representations of the fitting images, and scores the others
    under it.

    Raises:
      InputError: representations that are not (N, D), contain NaN, or are all the same.
    """
    found = representations(encoder, np.concatenate(images), host=host)
    fitting, private, public = np.split(found, np.cumsum([len(part) for part in images])[:-1])
    density = fit_density(fitting, settings)
    return Likelihoods(-density(private), -density(public), density.dimensions, density.converged)


def judge_encoder(
    case: EncoderCase, suspect: Callable, *, host: bool | None = None
) -> EncoderVerdict:
    """The verdict on one suspect; arguments are those of `encoder_inference`."""
    return judge_likelihoods(case, likelihoods(case.images, suspect, case.settings, host=host))


def judge_likelihoods(case: EncoderCase, found: Likelihoods) -> EncoderVerdict:
    """`judge_encoder` for a suspect whose likelihoods are known already."""
    settings = case.settings
    decision = decide(
        found.private,
        found.public,
        case.null,
        settings.level,
        settings.permutations,
        settings.seed,
        either=settings.alternative == "either",
    )
    p_value = decision.p_values[decision.decided_by]
    control = two_sided(case.control) if settings.alternative == "either" else case.control.p_value
    return EncoderVerdict(
        stolen=bool(p_value < settings.level and control < settings.alpha),
        p_value=p_value,
        alpha=settings.alpha,
        looks=settings.looks,
        control=control,
        curve=p_value_curve(found.private, found.public, alpha=settings.level, seed=settings.seed),
        fitted=len(case.images.fitting),
        tested=(len(case.images.private), len(case.images.public)),
        queries=sum(map(len, case.images)),
        dimensions=found.dimensions,
        converged=found.converged,
        assumptions=_assumptions(bool(case.null), settings.looks),
        notes=_notes(case, control, found.converged, decision),
        **decision._asdict(),
    )


def encoder_inference(
    victim_private: Any,
    victim_public: Any,
    suspect: Callable,
    *,
    victim: Callable,
    independents: Sequence[Callable] = (),
    settings: DensitySettings | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    host: bool | None = None,
) -> EncoderVerdict:
    """Tests whether a suspected encoder was made from the victim's private images; no labels are
    needed.

    Training may lead an encoder to put the images it was trained on closer together than others of
    the same kind. For each encoder by itself a density is fitted to its representations of one part
    of the private images, and the log-likelihood of each image of *another* part and of each public
    image is taken under it.

    Null hypothesis: under the suspect, the mean log-likelihood of private images that had no part
    in the fit is not larger than that of public images (with ``alternative="either"``: is the
    same). Statistic: Welch's t of the two means. The test takes private and public images to be
    equally likely to an innocent encoder, which two given sets never are exactly; with
    `independents` the suspect's t is ranked among theirs instead, and the null hypothesis is that
    it is exchangeable with them.

    Args:
      victim_private: images (N, H, W, C) that the victim was trained on, each once.
      victim_public: images of the same distribution that neither it nor an independent encoder has
        seen.
      suspect: a `Classifier`, whose `features` are taken; any traceable function images -> (N, D);
        or with `host` any function of NumPy rows. D may differ from encoder to encoder.
      victim: the victim, in the same ways but on this machine.
      independents: at least 20 encoders trained in the victim's way on data disjoint from both
        sets.
      settings: see `DensitySettings`.
      box: lowest and highest pixel value.
      host: the suspect answers on the host.

    Returns:
      An `EncoderVerdict`.

    Raises:
      InputError: private and public images that overlap, private images that occur twice, other
        shapes, too few to fit or to test, 1 to 19 independent encoders or too few for alpha;
        representations that are not (N, D), contain NaN or do not vary.

    Source: Dziedzic, Duan, Kaleem, Dhawan, Guan, Cattan, Boenisch, Papernot, Dataset Inference for
    Self-Supervised Models, NeurIPS 2022. Deviations: Welch's test, one-sided by construction (the
    released code halves the p-value of a two-sided test of equal variances, which is small too
    where public images are the likelier ones); the ranks of independent encoders of the *same*
    distribution decide, where the paper's independent encoders learnt other data sets;
    log-likelihoods are per dimension and of whitened principal components; images are represented
    as they are, not randomly cropped.
    """
    case = prepare_encoders(
        victim_private,
        victim_public,
        victim=victim,
        independents=independents,
        settings=settings,
        box=box,
    )
    return judge_encoder(case, suspect, host=host)


def _assumptions(conformal: bool, looks: int) -> tuple[str, ...]:
    return (
        "private and public images come from one distribution; only the private ones reached the "
        "victim's training",
        "the suspect's maker did not have the public images, nor others that overlap with the "
        "private ones, by right",
        "the split and the seed were fixed before anybody looked at results",
        looked_at(looks),
        "no tested image fitted the density; every image counts once",
        "the independent encoders are what an innocent suspect would be: same kind of data and "
        "recipe, none of these images"
        if conformal
        else "private and public images are equally likely to an innocent encoder (not calibrated)",
    )


def _notes(
    case: EncoderCase, control: float, converged: bool, decision: Decision
) -> tuple[str, ...]:
    settings = case.settings
    alpha, accused, notes = settings.alpha, decision.accused_independents, []
    if control >= alpha:
        notes.append(
            f"the victim itself is not recognised (p = {control:.3g}): the test has no power here, "
            "so nothing follows"
        )
    if case.control.effect < 0 and control >= alpha > two_sided(case.control):
        notes.append(
            "to the victim its private images are less likely than public ones: training drove "
            "them apart, which only alternative='either' counts"
        )
    if not converged:
        notes.append(
            f"the mixture's fit did not converge in {settings.iterations} iterations: allow it more"
        )
    if accused is None:
        notes.append(
            "no independent encoders: the false-alarm rate is nominal; at least 20 of them "
            "calibrate it"
        )
    elif accused[0] > 2 * settings.level * accused[1] + 1:
        notes.append(
            f"the Welch test accuses {accused[0]} of {accused[1]} independent encoders: only the "
            "conformal p-value counts"
        )
    return tuple(notes)


__all__ = [
    "EncoderCase",
    "EncoderImages",
    "EncoderVerdict",
    "Likelihoods",
    "encoder_inference",
    "judge_encoder",
    "judge_likelihoods",
    "likelihoods",
    "prepare_encoders",
]
