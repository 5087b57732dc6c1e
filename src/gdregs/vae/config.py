"""What a training run is made of: everything that decides its numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, cast, get_args

from gdregs.objectives import ELBO, IWAE, JVI, VRIWAE, Objective
from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator
from gdregs.vae.data.datasets import DATASETS, check_name
from gdregs.vae.data.pictures import Options
from gdregs.vae.errors import UserError
from gdregs.vae.networks.mlp import InitialWeights, Precision
from gdregs.vae.networks.observations import LikelihoodName

ObjectiveName = Literal["iwae", "elbo", "vr-iwae", "jvi"]
Networks = Literal["mlp", "conv", "ladder"]
Likelihood = Literal["auto", "bernoulli", "categorical", "discretised-logistic-mixture", "gaussian"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. Two runs with equal settings give equal numbers, bit for bit."""

    dataset: str = "digits"
    """digits, mnist, fashion-mnist or omniglot; or the path of your own images: a folder of PNG or
    JPEG files, an .npy or .npz file, or a saved Hugging Face data set."""
    image_size: int = 0
    """Resize own images to so many pixels, square; 0: leave them as they are."""
    crop: bool = False
    """Cut the largest square out of the middle of own images first."""
    grey: bool = False
    """Make own images grey."""
    test_share: float = 0.1
    """The share of own images to test on, where they come without a test set."""
    split_seed: int = 0
    """Decides which these are."""
    stream: bool = False
    """Read own training images in the background while they are needed, for data larger than
    memory."""
    networks: Networks = "mlp"
    """mlp, as in the papers; conv, residual convolutions around them; or ladder, a deep ladder of
    image-shaped latents."""
    likelihood: Likelihood = "auto"
    """auto is bernoulli for the named data sets, and discretised-logistic-mixture for your own."""
    channels: int = 16
    """Of convolutions, at full width."""
    conditional: bool = False
    """Model the bottom half of each image given its top half."""
    num_layers: int = 2
    """Stochastic layers, L."""
    latent_size: int = 50
    """Length of each latent; of a ladder, its channels."""
    hidden_size: int = 300
    """Units in each hidden layer."""
    precision: Precision = "float32"
    """Of matrix products and convolutions; log-weights and all sums are in float32."""
    initial_weights: InitialWeights = "glorot"
    """glorot, or haiku: the default of the library that the papers' code uses."""
    objective: ObjectiveName = "iwae"
    """The Monte Carlo objective."""
    order: float = 0.5
    """The order alpha of the vr-iwae objective; the others ignore it."""
    posterior_estimator: str = "dregs"
    """naive, stl, dregs, rws or rws-dregs."""
    prior_estimator: str = "gdregs"
    """naive, gdregs, or gdregs-mix: of both, as much as a run learns to take, layer by layer."""
    num_samples: int = 64
    """Importance samples, K."""
    gradient_samples: int = 8
    """M: run the backward pass on M of the K samples, resampled without bias. 0: on all."""
    batch_size: int = 64
    """Images in each step."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    epochs: int = 120
    """Passes over the training images."""
    train_images: int = 0
    """Train on the first so many images; 0: on all."""
    test_images: int = 0
    """Test on the first so many test images; 0: on all."""
    record_every: int = 1
    """Epochs from one measurement on the test images to the next; the last epoch has one too."""
    variance_draws: int = 0
    """Draws of the gradient for its variance, at each measurement; 0: leave it out."""
    seed: int = 0
    """Seed of the initial weights, the batches, the binarisation and the samples."""

    def __post_init__(self):
        check_name(self.dataset)
        if not self.is_named:  # a run is used from other folders too
            object.__setattr__(self, "dataset", str(Path(self.dataset).resolve()))
        positive = (
            "num_layers", "latent_size", "hidden_size", "channels", "num_samples", "batch_size",
        )  # fmt: skip
        for name in (*positive, "record_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1; got {getattr(self, name)}.")
        counts = ("epochs", "gradient_samples", "train_images", "test_images", "variance_draws")
        for name in (*counts, "image_size", "split_seed", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{_flag(name)} must not be negative; got {getattr(self, name)}.")
        for name, kind in (
            ("precision", Precision),
            ("initial_weights", InitialWeights),
            ("networks", Networks),
            ("likelihood", Likelihood),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"unknown {name.replace('_', ' ')} {getattr(self, name)!r}; choose one of"
                    f" {', '.join(get_args(kind))}."
                )
        if not 0 < self.test_share < 1:
            raise UserError(f"--test-share must be between 0 and 1; got {self.test_share}.")
        if self.stream and self.is_named:
            raise UserError(f"--stream is for your own images; {self.dataset} fits into memory.")
        if self.networks == "ladder" and self.conditional:
            raise UserError(
                "--conditional is for --networks mlp and conv; a ladder has no context."
            )
        if self.variance_draws == 1:
            raise UserError("--variance-draws must be 0 or at least 2.")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"--learning-rate must be positive; got {self.learning_rate}.")
        try:
            find_posterior_estimator(self.posterior_estimator)
            find_prior_estimator(self.prior_estimator)
            self.make_objective()
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def num_gradient_samples(self) -> int | None:
        """M, or None for all samples."""
        return self.gradient_samples or None

    @property
    def pair(self) -> str:
        """Posterior and prior estimator, such as `dregs+gdregs`."""
        return f"{self.posterior_estimator}+{self.prior_estimator}"

    @property
    def task(self) -> str:
        """Data set, kind of model and number of layers, such as `mnist-conditional-L2`."""
        kind = "-conditional" if self.conditional else ""
        name = self.dataset if self.is_named else Path(self.dataset).resolve().stem
        networks = "" if self.networks == "mlp" else f"-{self.networks}"
        return f"{name}{kind}{networks}-L{self.num_layers}"

    @property
    def is_named(self) -> bool:
        """Whether the data set is one of ours."""
        return self.dataset in DATASETS

    @property
    def likelihood_name(self) -> LikelihoodName:
        """The likelihood, where `auto` has been resolved."""
        if self.likelihood == "auto":
            return "bernoulli" if self.is_named else "discretised-logistic-mixture"
        return cast(LikelihoodName, self.likelihood)

    @property
    def options(self) -> Options:
        """How own images are brought to one form."""
        return Options(self.image_size, self.crop, self.grey, self.test_share, self.split_seed)

    def make_objective(self) -> Objective:
        """The objective that the settings name."""
        makers = {
            "iwae": IWAE,
            "elbo": ELBO,
            "jvi": JVI,
            "vr-iwae": lambda: VRIWAE(self.order),
        }
        if self.objective not in makers:
            raise UserError(
                f"unknown objective {self.objective!r}; choose one of {', '.join(makers)}."
            )
        return makers[self.objective]()

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return dataclasses.asdict(self)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_config(path: Path) -> Config:
    """Read the settings of a run folder.

    Raises:
        UserError: If the file is missing or not the settings of a run.
    """
    try:
        content = json.loads(path.read_text())
        return Config(**content["config"])
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a run folder: it has no {path.name}. `gdregs train` makes one."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the settings of a run ({error}).") from None


_MAY_CHANGE = ("epochs", "record_every")
"""How long a run is and when it is measured: neither changes what it learns."""


def differences(config: Config, other: Config) -> list[str]:
    """The settings in which two runs differ, but for those that a run may change, as text."""
    ours, theirs = config.to_dict(), other.to_dict()
    return [
        f"{_flag(name)} {theirs[name]} (not {value})"
        for name, value in ours.items()
        if name not in _MAY_CHANGE and theirs[name] != value
    ]
