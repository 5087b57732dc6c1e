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
import torch_means  # noqa: E402
from gdregs.torch import digits  # noqa: E402
from pyro_programs import (  # noqa: E402
    DATA,
    assert_unbiased,
    copies_of,
    data_plate,
    gradients,
    guide,
    local_guide,
    local_model,
    model,
    parameter,
)

pytestmark = pytest.mark.usefixtures("clean")

Bound = gdregs.pyro.Bound
AT_ONCE = {"vectorize_particles": True}


def same_draw(*losses, programs, arguments=(DATA,)):
    """Each one's loss and gradients, from the same random numbers."""
    found = []
    for loss in losses:
        loss.loss(*programs, *arguments)  # looks at the programs, which takes numbers
        pyro.set_rng_seed(1)
        value = loss.loss(*programs, *arguments)
        pyro.set_rng_seed(1)
        found.append((value, gradients(loss, *programs, arguments=arguments)))
    return found


@pytest.mark.parametrize("programs", [(model, guide), (local_model, local_guide)])
@pytest.mark.parametrize("objective", ["IWAE", "VR-IWAE", "ELBO"])
def test_gradients_are_unbiased(programs, objective):
    """Latents in the data's plate and above, all particles at once and one by one, M of them."""
    objective, biased = {
        "IWAE": (None, "stl"),
        "VR-IWAE": (gdregs.torch.VRIWAE(0.5), "stl"),
        "ELBO": (gdregs.torch.ELBO(), "rws"),  # of which STL is unbiased
    }[objective]
    suspects = {
        name: Bound(4, objective, "dregs", "gdregs", **options)
        for name, options in {
            "all": AT_ONCE,
            "M = 2": {"num_gradient_samples": 2, **AT_ONCE},
            "M = 2, blocks": {"num_gradient_samples": 2, "chunk_size": 3, **AT_ONCE},
            "M = 2, one by one": {"num_gradient_samples": 2},
        }.items()
    }
    suspects["biased"] = Bound(4, objective, biased, "naive", **AT_ONCE)
    naive = Bound(4, objective, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, *programs, biased=["biased"])


def test_the_naive_draw_is_renyis_and_the_elbos():
    renyi = {"num_particles": 4, **AT_ONCE}
    for objective, peer in (
        (gdregs.torch.IWAE(), RenyiELBO(alpha=0, **renyi)),
        (gdregs.torch.VRIWAE(0.5), RenyiELBO(alpha=0.5, **renyi)),
        (gdregs.torch.ELBO(), Trace_ELBO(**renyi)),
    ):
        ours = Bound(4, objective, "naive", "naive", **AT_ONCE)
        (value, found), (expected_value, expected) = same_draw(ours, peer, programs=(model, guide))
        assert value == pytest.approx(expected_value)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("vectorize", [True, False])
