"""`gdregs reproduce`: the papers' experiments, without and with images."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from gdregs.vae.arguments import FLAT, POSITIONAL
from gdregs.vae.errors import UserError
from gdregs.vae.networks.mlp import InitialWeights

if TYPE_CHECKING:  # the command line should start without all that these import
    from gdregs.papers.grids.grid import Scale
    from gdregs.papers.grids.sweep import Where
    from gdregs.papers.image_models import Only


_WithoutImages = Literal[
    "toy",
    "linear-vae",
    "linear-vae-trainings",
    "cross-entropy",
    "mixing",
    "sequences",
    "top-down",
    "all-analytic",
]
_WithImages = Literal["table1", "table2", "poster", "figures", "digits"]
Experiment = Literal[_WithoutImages, _WithImages]
IMAGE_GRIDS: tuple[str, ...] = get_args(_WithImages)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which cells of a table are trained, how long, and where."""

    epochs: int | None = None
    """Epochs of each run; by default the papers' 1,000 (120 for digits)."""
    seeds: int = 5
    """Runs of each cell."""
    subset: int | None = None
    """Train on the first so many images, and test on the same share; by default on all."""
    datasets: tuple[str, ...] = ()
    """Only these data sets."""
    layers: tuple[int, ...] = ()
    """Only these numbers of stochastic layers."""
    pairs: tuple[str, ...] = ()
    """Only these pairs of estimators, such as dregs+gdregs."""
    tasks: tuple[str, ...] = ()
    """Only these tasks, such as mnist-conditional-L1."""
    gradient_samples: int | None = None
    """M: run the backward pass on M of the K samples, resampled without bias, in every cell; 0: on
    all. By default the papers' all, and 8 for a cell of each table once more."""
    initial_weights: InitialWeights | None = None
    """haiku (the papers' default) or glorot."""
    runs: Path = Path("runs/papers")
    """Folder of all run folders; what is done there is skipped, what was cut off continues."""
    earlier: tuple[Path, ...] = ()
    """More folders, besides --out, with results whose seeds are not trained again."""
    data_dir: Path | None = None
    """Folder with the data sets' official files; without it they are downloaded."""
    executor: Literal["inline", "local", "slurm"] = "inline"
    """Train in this process, or submit jobs: to processes of this machine, or to a cluster."""
    executor_options: tuple[str, ...] = ()
    """NAME=VALUE for submitit, such as slurm_partition=gpu gpus_per_node=1 timeout_min=600."""
    budget: float | None = None
    """Train only the rows that fit into so many hours on one accelerator, by counted operations:
    those first that decide most in an hour."""
    jobs: int = 1
    """How many jobs of the local executor run at a time."""
    vmap: Literal["auto", "on", "off"] = "auto"
    """Train the seeds of a cell together; auto: on clusters, accelerators and several devices."""

    def scale(self) -> "Scale":
        """How much of the papers' computation to do."""
        from gdregs.papers.grids.grid import Scale

        return Scale(
            self.epochs, self.seeds, self.subset, self.gradient_samples, self.initial_weights
        )

    def only(self) -> "Only":
        """Which cells."""
        from gdregs.papers.image_models import Only

        return Only(self.datasets, self.layers, self.pairs, self.tasks)

    def where(self) -> "Where":
        """Where the runs are and how they are run."""
        import jax

        from gdregs.papers.grids.sweep import Where

        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1; got {self.jobs}.")
        options: dict[str, Any] = {}
        for option in self.executor_options:
            name, separator, value = option.partition("=")
            if not separator or not name:
                raise UserError(f"--executor-options: {option!r} is not NAME=VALUE.")
            options[name] = int(value) if value.isdigit() else value
        if options and self.executor == "inline":
            raise UserError("--executor-options needs --executor local or slurm.")
        here = jax.default_backend() != "cpu" or jax.device_count() > 1
        together = here or self.executor == "slurm"
        vectorised = together if self.vmap == "auto" else self.vmap == "on"
        return Where(self.runs, self.data_dir, self.executor, options, self.jobs, vectorised)


def reproduce(
    experiment: Annotated[Experiment, POSITIONAL],
    out: Path = Path("results"),
    seed: int = 0,
    quick: bool = False,
    sweep: Annotated[Sweep, FLAT] = Sweep(),
) -> None:
    """Measure the papers' claims: results, figures, and pages with the papers' numbers beside ours.

    Args:
        experiment: Without images: toy, linear-vae, cross-entropy (all-analytic for these three),
            linear-vae-trainings, mixing, sequences, top-down. With images: table1, table2, poster,
            figures, digits.
        out: Folder of the results; those of the same experiment are replaced.
        seed: Seed of the data, the parameters and the draws of an experiment without images.
        quick: Without images: seconds instead of minutes; the numbers then decide little.
        sweep: Options of the image models, which are trained in --runs and resumed there.
    """
    if experiment in IMAGE_GRIDS:
        if quick or seed:
            raise UserError(
                f"--quick and --seed are not for {experiment}; --epochs, --seeds and --subset make"
                " it smaller."
            )
        from gdregs.papers.image_models import reproduce_images

        lines = reproduce_images(
            experiment,
            out,
            sweep.scale(),
            sweep.only(),
            sweep.where(),
            sweep.budget,
            sweep.earlier,
        )
    else:
        if sweep != Sweep():
            changed = [
                name for name in vars(sweep) if getattr(sweep, name) != getattr(Sweep(), name)
            ]
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise UserError(f"{flags}: only for {', '.join(IMAGE_GRIDS)}.")
        from gdregs.papers.reproduce import reproduce as run_experiments

        lines = run_experiments(experiment, out, seed=seed, quick=quick)
    print("\n".join(lines))
