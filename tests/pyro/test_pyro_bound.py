"""`gdregs.pyro.Bound` in the place of Pyro's objectives: values, gradients, refusals."""

import math

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
import gdregs.torch  # noqa: E402
from pyro_programs import (  # noqa: E402
    DATA,
    check,
    gradients,
    guide,
    local_guide,
    local_model,
    model,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("clean")


@pytest.mark.parametrize(
    ("programs", "options"),
    [
        ((model, guide), {"vectorize_particles": True, "num_gradient_samples": 2}),
        ((model, guide), {"num_gradient_samples": 2}),
        ((local_model, local_guide), {"vectorize_particles": True}),
        (
            (local_model, local_guide),
            {"vectorize_particles": True, "num_gradient_samples": 2, "chunk_size": 3},
        ),
        ((model, guide), {"objective": gdregs.torch.ELBO(), "vectorize_particles": True}),
        (
            (local_model, local_guide),
            {"objective": gdregs.torch.VRIWAE(0.5), "vectorize_particles": True},
        ),
    ],
    ids=[
        "global, M < K",
        "global, one by one",
        "local",
        "local, chunks",
        "ELBO",
        "VR-IWAE",
    ],
)
def test_gradients_are_unbiased(programs, options):
    naive = gdregs.pyro.Bound(
        4, options.get("objective"), "naive", "naive", vectorize_particles=True
    )
    reparameterized = gdregs.pyro.Bound(
        4, posterior_estimator="dregs", prior_estimator="gdregs", **options
    )
    found = check(reparameterized, naive, *programs)
    assert found.unbiased, found


def test_a_biased_estimator_is_caught():
    naive = gdregs.pyro.Bound(4, None, "naive", "naive", vectorize_particles=True)
    biased = gdregs.pyro.Bound(4, None, "stl", "naive", vectorize_particles=True)
    many = (DATA.repeat(50),)
    assert not check(biased, naive, local_model, local_guide, draws=150, arguments=many).unbiased


def test_the_naive_gradient_is_renyis_and_the_elbos():
    for objective, peer in (
        (gdregs.torch.IWAE(), RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True)),
        (gdregs.torch.ELBO(), Trace_ELBO(num_particles=4, vectorize_particles=True)),
    ):
        ours = gdregs.pyro.Bound(4, objective, "naive", "naive", vectorize_particles=True)
        found = check(ours, peer, model, guide)
        assert found.unbiased, found


@pytest.mark.parametrize("vectorize", [True, False])
def test_subsampling_stands_for_the_whole_data(vectorize):
    whole = gdregs.pyro.Bound(3, vectorize_particles=vectorize)
    losses = [
        [whole.loss(local_model, local_guide, DATA, size) for _ in range(400)] for size in (None, 2)
    ]
    means = [sum(one) / 400 for one in losses]
    errors = [torch.tensor(one).std().item() / 20 for one in losses]
    assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
    part = gdregs.pyro.Bound(3, None, "dregs", "gdregs", vectorize_particles=vectorize)
    naive = gdregs.pyro.Bound(3, None, "naive", "naive", vectorize_particles=vectorize)
    assert check(part, naive, local_model, local_guide, arguments=(DATA, 2), draws=120).unbiased


def test_a_subsample_inside_of_one_weight_is_refused():
    bound = gdregs.pyro.Bound(3)
    with pytest.raises(ValueError, match="'data' is subsampled but does not enclose every site"):
        bound.loss(model, guide, DATA, 2)
    gdregs.pyro.Bound(3, gdregs.torch.ELBO()).loss(model, guide, DATA, 2)


def masked(program, data):
    with poutine.scale(scale=2.5), poutine.mask(mask=data > 0):
        program(data)