def test_subsampling_stands_for_the_whole_data(vectorize):
    """Two halves, each of which stands for the whole, on average."""
    options = {"vectorize_particles": vectorize}
    whole = Bound(3, None, "naive", "naive", **AT_ONCE)
    part = Bound(3, None, "dregs", "gdregs", **options)
    halves = torch.tensor([0, 1]), torch.tensor([2, 3])
    programs = local_model, local_guide
    part.loss(*programs, DATA.expand(2, -1), halves[0])

    def draw(copies):
        data = DATA.expand(copies, -1)
        one, other = (gradients(part, *programs, arguments=(data, half)) for half in halves)
        half = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
        return {"halves": half, "one of them": one}, gradients(whole, *programs, arguments=(data,))

    pyro.clear_param_store()
    torch_means.assert_unbiased(draw, biased=["one of them"])
    copies = DATA.expand(2000, -1)
    losses = torch.tensor(
        [
            [
                whole.loss(*programs, copies),
                sum(part.loss(*programs, copies, half) for half in halves) / 2,
            ]
            for _ in range(8)
        ]
    )
    difference = losses[:, 0] - losses[:, 1]
    assert difference.mean().abs() < 6 * difference.std() / 8**0.5  # by chance once in 2,000 times
    assert difference.std() < 0.05 * losses.mean()


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_random_subsample_is_the_same_for_both_programs(vectorize):
    def model(data):
        centre = pyro.param("centre", torch.full((4,), 0.3))
        with pyro.plate("data", len(data), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(centre[index], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(data):
        loc = pyro.param("loc", torch.full((4,), 0.1))
        with pyro.plate("data", len(data), subsample_size=2) as index:
            pyro.sample("z", dist.Normal(loc[index], 0.6))

    bound = Bound(3, None, "dregs", "gdregs", vectorize_particles=vectorize)
    seen = set()
    for _ in range(12):
        of_guide, of_model = (one != 0 for one in gradients(bound, model, guide))
        assert of_guide.sum() == 2
        assert torch.equal(of_guide, of_model)
        seen.add(tuple(of_guide.tolist()))
    assert len(seen) > 2


def test_a_subsample_inside_of_one_weight_is_refused():
    bound = Bound(3)
    with pytest.raises(ValueError, match="'data' is subsampled but does not enclose every site"):
        bound.loss(model, guide, DATA, 2)
    Bound(3, gdregs.torch.ELBO()).loss(model, guide, DATA, 2)


def masked(program, data):
    with poutine.scale(scale=2.5), poutine.mask(mask=data > 0):
        program(data)


MASKED = (lambda data: masked(local_model, data)), (lambda data: masked(local_guide, data))


@pytest.mark.parametrize("biased", ["rws", "stl"], ids=["ELBO", "IWAE"])
def test_scale_and_mask_are_as_in_pyro(biased):
    objective = gdregs.torch.ELBO() if biased == "rws" else gdregs.torch.IWAE()
    naive = Bound(4, objective, "naive", "naive", **AT_ONCE)
    suspects = {
        "dregs": Bound(4, objective, "dregs", "gdregs", **AT_ONCE),
        "biased": Bound(4, objective, biased, "naive", **AT_ONCE),
    }
    assert_unbiased(suspects, naive, *MASKED, biased=["biased"])
    if biased == "rws":
        peer = Trace_ELBO(num_particles=4, **AT_ONCE)
        pyro.clear_param_store()
        (value, found), (expected_value, expected) = same_draw(naive, peer, programs=MASKED)
        assert value == pytest.approx(expected_value)
        torch.testing.assert_close(found, expected)


def test_what_is_partly_observed():
    is_seen = torch.tensor([True, True, False, False])

    def imputed(data):
        centre = parameter("centre", 0.3, data)
        with pyro.plate("copies", len(data), dim=-2), data_plate(data):
            x = pyro.sample("x", dist.Normal(centre, 1.0), obs=data, obs_mask=is_seen)
            pyro.sample("y", dist.Normal(x, 0.5), obs=data + 0.1)

    automatic = autoguide.AutoNormal(imputed)
    suspects = {
        "dregs": Bound(4, None, "dregs", "gdregs", **AT_ONCE),
        "biased": Bound(4, None, "stl", "naive", **AT_ONCE),
    }
    naive = Bound(4, None, "naive", "naive", **AT_ONCE)
    assert_unbiased(suspects, naive, imputed, automatic, biased=["biased"])


def test_the_default_learns_to_leave_a_pinned_prior_naive():
    data = torch.randn(10)

    def pinned(data):
        centre = parameter("centre", 0.3, data)
        with copies_of(data), data_plate(data):
            z = pyro.sample("z", dist.Normal(centre, 1.0))
            pyro.sample("x", dist.Normal(z, 0.05), obs=data)

    def exact(data):
        raw = parameter("raw", 0.05, data)
        with copies_of(data), data_plate(data):
            pyro.sample("z", dist.Normal(data, raw))

    auto = Bound(4, **AT_ONCE)
    for _ in range(40):
        gradients(auto, pinned, exact, arguments=(data,))
    assert abs(auto.auto.strengths[1]) < 0.05
    pyro.clear_param_store()

    def variance(*estimators):
        loss = Bound(4, None, *estimators, **AT_ONCE)
        found = gradients(loss, pinned, exact, arguments=(data.expand(1000, -1),))
        return found[-1].var().item()  # of the centre

    naive = variance("naive", "naive")
    assert variance(*auto.auto.estimators) < 2 * naive < variance("naive", "gdregs") / 10


@pytest.mark.slow
def test_svi_trains_and_evaluates():
    data = DATA.repeat(5)

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
        local, amortised, pyro.optim.Adam({"lr": 0.05}),
        Bound(8, num_gradient_samples=4, **AT_ONCE),
    )  # fmt: skip
    for _ in range(60):
        svi.step(data)
    assert abs(pyro.param("centre").item() - data.mean().item()) < 0.1
    exact = -dist.Normal(pyro.param("centre"), math.sqrt(2)).log_prob(data).sum().item()
    assert exact - 1 < svi.evaluate_loss(data) < exact + 1
    loss = Bound(8, **AT_ONCE)(torch.nn.Identity(), torch.nn.Identity())
    assert isinstance(loss, torch.nn.Module)


def test_without_latents():
    def only(data):
        centre = pyro.param("centre", torch.tensor(0.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(centre, 1.0), obs=data)

    for vectorize in (True, False):
        bound = Bound(3, vectorize_particles=vectorize)
        expected = -dist.Normal(0.0, 1.0).log_prob(DATA).sum().item()
        assert bound.loss(only, lambda data: None, DATA) == pytest.approx(expected)
        (gradient,) = gradients(bound, only, lambda data: None)
        assert gradient.item() == pytest.approx(-DATA.sum().item())


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("estimators", [("naive", "naive"), ("dregs", "gdregs")])
def test_latents_outside_of_the_models_support_have_no_weight(vectorize, estimators):
    def positive(data):
        rate = pyro.param("rate", torch.tensor(1.5))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Exponential(rate))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def anywhere(data):
        loc = pyro.param("loc", torch.tensor(0.2))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    bound = Bound(16, None, *estimators, vectorize_particles=vectorize)
    with pyro.validation_enabled(False):  # Pyro's own check would refuse such a guide
        assert math.isfinite(bound.loss(positive, anywhere, DATA))
        found = gradients(bound, positive, anywhere)
    assert all(one != 0 and one.isfinite() for one in found)


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

    ours = Bound(6, None, "dregs", "gdregs", vectorize_particles=True, num_gradient_samples=2)
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

    few = Bound(6, vectorize_particles=True, num_gradient_samples=2)
    with pytest.raises(ValueError, match="random numbers of its own"):
        few.loss_and_grads(noisy, local, DATA)
    Bound(6, vectorize_particles=True).loss_and_grads(noisy, local, DATA)


class Normalised(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))

    def forward(self, values):
        return self.layers(values.reshape(-1, 1)).reshape(values.shape)


