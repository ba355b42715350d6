"""Models as pure functions: each constructor returns ``(f, params)``."""

from hesse.nn.models.alexnet import AlexNet
from hesse.nn.models.fast_weights import RecurrentFWNetwork
from hesse.nn.models.gru import RecurrentGRUNetwork
from hesse.nn.models.lstm import RecurrentLSTMNetwork
from hesse.nn.models.neural_network import NeuralNetwork
from hesse.nn.models.part import Part
from hesse.nn.models.recurrent import RecurrentNetwork
from hesse.nn.models.sequence import sequence
from hesse.nn.models.spatial_network import SpatialNetwork

__all__ = [
    "AlexNet",
    "NeuralNetwork",
    "Part",
    "RecurrentFWNetwork",
    "RecurrentGRUNetwork",
    "RecurrentLSTMNetwork",
    "RecurrentNetwork",
    "SpatialNetwork",
    "sequence",
]
