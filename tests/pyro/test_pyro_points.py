"""A `Delta` in a guide: a point estimate has no score, and its prior is part of the likelihood."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import RenyiELBO, Trace_ELBO, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
import gdregs.torch  # noqa: E402
import torch_means  # noqa: E402
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
AT_ONCE = {"vectorize_particles": True}


def model(data):
    """A latent of all datapoints, one below it, and one of each datapoint."""
    centre, width = parameter("centre", 0.3, data), parameter("width", 0.1, data).exp()
    with copies_of(data):
        top = pyro.sample("top", dist.Normal(centre, 1.0))
        level = pyro.sample("level", dist.Normal(centre * top, width))
        with data_plate(data):
            z = pyro.sample("z", dist.Normal(level + 0.3 * top, width))
            pyro.sample("x", dist.Normal(z, 0.7), obs=data)


def guide_of(top, level):
    """The guide whose two latents above are made by these functions."""

    def guide(data):
        slope = parameter("slope", 0.4, data)
        with copies_of(data):
            above = pyro.sample("top", top(data))
            level_value = pyro.sample("level", level(data, above))
            with data_plate(data):
                pyro.sample("z", dist.Normal(slope * data + 0.5 * level_value, 0.6 + slope**2))

    return guide


def point(name, value):
    return lambda data, *_: dist.Delta(parameter(name, value, data))


def drawn(name, value):
    return lambda data, *_: dist.Normal(parameter(name, value, data), 0.5)


def computed(data, above):
    return dist.Delta(parameter("gain", 0.7, data) * above)


GUIDES = {
    "above": guide_of(point("top_at", 0.5), drawn("loc", 0.1)),
    "below": guide_of(drawn("loc", 0.1), point("level_at", 0.5)),
    "both": guide_of(point("top_at", 0.5), point("level_at", -0.2)),
    "from a point": guide_of(point("top_at", 0.5), computed),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("is_whole", [True, False])
def test_points_bias_no_estimator(name, is_whole):
    options = AT_ONCE if is_whole else {"num_gradient_samples": 2, **AT_ONCE}
    suspects = {
        "dregs": Bound(4, None, "dregs", "naive", **options),
        "gdregs": Bound(4, None, "dregs", "gdregs", **options),
        "mixes": Bound(4, None, PosteriorMix(0.4), "gdregs-mix", chunk_size=3, **options),
        "stl": Bound(4, None, "stl", "naive", **options),
    }
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, model, GUIDES[name], biased=["stl"], block=4000)


def test_points_bias_no_estimator_where_particles_run_one_by_one():
    suspects = {"gdregs": Bound(3, None, "dregs", "gdregs")}
    naive = Bound(3, None, "naive", "naive")
    assert_unbiased(suspects, naive, model, GUIDES["below"], biased=[])


def test_naive_gradients_are_pyros():
    for guide in GUIDES.values():
        found = []
        for loss in (Bound(4, None, "naive", "naive", **AT_ONCE), RenyiELBO(0, 4, **AT_ONCE)):
            loss.loss(model, guide, DATA)  # looks at the programs, which takes numbers
            pyro.set_rng_seed(1)
            found.append(gradients(loss, model, guide))
        torch.testing.assert_close(*found)


def test_a_value_computed_from_other_latents():
    """Its parameters have no score; together with what it is computed from it has no density."""
    guide = guide_of(drawn("loc", 0.1), computed)
    suspects = {
        "dregs": Bound(4, None, "dregs", "naive", **AT_ONCE),
        "stl": Bound(4, None, "stl", "naive", **AT_ONCE),
    }
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, model, guide, biased=["stl"])
    pyro.clear_param_store()
    with pytest.raises(TypeError, match=r"computes site 'level' from others.* prior_estimator='na"):
        Bound(4, None, "dregs", "gdregs", **AT_ONCE).loss_and_grads(model, guide, DATA)
    loss = Bound(4, **AT_ONCE)
    with pytest.warns(UserWarning, match="The automatic choice is naive from now on"):
        loss.loss_and_grads(model, guide, DATA)


def test_a_density_of_a_computed_value_is_differentiated():
    """As `AutoStructured` does: standard noise, shifted and scaled by parameters."""

    def guide(data):
        loc, log_scale = parameter("loc", 0.2, data), parameter("log_scale", -0.6, data)
        slope = parameter("slope", 0.4, data)
        with copies_of(data):
            top = pyro.sample("top", dist.Normal(loc, 0.5))
            noise = pyro.sample("noise", dist.Normal(top, 1.0), infer={"is_auxiliary": True})
            moved = dist.Delta(loc + log_scale.exp() * noise, log_density=-log_scale)
            level = pyro.sample("level", moved)
            with data_plate(data):
                pyro.sample("z", dist.Normal(slope * data + 0.5 * level, 0.6 + slope**2))

    few = {"num_gradient_samples": 2, **AT_ONCE}
    suspects = {
        "dregs": Bound(4, None, "dregs", "naive", **AT_ONCE),
        "M = 2": Bound(4, None, PosteriorMix(0.4), "naive", **few),
    }
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, model, guide, biased=[])


def test_a_list_of_automatic_guides_with_points():
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["top"])))
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["level", "z"])))
    suspects = {"gdregs": Bound(4, None, "dregs", "gdregs", **AT_ONCE)}
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, model, guide, biased=[])


def test_the_largest_posterior_density():
    """With points alone a bound is the log-joint density, whatever its estimators."""
    guide = autoguide.AutoDelta(model)
    found = []
    for loss in (Bound(2, None, "dregs", "gdregs", **AT_ONCE), Bound(2), Trace_ELBO()):
        loss.loss(model, guide, DATA)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(gradients(loss, model, guide))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_points_of_a_hierarchy():
    """The same without programs, where the prior's estimator must be naive."""

    def gradient(estimator, copies, prior_estimator="naive"):
        d, q, c = (torch.full((copies,), value, requires_grad=True) for value in (0.5, -0.3, 0.3))
        posterior = gdregs.torch.Hierarchy(
            {"z": (dist.Delta(d), ()), "y": (lambda z: dist.Normal(z + q, q.exp()), ("z",))}
        )
        prior = gdregs.torch.Hierarchy(
            {"z": (dist.Normal(c, 1.0), ()), "y": (lambda z: dist.Normal(z, 1.0), ("z",))}
        )
        value = gdregs.torch.bound(
            posterior, prior, lambda z: -((z["y"] - 2.0) ** 2), num_samples=4,
            posterior_estimator=estimator, prior_estimator=prior_estimator,
        )  # fmt: skip
        return torch.autograd.grad(value.sum(), (d, q, c))

    def draw(copies):
        found = {name: gradient(name, copies) for name in ("dregs", "stl")}
        return found, gradient("naive", copies)

    torch_means.assert_unbiased(draw, biased=["stl"])
    with pytest.raises(TypeError, match="a single value"):
        gradient("dregs", 1, "gdregs")
