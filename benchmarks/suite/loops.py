"""Whole training epochs as other libraries run them: seconds per epoch of their own IWAE loops.

    python loops.py pythae|multivae IMAGES.npy SAMPLES

One stochastic layer, two tanh layers of 300 units in each network, batches of 64, Adam. The time of
an epoch is the difference between a run of three epochs and a run of one, divided by two.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from torch import nn

LATENT, HIDDEN = 50, 300


def tanh_layers(size):
    return nn.Sequential(nn.Linear(size, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())


def networks(library, num_pixels):
    nets = __import__(
        f"{library}.models.{'nn' if library == 'pythae' else 'base'}", fromlist=["BaseEncoder"]
    )
    outputs = __import__(
        f"{library}.models.base{'.base_utils' if library == 'pythae' else ''}",
        fromlist=["ModelOutput"],
    )

    class Encoder(nets.BaseEncoder):
        def __init__(self):
            super().__init__()
            self.latent_dim = LATENT
            self.body = tanh_layers(num_pixels)
            self.loc, self.log_var = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x):
            hidden = self.body(x.reshape(len(x), -1))
            return outputs.ModelOutput(
                embedding=self.loc(hidden), log_covariance=self.log_var(hidden)
            )

    class Decoder(nets.BaseDecoder):
        def __init__(self):
            super().__init__()
            self.latent_dim = LATENT
            self.body = nn.Sequential(tanh_layers(LATENT), nn.Linear(HIDDEN, num_pixels))

        def forward(self, z):
            return outputs.ModelOutput(reconstruction=torch.sigmoid(self.body(z)))

    return Encoder(), Decoder()


def pythae(images, num_samples, epochs, folder):
    from pythae.data.datasets import BaseDataset
    from pythae.models import IWAE, IWAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    encoder, decoder = networks("pythae", images.shape[1])
    config = IWAEConfig(
        input_dim=(images.shape[1],),
        latent_dim=LATENT,
        number_samples=num_samples,
        reconstruction_loss="bce",
    )
    model = IWAE(config, encoder, decoder)
    settings = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=64,
        num_epochs=epochs,
        train_dataloader_num_workers=0,
        no_cuda=True,
    )
    data = BaseDataset(torch.tensor(images), torch.zeros(len(images)))
    return BaseTrainer(model, data, training_config=settings)


def multivae(images, num_samples, epochs, folder):
    from multivae.data.datasets import MultimodalBaseDataset
    from multivae.models import MMVAE, MMVAEConfig
    from multivae.trainers import BaseTrainer, BaseTrainerConfig

    encoder, decoder = networks("multivae", images.shape[1])
    config = MMVAEConfig(
        n_modalities=1,
        input_dims={"x": (images.shape[1],)},
        latent_dim=LATENT,
        K=num_samples,
        loss="iwae_looser",
        prior_and_posterior_dist="normal",
        decoders_dist={"x": "bernoulli"},
        learn_prior=False,
    )
    model = MMVAE(config, {"x": encoder}, {"x": decoder})
    settings = BaseTrainerConfig(
        output_dir=folder, per_device_train_batch_size=64, num_epochs=epochs, no_cuda=True
    )
    data = MultimodalBaseDataset({"x": torch.tensor(images)})
    return BaseTrainer(model, data, training_config=settings)


def seconds(make, epochs):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = make(epochs, folder)
        begun = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begun


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    library, path, num_samples = sys.argv[1], sys.argv[2], int(sys.argv[3])
    images = np.load(path, allow_pickle=False).astype(np.float32)
    loop = {"pythae": pythae, "multivae": multivae}[library]

    def make(epochs, folder):
        torch.manual_seed(0)
        return loop(images, num_samples, epochs, folder)

    one, three = seconds(make, 1), seconds(make, 3)
    print(json.dumps({"seconds_per_epoch": (three - one) / 2}))


if __name__ == "__main__":
    main()
