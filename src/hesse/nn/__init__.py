"""Modules made of functions, functions made of modules, models, layers, losses, optimizers."""

from hesse.nn import layers, losses, models
from hesse.nn.auto_criterion import AutoCriterion
from hesse.nn.auto_module import AutoModule
from hesse.nn.functionalize import functionalize
from hesse.nn.optimizer import OptimStep, optim
from hesse.nn.receptive_field import ReceptiveFieldConv1d, ReceptiveFieldConv2d, ReceptiveFieldConv3d

__all__ = [
    "AutoCriterion",
    "AutoModule",
    "OptimStep",
    "ReceptiveFieldConv1d",
    "ReceptiveFieldConv2d",
    "ReceptiveFieldConv3d",
    "functionalize",
    "layers",
    "losses",
    "models",
    "optim",
]