@pytest.mark.parametrize("objective", [gdregs.torch.ELBO(), gdregs.torch.IWAE()])
def test_scale_and_mask_are_as_in_pyro(objective):
    programs = (lambda data: masked(local_model, data)), (lambda data: masked(local_guide, data))
    is_elbo = isinstance(objective, gdregs.torch.ELBO)
    peer = (
        Trace_ELBO(num_particles=4, vectorize_particles=True)
        if is_elbo
        else gdregs.pyro.Bound(4, objective, "naive", "naive", vectorize_particles=True)
    )
    ours = gdregs.pyro.Bound(4, objective, "dregs", "gdregs", vectorize_particles=True)
    found = check(ours, peer, *programs)
    assert found.unbiased, found


def test_what_is_partly_observed():
    is_seen = torch.tensor([True, True, False, False])

    def imputed(data):
        centre = pyro.param("centre", torch.tensor(0.3))
        with pyro.plate("data", len(data)):
            x = pyro.sample("x", dist.Normal(centre, 1.0), obs=data, obs_mask=is_seen)
            pyro.sample("y", dist.Normal(x, 0.5), obs=data + 0.1)

    automatic = autoguide.AutoNormal(imputed)
    ours = gdregs.pyro.Bound(4, None, "dregs", "gdregs", vectorize_particles=True)
    naive = gdregs.pyro.Bound(4, None, "naive", "naive", vectorize_particles=True)
    found = check(ours, naive, imputed, automatic)
    assert found.unbiased, found


def test_the_default_learns_to_leave_a_pinned_prior_naive():
    data = torch.randn(50)

    def pinned(data):
        centre = pyro.param("centre", torch.tensor(0.3))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(centre, 1.0))
            pyro.sample("x", dist.Normal(z, 0.05), obs=data)

    def exact(data):
        raw = pyro.param("raw", torch.tensor(0.05))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(data, raw))

    def variance(loss):
        draws = [gradients(loss, pinned, exact, arguments=(data,))[-1] for _ in range(60)]
        return torch.stack(draws).var().item()  # of the centre

    auto = gdregs.pyro.Bound(4, vectorize_particles=True)
    for _ in range(60):
        gradients(auto, pinned, exact, arguments=(data,))
    assert abs(auto.auto.strengths[1]) < 0.05
    naive = gdregs.pyro.Bound(4, None, "naive", "naive", vectorize_particles=True)
    gdregs_prior = gdregs.pyro.Bound(4, None, "naive", "gdregs", vectorize_particles=True)
    assert variance(auto) < 2 * variance(naive) < variance(gdregs_prior) / 10


def test_svi_trains_and_evaluates():
    def local(data):
        centre = pyro.param("centre", torch.tensor(0.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(centre, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def amortised(data):
        slope = pyro.param("slope", torch.tensor(0.1))
        offset = pyro.param("offset", torch.tensor(0.0))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(slope * data + offset, 0.7))

    svi = SVI(
        local, amortised, pyro.optim.Adam({"lr": 0.03}),
        gdregs.pyro.Bound(8, vectorize_particles=True, num_gradient_samples=4),
    )  # fmt: skip
    for _ in range(400):
        svi.step(DATA)
    assert abs(pyro.param("centre").item() - DATA.mean().item()) < 0.1
    exact = -dist.Normal(pyro.param("centre"), math.sqrt(2)).log_prob(DATA).sum().item()
    assert exact - 1e-6 < svi.evaluate_loss(DATA) + 0.2
    loss = gdregs.pyro.Bound(8, vectorize_particles=True)(torch.nn.Identity(), torch.nn.Identity())
    assert isinstance(loss, torch.nn.Module)


def test_without_latents():
    def only(data):
        centre = pyro.param("centre", torch.tensor(0.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(centre, 1.0), obs=data)

    for vectorize in (True, False):
        bound = gdregs.pyro.Bound(3, vectorize_particles=vectorize)
        expected = -dist.Normal(0.0, 1.0).log_prob(DATA).sum().item()
        assert bound.loss(only, lambda data: None, DATA) == pytest.approx(expected)
        (gradient,) = gradients(bound, only, lambda data: None)
        assert gradient.item() == pytest.approx(-DATA.sum().item())


class Dropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, data):
        return self.linear(self.drop(data[:, None]))[:, 0]


def test_dropout_is_the_same_in_look_and_pull():
    """Otherwise the path would lead elsewhere than the sample has come from."""
    network = Dropped()
    seen = []
    network.drop.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))

    def amortised(data):
        pyro.module("network", network)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(network(data), 0.7))

    def local(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    ours = gdregs.pyro.Bound(
        6, None, "dregs", "gdregs", vectorize_particles=True, num_gradient_samples=2
    )
    ours.loss(local, amortised, DATA)
    seen.clear()
    gradients(ours, local, amortised)
    assert len(seen) > 1
    assert all(torch.equal(one, seen[0]) for one in seen)
    first = seen[0]
    gradients(ours, local, amortised)
    assert any(not torch.equal(one, first) for one in seen)  # but another one in the next step


def test_noise_of_each_particle_is_refused_where_it_would_change():
    drop = torch.nn.Dropout(0.5)

    def noisy(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(drop(z), 1.0), obs=data)

    def local(data):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(loc, 0.7))

    few = gdregs.pyro.Bound(6, vectorize_particles=True, num_gradient_samples=2)
    with pytest.raises(ValueError, match="random numbers of its own"):
        few.loss_and_grads(noisy, local, DATA)
    gdregs.pyro.Bound(6, vectorize_particles=True).loss_and_grads(noisy, local, DATA)


