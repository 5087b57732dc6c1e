"""Which models the compiler runs slowly in a loop."""

from typing import Any

import jax

from gdregs.vae.config import Config
from gdregs.vae.networks.conv import ConvVAE
from gdregs.vae.networks.ladder import LadderVAE
from gdregs.vae.networks.model import VAE
from gdregs.vae.training.epochs import make_task_loss
from gdregs.vae.training.task import Task


def loops_are_slow(config: Config, task: Task, model: Any) -> bool:
    """Whether steps are faster one by one than in a loop of the compiler's.

    XLA for CPU runs convolutions inside of a loop four times as slowly as outside of one.
    """
    if jax.default_backend() != "cpu" or isinstance(model, VAE):
        return False
    if isinstance(model, (ConvVAE, LadderVAE)):
        return True
    loss = make_task_loss(config, task)
    images = task.observe(jax.random.key(0), task.train[: config.batch_size])
    return "conv_general_dilated" in str(jax.make_jaxpr(loss)(model, images, jax.random.key(0)))
