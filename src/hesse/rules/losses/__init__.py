"""Loss rules, one small file for each family. Importing this package registers them."""

from hesse.rules.losses import binary, classes, counts, distances, divergence, gaussian
from hesse.rules.losses.curvature import OutputCurvature, Pointwise, Softmax
from hesse.rules.losses.draws import Uniform
from hesse.rules.losses.gaussian import GaussianNLL
from hesse.rules.losses.known import LossRule, Mass, SampleLoss, known_loss, loss_rules
from hesse.rules.losses.pairs import Pairs

__all__ = [
    "GaussianNLL",
    "LossRule",
    "Mass",
    "OutputCurvature",
    "Pairs",
    "Pointwise",
    "SampleLoss",
    "Softmax",
    "Uniform",
    "binary",
    "classes",
    "counts",
    "distances",
    "divergence",
    "gaussian",
    "known_loss",
    "loss_rules",
]