@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 2}])
@pytest.mark.parametrize("vectorize", [True, False])
def test_batch_norm_over_the_data_is_allowed_and_over_latents_is_not(vectorize, options):
    encoder, decoder = Normalised(), Normalised()

    def amortised(data):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(encoder(data), 1.0))

    def local(data, network=torch.nn.Identity()):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(network(z), 1.0), obs=data)

    bound = Bound(3, None, "dregs", "gdregs", vectorize_particles=vectorize, **options)
    bound.loss(local, amortised, DATA)
    before = encoder.layers[1].num_batches_tracked.item()
    assert math.isfinite(bound.loss_and_grads(local, amortised, DATA))
    runs = 1 if vectorize else 3
    assert encoder.layers[1].num_batches_tracked == before + runs
    with pytest.raises(ValueError, match=r"normalises over the importance samples or datapoints"):
        bound.loss_and_grads(lambda data: local(data, decoder), amortised, DATA)
    Bound(3, None, "naive", "naive", **AT_ONCE).loss_and_grads(
        lambda data: local(data, decoder), amortised, DATA
    )


def test_refusals_name_the_site():
    def discrete(data):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(c, 1.0), obs=data.sum())

    def of_discrete(data):
        pyro.sample("c", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="Site 'c' is a discrete latent"):
        Bound().loss(discrete, of_discrete, DATA)
    with pytest.raises(ValueError, match="latent site 'level' is missing in the guide"):
        Bound().loss(model, local_guide, DATA)
    with pytest.raises(ValueError, match="site 'level' is missing in the model"):
        Bound().loss(local_model, lambda data: (guide(data), local_y(data)), DATA)
    with pytest.raises(ValueError, match="num_particles must be at least 1; got 0"):
        Bound(0)
    with pytest.raises(ValueError, match="posterior_estimator must be one of"):
        Bound(2, posterior_estimator="path")
    with pytest.raises(
        TypeError, match=r"objective must be an instance of a gdregs\.torch\.Objective"
    ):
        Bound(2, "iwae")

    def with_factor(data):
        local_guide(data)
        pyro.factor("extra", torch.tensor(0.3), has_rsample=False)

    with pytest.raises(ValueError, match="The guide adds the factor 'extra'"):
        Bound(2, None, "dregs", "naive").loss(local_model, with_factor, DATA)


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

    bound = Bound(2, None, "dregs", "gdregs")
    with pytest.raises(TypeError, match="posterior: site 'z': Unknown has no re-expression rule"):
        bound.loss_and_grads(simple, unknown_guide, DATA)


def test_draws_without_digits_are_warned_of(monkeypatch):
    monkeypatch.setattr(digits, "_WARNED", set())

    def sparse(data):
        pyro.sample("z", dist.Dirichlet(torch.full((3,), 0.01, dtype=torch.float32)))

    with pytest.warns(UserWarning, match=r"Draws of a Dirichlet with the concentration 0\.01"):
        Bound(2).loss(sparse, sparse, DATA)
