"""`gdregs.pyro.Bound` with Pyro's automatic guides."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

from pyro import poutine  # noqa: E402
from pyro.infer import SVI, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
from pyro_programs import DATA, check, model  # noqa: E402

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
    program = automatic(model)
    if automatic is autoguide.AutoGuideList:
        program.append(autoguide.AutoMultivariateNormal(poutine.block(model, expose=["level"])))
        program.append(autoguide.AutoNormal(poutine.block(model, expose=["z"])))
    ours = gdregs.pyro.Bound(
        3, None, "dregs", "gdregs", vectorize_particles=True, num_gradient_samples=2
    )
    naive = gdregs.pyro.Bound(3, None, "naive", "naive", vectorize_particles=True)
    draws = 400 if automatic is autoguide.AutoNormal else 80
    found = check(ours, naive, model, program, draws=draws)
    assert found.unbiased, found


def test_a_guide_whose_auxiliary_sites_have_no_inverse_falls_back_and_says_so():
    automatic = autoguide.AutoStructured(model, conditionals="normal", dependencies="linear")
    bound = gdregs.pyro.Bound(2, vectorize_particles=True)
    svi = SVI(model, automatic, pyro.optim.Adam({"lr": 0.01}), bound)
    with pytest.warns(UserWarning, match="naive from now on"):
        svi.step(DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(DATA)
