"""Dataset inference: was a model made from my data?"""

from dfke_jax.dataset_inference.blind_walk import FAMILIES, BlindWalkSettings, Walks, blind_walk
from dfke_jax.dataset_inference.case import Case, InferenceSettings, prepare
from dfke_jax.dataset_inference.density import (
    Density,
    DensitySettings,
    fit_density,
    representations,
)
from dfke_jax.dataset_inference.encoders import (
    EncoderCase,
    EncoderVerdict,
    encoder_inference,
    judge_encoder,
    prepare_encoders,
)
from dfke_jax.dataset_inference.judgement import Judgement
from dfke_jax.dataset_inference.mingd import (
    NORMS,
    Margins,
    MinGDSettings,
    gradient_evaluations,
    mingd,
)
from dfke_jax.dataset_inference.regressor import (
    RELEASED,
    ConfidenceRegressor,
    RegressorSettings,
    all_held_out_scores,
    features,
    fit_regressor,
    held_out_scores,
    saturation,
)
from dfke_jax.dataset_inference.samples import overlap
from dfke_jax.dataset_inference.statistics import (
    SampleCurve,
    WelchTest,
    calibrate,
    conformal_p_value,
    holm,
    p_value_curve,
    permutation_test,
    released_harmonic_mean,
    twice_the_median,
    two_sided,
    welch_test,
)
from dfke_jax.dataset_inference.theory import (
    LinearRates,
    LinearSetting,
    approximate_rates,
    exact_rates,
    simulate,
)
from dfke_jax.dataset_inference.verdict import Verdict, dataset_inference, judge

__all__ = [
    "FAMILIES",
    "NORMS",
    "RELEASED",
    "BlindWalkSettings",
    "Case",
    "ConfidenceRegressor",
    "Density",
    "DensitySettings",
    "EncoderCase",
    "EncoderVerdict",
    "InferenceSettings",
    "Judgement",
    "LinearRates",
    "LinearSetting",
    "Margins",
    "MinGDSettings",
    "RegressorSettings",
    "SampleCurve",
    "Verdict",
    "Walks",
    "WelchTest",
    "all_held_out_scores",
    "approximate_rates",
    "blind_walk",
    "calibrate",
    "conformal_p_value",
    "dataset_inference",
    "encoder_inference",
    "exact_rates",
    "features",
    "fit_density",
    "fit_regressor",
    "gradient_evaluations",
    "held_out_scores",
    "holm",
    "judge",
    "judge_encoder",
    "mingd",
    "overlap",
    "p_value_curve",
    "permutation_test",
    "prepare",
    "prepare_encoders",
    "released_harmonic_mean",
    "representations",
    "saturation",
    "simulate",
    "twice_the_median",
    "two_sided",
    "welch_test",
]
