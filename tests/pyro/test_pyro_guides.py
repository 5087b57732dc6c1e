"""`gdregs.pyro.Bound` with Pyro's automatic guides."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

from pyro import poutine  # noqa: E402
from pyro.infer import SVI, RenyiELBO, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
import torch_means  # noqa: E402
from pyro_programs import DATA, assert_unbiased, gradients, model  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")


def dregs_and_naive():
    options = {"vectorize_particles": True}
    return (
        gdregs.pyro.Bound(3, None, "dregs", "gdregs", num_gradient_samples=2, **options),
        gdregs.pyro.Bound(3, None, "naive", "naive", **options),
    )


def of_seed(seed, loss, program, data):
    pyro.set_rng_seed(seed)
    return gradients(loss, model, program, arguments=(data,))


def hold_against_peer(program):
    _, naive = dregs_and_naive()
    peer = RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True)
    for loss in (naive, peer):
        loss.loss(model, program, DATA)  # looks at the programs, which takes numbers
    torch.testing.assert_close(*(of_seed(1, loss, program, DATA) for loss in (naive, peer)))


@pytest.mark.parametrize("automatic", [autoguide.AutoNormal, autoguide.AutoNormalMessenger])
def test_guides_of_single_sites(automatic):
    """A naive draw is that of Pyro's bound, and the reparameterized one has its mean."""
    hold_against_peer(automatic(model))
    pyro.clear_param_store()
    dregs, naive = dregs_and_naive()
    assert_unbiased({"dregs": dregs}, naive, model, automatic(model), biased=[])


@pytest.mark.slow
@pytest.mark.parametrize(
    "automatic",
    [
        autoguide.AutoGuideList,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    ],
)
def test_guides_of_all_latents(automatic):
    """The same; they draw what no plate encloses, so that a step is one draw.

    Far from the posterior, where a gradient is larger than its error in few draws.
    """
    program = automatic(model)
    if automatic is autoguide.AutoGuideList:
        program.append(autoguide.AutoMultivariateNormal(poutine.block(model, expose=["level"])))
        program.append(autoguide.AutoNormal(poutine.block(model, expose=["z"])))
    if automatic is not autoguide.AutoLowRankMultivariateNormal:  # whose path has noise of its own
        hold_against_peer(program)
    dregs, naive = dregs_and_naive()
    data, seed = DATA + 3, 0
    for loss in (dregs, naive):
        loss.loss(model, program, data)

    def draw(count):
        nonlocal seed
        draws = [], []
        for _ in range(count):
            seed += 1
            for of_loss, loss in zip(draws, (dregs, naive), strict=True):
                of_loss.append(of_seed(seed, loss, program, data))
        found, expected = (
            [torch.stack(of_leaf) for of_leaf in zip(*of_loss, strict=True)] for of_loss in draws
        )
        return {"dregs": found, "half": [one / 2 for one in found]}, expected

    # Gradients by scales are skewed: it takes this many until their means are normal.
    torch_means.assert_unbiased(draw, biased=["half"], block=256, most_draws=256)


def test_a_guide_whose_auxiliary_sites_have_no_inverse_falls_back_and_says_so():
    automatic = autoguide.AutoStructured(model, conditionals="normal", dependencies="linear")
    bound = gdregs.pyro.Bound(2, vectorize_particles=True)
    svi = SVI(model, automatic, pyro.optim.Adam({"lr": 0.01}), bound)
    with pytest.warns(UserWarning, match="naive from now on"):
        svi.step(DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(DATA)
