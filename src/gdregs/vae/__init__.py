"""Hierarchical variational autoencoders trained with gdregs' estimators.

`VAE` is the model of Eq. (20), `ConvVAE` and `LadderVAE` are made of convolutions, `OwnVAE` of your
networks. `load` gives a trained run ready to use, `fit` trains a model on arrays of images.
`load_dataset`, `make_task`, `open_run` and `train` are what `gdregs train` is made of.
"""

from gdregs.vae.config import Config
from gdregs.vae.data.datasets import DATASETS, Dataset, load_dataset
from gdregs.vae.errors import DivergedError, UserError
from gdregs.vae.fitting import fit
from gdregs.vae.networks.conv import ConvVAE
from gdregs.vae.networks.ladder import LadderVAE
from gdregs.vae.networks.model import VAE
from gdregs.vae.networks.observations import Observation
from gdregs.vae.networks.own import OwnVAE
from gdregs.vae.runs.folders import load_state, open_run, read_metrics, train
from gdregs.vae.runs.load import Run, export, load
from gdregs.vae.training.epochs import TrainingState, make_epoch, make_state
from gdregs.vae.training.evaluation import evaluate_log_marginal, gradient_quality, make_evaluation
from gdregs.vae.training.task import Task, make_task

__all__ = [
    "DATASETS",
    "VAE",
    "Config",
    "ConvVAE",
    "Dataset",
    "DivergedError",
    "LadderVAE",
    "Observation",
    "OwnVAE",
    "Run",
    "Task",
    "TrainingState",
    "UserError",
    "evaluate_log_marginal",
    "export",
    "fit",
    "gradient_quality",
    "load",
    "load_dataset",
    "load_state",
    "make_epoch",
    "make_evaluation",
    "make_state",
    "make_task",
    "open_run",
    "read_metrics",
    "train",
]
