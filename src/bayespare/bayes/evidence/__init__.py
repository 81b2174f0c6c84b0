"""Evidence in closed form: the change of log evidence when weights or units leave the model.

Everything is in nats and follows one sign: ``delta_f > 0`` means that the smaller model has the
higher evidence. Log posterior odds of belonging in the model are ``prior log odds - delta_f``.

Source: Friston and Penny 2011; Friston, Parr and Zeidman 2018; Markovic, Friston and Kiebel,
arXiv 2309.12095.
"""

from bayespare.bayes.evidence.elementwise import (
    curvature_delta_f,
    delta_f,
    quadratic_cost,
    reduced_posterior,
    tempered,
)
from bayespare.bayes.evidence.joint import (
    Reduction,
    Survivors,
    joint_delta_f,
    reduce_gaussian,
    spike_delta_f,
    survivors,
    tempered_gaussian,
)
from bayespare.bayes.evidence.kronecker import (
    KroneckerPosterior,
    MatrixNormal,
    conditional_row_cost,
)
from bayespare.bayes.evidence.low_rank import LowRankCovariance, LowRankPrecision
from bayespare.bayes.evidence.normal_gamma import NormalGamma
from bayespare.bayes.evidence.odds import OddsRule, keeps, log_odds, prior_log_odds
from bayespare.bayes.evidence.shrink import Shrink, best_group_shrink, best_shrink
from bayespare.bayes.evidence.units import (
    Block,
    BlockDisagreement,
    block_delta_f,
    block_disagreement,
    unit_delta_f,
)

__all__ = [
    "Block",
    "BlockDisagreement",
    "KroneckerPosterior",
    "LowRankCovariance",
    "LowRankPrecision",
    "MatrixNormal",
    "NormalGamma",
    "OddsRule",
    "Reduction",
    "Shrink",
    "Survivors",
    "best_group_shrink",
    "best_shrink",
    "block_delta_f",
    "block_disagreement",
    "conditional_row_cost",
    "curvature_delta_f",
    "delta_f",
    "joint_delta_f",
    "keeps",
    "log_odds",
    "prior_log_odds",
    "quadratic_cost",
    "reduce_gaussian",
    "reduced_posterior",
    "spike_delta_f",
    "survivors",
    "tempered",
    "tempered_gaussian",
    "unit_delta_f",
]
