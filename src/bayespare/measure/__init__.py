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

__all__ = [
    "ClassPrediction",
    "Prediction",
    "RealPrediction",
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
    "wilson_interval",
]
