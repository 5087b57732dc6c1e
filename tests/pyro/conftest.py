"""Every test of Pyro starts from an empty store of parameters, in float64."""

import pytest


@pytest.fixture
def clean():
    """An empty store, the seed 0, and numbers of 64 bits."""
    import pyro
    import torch

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)
    pyro.clear_param_store()
