"""Loss rules, one small file for each family. Importing this package registers them."""

from hesse.rules.losses import classes, pointwise
from hesse.rules.losses.known import LossRule, SampleLoss, known_loss, loss_rules

__all__ = ["LossRule", "SampleLoss", "classes", "known_loss", "loss_rules", "pointwise"]
