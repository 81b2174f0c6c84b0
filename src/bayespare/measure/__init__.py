"""What a model predicts, how good that is, and what it costs to run."""

from bayespare.measure.latency import latency, load_average
from bayespare.measure.memory import peak_memory
from bayespare.measure.metrics import (
    brier,
    coverage,
    ece,
    ece_chance,
    ece_mass,
    evaluate,
    gaussian_nll,
    nll,
    paired_difference,
    reliability,
    rmse,
    wilson_interval,
)
from bayespare.measure.predictions import ClassPrediction, Prediction, RealPrediction, predict
from bayespare.measure.temperature import best_temperature, scaled_log_probs

__all__ = [
    "ClassPrediction",
    "Prediction",
    "RealPrediction",
    "best_temperature",
    "brier",
    "coverage",
    "ece",
    "ece_chance",
    "ece_mass",
    "evaluate",
    "gaussian_nll",
    "latency",
    "load_average",
    "nll",
    "paired_difference",
    "peak_memory",
    "predict",
    "reliability",
    "rmse",
    "scaled_log_probs",
    "wilson_interval",
]
