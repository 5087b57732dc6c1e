"""`gdregs.pyro.Bound` with Pyro's automatic guides."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

from pyro import poutine  # noqa: E402
from pyro.infer import SVI, RenyiELBO, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
import torch_means  # noqa: E402
from pyro_programs import DATA, gradients, model  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")


@pytest.mark.parametrize(
    "automatic",
    [
        autoguide.AutoGuideList,
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
        autoguide.AutoNormalMessenger,
    ],
)
def test_automatic_guides(automatic):
    """A naive draw is that of Pyro's bound, and the reparameterized one has its mean.

    Far from the posterior, where a gradient is larger than its error in few draws.
    """
    program = automatic(model)
    if automatic is autoguide.AutoGuideList:
        program.append(autoguide.AutoMultivariateNormal(poutine.block(model, expose=["level"])))
        program.append(autoguide.AutoNormal(poutine.block(model, expose=["z"])))
    data = DATA + 3
    options = {"vectorize_particles": True}
    ours = gdregs.pyro.Bound(3, None, "dregs", "gdregs", num_gradient_samples=2, **options)
    naive = gdregs.pyro.Bound(3, None, "naive", "naive", **options)
    peer = RenyiELBO(alpha=0, num_particles=3, **options)
    for loss in (ours, naive, peer):
        loss.loss(model, program, data)
    seed = 0

    def of(loss):
        pyro.set_rng_seed(seed)
        return gradients(loss, model, program, arguments=(data,))

    if automatic is not autoguide.AutoLowRankMultivariateNormal:  # whose path has noise of its own
        torch.testing.assert_close(of(naive), of(peer))

    def draw(count):
        nonlocal seed
        calls = []
        for _ in range(count):
            seed += 1
            calls.append((of(ours), of(naive)))
        found, expected = (
            [torch.stack(of_leaf) for of_leaf in zip(*of_loss, strict=True)]
            for of_loss in zip(*calls, strict=True)
        )
        return {"dregs": found, "half": [one / 2 for one in found]}, expected

    torch_means.assert_unbiased(draw, biased=["half"], block=64, most_draws=256)


def test_a_guide_whose_auxiliary_sites_have_no_inverse_falls_back_and_says_so():
    automatic = autoguide.AutoStructured(model, conditionals="normal", dependencies="linear")
    bound = gdregs.pyro.Bound(2, vectorize_particles=True)
    svi = SVI(model, automatic, pyro.optim.Adam({"lr": 0.01}), bound)
    with pytest.warns(UserWarning, match="naive from now on"):
        svi.step(DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(DATA)
