"""Masks and scales of latents, in the model, the guide or both: factors on their densities."""

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import RenyiELBO, Trace_ELBO, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
import gdregs.torch  # noqa: E402
from gdregs.shared.tables import PosteriorMix  # noqa: E402
from pyro_programs import (  # noqa: E402
    DATA,
    assert_unbiased,
    copies_of,
    data_plate,
    gradients,
    parameter,
)

pytestmark = pytest.mark.usefixtures("clean")

Bound = gdregs.pyro.Bound
ELBO, IWAE = gdregs.torch.ELBO(), gdregs.torch.IWAE()
AT_ONCE = {"vectorize_particles": True}
SEEN = torch.tensor([True, False, True, False])
SCALES = torch.tensor([0.5, 2.0, 1.0, 0.3], dtype=torch.float64)
NOTHING = contextlib.nullcontext


class Programs:
    """A model of a latent of each datapoint below one of all, and its guide.

    Args:
        factors: Handlers by a site's name, in model and guide, and alike the sites' distributions.
    """

    def __init__(self, **factors):
        self.factors = factors

    def sample(self, name, side, fn):
        handler = self.factors.get(f"{name}_{side}", NOTHING)
        if isinstance(handler, torch.Tensor):
            return pyro.sample(name, fn.mask(handler))
        with handler():
            return pyro.sample(name, fn)

    def model(self, data):
        centre, width = parameter("centre", 0.3, data), parameter("width", 0.2, data).exp()
        with copies_of(data):
            level = self.sample("level", "p", dist.Normal(centre, width))
            with data_plate(data):
                z = self.sample("z", "p", dist.Normal(centre * level, width))
                pyro.sample("x", dist.Normal(z + 0.3 * level**2, 0.7), obs=data)

    def guide(self, data):
        loc, slope = parameter("loc", 0.1, data), parameter("slope", 0.4, data)
        with copies_of(data):
            level = self.sample("level", "q", dist.Normal(loc, 0.4 + loc**2))
            with data_plate(data):
                self.sample("z", "q", dist.Normal(slope * data + loc * level, 0.6 + slope**2))


def scale(factor):
    return lambda: poutine.scale(scale=factor)


def mask(seen):
    return lambda: poutine.mask(mask=seen)


PROGRAMS = {
    "a mask in the model": Programs(z_p=mask(SEEN)),
    "a mask in both": Programs(z_p=mask(SEEN), z_q=mask(SEEN)),
    "no density in both": Programs(z_p=mask(False), z_q=mask(False)),
    "masked distributions": Programs(z_p=SEEN, z_q=~SEEN),
    "a scale in the model": Programs(level_p=scale(0.3), z_p=scale(0.3)),
    "other scales": Programs(level_p=scale(0.5), z_p=scale(SCALES), z_q=scale(2.0)),
    "other scales, alike": Programs(
        level_p=scale(0.5), level_q=scale(0.5), z_p=scale(SCALES), z_q=scale(SCALES)
    ),
}
FEW = {"num_gradient_samples": 2, **AT_ONCE}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("objective", [IWAE, ELBO], ids=["IWAE", "ELBO"])
def test_gradients_are_unbiased(name, objective):
    suspects = {
        "dregs": Bound(4, objective, "dregs", "gdregs", **AT_ONCE),
        "mixes": Bound(4, objective, PosteriorMix(0.4), "gdregs-mix", chunk_size=3, **AT_ONCE),
        "M = 2": Bound(4, objective, "dregs", "gdregs", **FEW),
        "M = 2, one by one": Bound(4, objective, "dregs", "gdregs", num_gradient_samples=2),
    }
    reference = Bound(4, objective, "naive", "naive", **AT_ONCE)
    programs = PROGRAMS[name]
    suspects = {"dregs": suspects["dregs"], **suspects}
    assert_unbiased(suspects, reference, programs.model, programs.guide, biased=[])


def test_weights_of_other_scales_are_pyros():
    """Values and naive gradients of the same draw, which `RenyiELBO` and `Trace_ELBO` have too."""
    for programs in PROGRAMS.values():
        for objective, peer in (
            (IWAE, RenyiELBO(alpha=0, num_particles=4, **AT_ONCE)),
            (ELBO, Trace_ELBO(num_particles=4, **AT_ONCE)),
        ):
            ours, found = Bound(4, objective, "naive", "naive", **AT_ONCE), []
            for loss in (ours, peer):
                loss.loss(programs.model, programs.guide, DATA)  # looks at them
                pyro.set_rng_seed(1)
                value = loss.loss(programs.model, programs.guide, DATA)
                pyro.set_rng_seed(1)
                found.append((value, gradients(loss, programs.model, programs.guide)))
            torch.testing.assert_close(found[0], found[1])