def test_refusals_name_the_site():
    def discrete(data):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(c, 1.0), obs=data.sum())

    def of_discrete(data):
        pyro.sample("c", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="Site 'c' is a discrete latent"):
        gdregs.pyro.Bound().loss(discrete, of_discrete, DATA)
    with pytest.raises(ValueError, match="latent site 'level' is missing in the guide"):
        gdregs.pyro.Bound().loss(model, local_guide, DATA)
    with pytest.raises(ValueError, match="site 'level' is missing in the model"):
        gdregs.pyro.Bound().loss(local_model, lambda data: (guide(data), local_y(data)), DATA)
    with pytest.raises(ValueError, match="num_particles must be at least 1; got 0"):
        gdregs.pyro.Bound(0)
    with pytest.raises(ValueError, match="posterior_estimator must be one of"):
        gdregs.pyro.Bound(2, posterior_estimator="path")
    with pytest.raises(
        TypeError, match=r"objective must be an instance of a gdregs\.torch\.Objective"
    ):
        gdregs.pyro.Bound(2, "iwae")

    def with_factor(data):
        local_guide(data)
        pyro.factor("extra", torch.tensor(0.3), has_rsample=False)

    with pytest.raises(ValueError, match="The guide adds the factor 'extra'"):
        gdregs.pyro.Bound(2, None, "dregs", "naive").loss(local_model, with_factor, DATA)


def local_y(data):
    with pyro.plate("more", len(data)):
        pyro.sample("y", dist.Gamma(2.0, 1.0))


def test_a_rule_of_ones_own():
    class Shifted(dist.Normal):
        pass

    class Unknown(dist.TorchDistribution):
        support = dist.constraints.real
        arg_constraints = {}  # noqa: RUF012
        has_rsample = True

        def __init__(self, loc):
            self.base = dist.Normal(loc, 1.0)
            super().__init__(self.base.batch_shape)

        def rsample(self, sample_shape=()):
            return self.base.rsample(sample_shape)

        def log_prob(self, value):
            return self.base.log_prob(value)

    def unknown_guide(data):
        pyro.sample("z", Unknown(pyro.param("loc", torch.tensor(0.1))))

    def simple(data):
        z = pyro.sample("z", Shifted(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data.sum())

    bound = gdregs.pyro.Bound(2, None, "dregs", "gdregs")
    with pytest.raises(TypeError, match="posterior: site 'z': Unknown has no re-expression rule"):
        bound.loss_and_grads(simple, unknown_guide, DATA)
