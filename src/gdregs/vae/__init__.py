"""Hierarchical variational autoencoders trained with gdregs' estimators.

`VAE` is the model of Eq. (20). `load_dataset`, `make_task`, `open_run` and `train` are what
`gdregs train` is made of.
"""

from gdregs.vae.config import Config
from gdregs.vae.datasets import DATASETS, Dataset, load_dataset
from gdregs.vae.errors import UserError
from gdregs.vae.evaluation import evaluate_log_marginal, gradient_quality, make_evaluation
from gdregs.vae.model import VAE
from gdregs.vae.run import load_state, open_run, read_metrics, train
from gdregs.vae.training import Task, TrainingState, make_epoch, make_state, make_task

__all__ = [
    "DATASETS",
    "VAE",
    "Config",
    "Dataset",
    "Task",
    "TrainingState",
    "UserError",
    "evaluate_log_marginal",
    "gradient_quality",
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