def test_the_closed_form_of_a_masked_prior():
    """Two datapoints, of which the model masks the second: one of them is left of log p."""
    seen = torch.tensor([True, False])

    def model(data):
        width = parameter("width", 0.8, data)
        with copies_of(data), data_plate(data):
            with poutine.mask(mask=seen):
                z = pyro.sample("z", dist.Normal(0.5, width))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide(data):
        with copies_of(data), data_plate(data):
            pyro.sample("z", dist.Normal(1.2 * data, 0.6))

    data = torch.tensor([1.0, -1.0]).expand(4000, 2)
    loss = Bound(4, ELBO, "dregs", "gdregs", **AT_ONCE)
    (found,) = gradients(loss, model, guide, arguments=(data,))
    expected = -((1.2 - 0.5) ** 2 + 0.6**2) / 0.8**3 + 1 / 0.8
    error = (found - expected).mean() / (found.std() / len(found) ** 0.5)
    assert abs(float(error)) < 4
    masked_twice = (found - 2 * expected).mean() / (found.std() / len(found) ** 0.5)
    assert abs(float(masked_twice)) > 8


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_masked_latent_may_lie_outside_of_the_models_support(vectorize):
    def model(data):
        rate = parameter("rate", 1.3, data)
        with copies_of(data), data_plate(data):
            with poutine.mask(mask=SEEN):
                z = pyro.sample("z", dist.Gamma(2.0, rate))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide(data):
        loc = parameter("loc", 0.3, data)
        with copies_of(data), data_plate(data):
            drawn = dist.TransformedDistribution(
                dist.Normal(loc, 0.5), dist.transforms.ComposeTransform([OrExp(SEEN)])
            )
            pyro.sample("z", drawn)

    naive = Bound(3, IWAE, "naive", "naive", vectorize_particles=vectorize)
    suspects = {"dregs": Bound(3, IWAE, "dregs", "gdregs", vectorize_particles=vectorize)}
    with pyro.validation_enabled(False):  # Pyro's own check would refuse such a guide
        assert_unbiased(suspects, naive, model, guide, biased=[])


class OrExp(dist.transforms.Transform):
    """The exponential function of some elements, and others as they are."""

    domain = codomain = dist.constraints.real
    bijective = True

    def __init__(self, where):
        super().__init__()
        self.where = where

    def _call(self, x):
        return torch.where(self.where, x.exp(), x)

    def _inverse(self, y):
        return torch.where(self.where, torch.where(self.where, y, 1.0).log(), y)

    def log_abs_det_jacobian(self, x, y):
        return torch.where(self.where, x, 0.0)


def test_a_scale_of_all_sites_may_be_a_tensor():
    """Pyro's losses run it, and so does the default."""

    def model(data):
        z = pyro.sample("z", dist.Normal(parameter("centre", 0.3, data), 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=data)

    def guide(data):
        pyro.sample("z", dist.Normal(parameter("slope", 0.4, data) * data, 0.6))

    def scaled(program):
        def run(data):
            with copies_of(data), data_plate(data), poutine.scale(scale=SCALES):
                program(data)

        return run

    programs = scaled(model), scaled(guide)
    for options in (AT_ONCE, {}):
        bounds = {
            "default": Bound(4, IWAE, **options),
            "dregs": Bound(4, IWAE, "dregs", "gdregs", **options),
            "M = 2": Bound(4, IWAE, "dregs", "gdregs", num_gradient_samples=2, **options),
        }
        assert_unbiased(bounds, Bound(4, IWAE, "naive", "naive", **options), *programs, biased=[])
    pyro.clear_param_store()
    values = []
    for loss in (Bound(4, IWAE, **AT_ONCE), RenyiELBO(alpha=0, num_particles=4, **AT_ONCE)):
        loss.loss(*programs, DATA)
        pyro.set_rng_seed(1)
        values.append(loss.loss(*programs, DATA))
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("vectorize", [True, False])
def test_factors_that_depend_on_latents_are_refused(vectorize):
    def model(data):
        with copies_of(data):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            with data_plate(data):
                with poutine.mask(mask=level > 0):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + level, 1.0), obs=data)

    guide = Programs().guide
    options = {"vectorize_particles": vectorize}
    loss = Bound(8, IWAE, "dregs", "gdregs", **options)
    with pytest.raises(ValueError, match=r"A factor on a density .* depends on latents"):
        loss.loss_and_grads(model, guide, DATA)
    Bound(8, IWAE, "naive", "naive", **options).loss_and_grads(model, guide, DATA)
    for programs in PROGRAMS.values():  # none of which does
        loss.loss_and_grads(programs.model, programs.guide, DATA)


def test_automatic_guides_of_masked_models():
    programs = Programs(z_p=mask(SEEN), level_p=scale(0.5))
    automatic = autoguide.AutoNormal(programs.model)
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    suspects = {
        "dregs": Bound(4, None, "dregs", "gdregs", **AT_ONCE),
        "stl": Bound(4, None, "stl", "naive", **AT_ONCE),
    }
    assert_unbiased(suspects, naive, programs.model, automatic, biased=["stl"])


def test_masked_distributions_have_factors_without_a_program():
    """`gdregs.torch.bound` of Pyro's distributions, of which elements of a vector are masked."""
    theta = torch.tensor(0.3, requires_grad=True)
    seen = torch.tensor([True, False])

    def vector(one):
        return dist.Independent(one, 1)

    def normal(loc):
        return dist.Normal(loc.expand(2), 1.0)

    found = []
    for prior in (
        vector(normal(theta).mask(seen)),
        vector(gdregs.torch.with_factor(normal(theta), seen.double())),
        normal(theta).mask(seen).expand([3, 2]).to_event(1),
    ):
        pyro.set_rng_seed(0)
        value = gdregs.torch.bound(
            vector(normal(theta**2).expand([3, 2]).mask(~seen)), prior, lambda z: -z.sum(-1) ** 2,
            num_samples=4,
        )  # fmt: skip
        found.append((value.detach(), torch.autograd.grad(value.sum(), theta)))
    assert all(found[0][0].isfinite())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)
