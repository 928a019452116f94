"""Measures of samples against data: distances, the features in which images are compared, and the report on both."""

from ornstein.metrics.distances import (
    PrecisionRecall,
    correlation_error,
    energy_distance,
    frechet_distance,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)
from ornstein.metrics.evaluation import evaluate
from ornstein.metrics.features import FeatureNet, LeNet, load_features, pixels, save_features
from ornstein.metrics.report import Measure, Report
from ornstein.metrics.tables import ColumnDistances, column_distances
from ornstein.metrics.text import evaluate_codes, evaluate_text

__all__ = [
    "ColumnDistances",
    "FeatureNet",
    "LeNet",
    "Measure",
    "PrecisionRecall",
    "Report",
    "column_distances",
    "correlation_error",
    "energy_distance",
    "evaluate",
    "evaluate_codes",
    "evaluate_text",
    "frechet_distance",
    "load_features",
    "nearest_distances",
    "pixels",
    "precision_recall",
    "save_features",
    "sliced_wasserstein",
]
