"""Federated algorithms, one family a file, with their steps and control variates."""

from gradwire.federated.algorithms.algorithm import Algorithm, check_positive, parse_algorithm
from gradwire.federated.algorithms.averaging import fedavg, fedprox
from gradwire.federated.algorithms.buffered import BufferedStep, fedasync, fedbuff
from gradwire.federated.algorithms.fednova import fednova
from gradwire.federated.algorithms.optimizers import fedadagrad, fedadam, fedavgm, fedyogi
from gradwire.federated.algorithms.scaffold import scaffold
from gradwire.federated.algorithms.steps import Step

__all__ = [
    "Algorithm",
    "BufferedStep",
    "Step",
    "check_positive",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbuff",
    "fednova",
    "fedprox",
    "fedyogi",
    "parse_algorithm",
    "scaffold",
]
