"""A program that `torch.compile` compiles whole, with the bound in it, has the same gradient."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.shared.tables import PriorEstimator  # noqa: E402

dist = torch.distributions

# PyTorch's own, of what its compiler looks at.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def annotations_are_not_checked(request):
    if request.config.getoption("jaxtyping_packages"):
        pytest.skip("annotations are checked, which cannot be compiled: --jaxtyping-packages=")


def slow(*case, **options):
    """A case for every run: each is a program that takes seconds to compile."""
    return pytest.param(*case, marks=pytest.mark.slow, **options)


def nightly(*case, **options):
    """Another one of the same property."""
    return pytest.param(*case, marks=pytest.mark.nightly, **options)


class Step(torch.nn.Module):
    """Two layers, posterior bottom-up and prior top-down, with a bound that takes any options."""

    def __init__(self, generator=None):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"encoder": (5, 6), "upper": (3, 4), "prior": (2, 6), "decoder": (3, 5)}
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, torch.nn.Linear(inputs, outputs, dtype=torch.float64))
        self.generator = generator

    def forward(self, x, options):
        def normal(parameters):
            loc, raw = parameters.chunk(2, -1)
            scale = torch.nn.functional.softplus(raw) + 0.1
            return dist.Independent(dist.Normal(loc, scale, validate_args=False), 1)

        top = normal(torch.zeros(len(x), 4, dtype=x.dtype))
        return gt.bound(
            gt.Hierarchy(
                {
                    "one": (normal(self.encoder(x)), ()),
                    "two": (lambda one: normal(self.upper(one.tanh())), ("one",)),
                }
            ),
            gt.Hierarchy(
                {"two": (top, ()), "one": (lambda two: normal(self.prior(two.tanh())), ("two",))}
            ),
            lambda z: dist.Normal(self.decoder(z["one"]), 0.5).log_prob(x).sum(-1),
            num_samples=8, generator=self.generator, **{"num_gradient_samples": 3, **options},
        ).mean()  # fmt: skip


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def value_and_gradients(function, parameters):
    torch.manual_seed(3)
    value = function()
    return value.detach(), torch.autograd.grad(value, parameters)


def hold_against_eager(function, parameters, *, is_whole=True):
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=is_whole, dynamic=False)
    value, expected = value_and_gradients(function, parameters)
    found_value, found = value_and_gradients(compiled, parameters)
    assert torch.equal(found_value, value)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        assert theirs.abs().max() > 0


NO_PATH = {
    "posterior_estimator": "rws",
    "prior_estimator": "naive",
    "num_gradient_samples": None,
    "objective": gt.JVI(),
}


@pytest.mark.parametrize(
    "options",
    [
        slow({}, id="dregs"),
        slow(NO_PATH, id="no path, all samples, JVI"),
        nightly({"posterior_estimator": "naive", "prior_estimator": "naive"}, id="naive"),
        nightly({"posterior_estimator": "stl", "prior_estimator": "gdregs-mix"}, id="stl, mix"),
        nightly({"posterior_estimator": "rws"}, id="rws"),
        nightly({"posterior_estimator": "rws-dregs"}, id="rws-dregs"),
        nightly({"num_gradient_samples": None}, id="all samples"),
        nightly({"objective": gt.ELBO(), "posterior_estimator": "stl"}, id="ELBO"),
    ],
)
def test_a_step_is_one_program(options):
    step = Step()
    hold_against_eager(lambda: step(X, options), list(step.parameters()))


ALPHAS = {"prior_estimator": PriorEstimator({"one": 0.3, "two": 0.8})}


@pytest.mark.parametrize(
    "options",
    [
        slow({"chunk_size": 2}, id="blocks"),
        slow({**ALPHAS, "num_gradient_samples": None}, id="alphas of all samples"),
        nightly({"chunk_size": 3, "num_gradient_samples": None}, id="blocks of all samples"),
        nightly(ALPHAS, id="alphas"),
    ],
)
def test_what_is_decided_on_the_way_back_stays_out_of_the_program(options):
    step = Step()
    hold_against_eager(lambda: step(X, options), list(step.parameters()), is_whole=False)


@pytest.mark.parametrize("num_gradient_samples", [slow(3), nightly(None)])
def test_a_generator_stays_out_of_the_program(num_gradient_samples):
    generator = torch.Generator()
    step = Step(generator)

    def function():
        return step(X, {"num_gradient_samples": num_gradient_samples})

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", dynamic=False)
    for one in (function, compiled):
        generator.manual_seed(2)
        found = value_and_gradients(one, list(step.parameters()))
        if one is function:
            value, expected = found
    assert torch.equal(found[0], value)
    for ours, theirs in zip(found[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def double(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch says so of every Wishart's draw
@pytest.mark.parametrize(
    ("build", "values", "is_whole"),
    [
        slow(dist.Beta, [2.0, 1.4], True, id="Beta"),  # draws are moved into a support
        slow(  # a path that draws, inside of another
            lambda loc, factor, diagonal: dist.Independent(
                dist.LowRankMultivariateNormal(loc, factor, diagonal), 0
            ),
            [[0.2, -0.4], [[0.6], [0.3]], [0.5, 0.7]],
            True,
            id="LowRankMultivariateNormal",
        ),
        # PyTorch draws it by rejection, in a loop
        slow(dist.VonMises, [0.4, 1.7], False, id="VonMises"),
        nightly(dist.LogNormal, [0.3, 0.4], True, id="LogNormal"),
        nightly(dist.Gamma, [2.5, 1.3], True, id="Gamma"),  # an implicit path
        nightly(dist.StudentT, [6.0, 0.2, 0.7], True, id="StudentT"),  # a path that draws
        nightly(
            lambda w, m, s: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, s)),
            [[0.3, -0.2], [-1.0, 1.5], [0.7, 0.5]],
            True,
            id="mixture",
        ),
    ],
)
def test_families_and_what_their_paths_draw(build, values, is_whole):
    """Both ends of a path that draws random numbers are of the same ones."""
    posterior, prior = (list(map(double, values)) for _ in range(2))

    def function():
        return gt.bound(
            build(*posterior), build(*prior),
            lambda z: -(z - 0.4).square().reshape(len(z), -1).sum(-1),
            num_samples=8, num_gradient_samples=3,
        )  # fmt: skip

    hold_against_eager(function, posterior + prior, is_whole=is_whole)


@pytest.mark.slow
def test_weights_of_zero_add_nothing():
    loc, mean = double([0.3, -0.2]), double([0.1, 0.2])

    def function():
        return gt.bound(
            dist.Normal(loc, 1.0), dist.Normal(mean, 1.2),
            lambda z: torch.where(z > 0, -((z - 1) ** 2), -torch.inf),
            num_samples=8, num_gradient_samples=6,
        ).sum()  # fmt: skip

    hold_against_eager(function, [loc, mean])


class Noisy(torch.nn.Module):
    """One layer, with dropout in the decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Linear(5, 6), torch.nn.Linear(3, 5)
        self.decode = torch.nn.Sequential(self.decoder, torch.nn.Dropout(0.5))

    def forward(self, **options):
        loc, raw = self.encoder(X.float()).chunk(2, -1)
        scale = torch.nn.functional.softplus(raw) + 0.1
        q = dist.Independent(dist.Normal(loc, scale, validate_args=False), 1)
        p = dist.Independent(dist.Normal(torch.zeros(6, 3), 1.0, validate_args=False), 1)
        return gt.bound(
            q, p, lambda z: dist.Normal(self.decode(z), 0.5).log_prob(X.float()).sum(-1),
            num_samples=8, **options,
        ).mean()  # fmt: skip


@pytest.mark.parametrize("options", [slow({}), nightly({"num_gradient_samples": 3})])
def test_noise_of_a_network_is_refused_in_a_program(options):
    """It is found out when the program runs, and not where nothing is drawn."""
    model = Noisy()
    torch.compiler.reset()
    step = torch.compile(lambda: model(**options), backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"draws random numbers \(dropout\)"):
        step()
    model.eval()
    step().backward()
    assert model.decoder.weight.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.slow
def test_the_pull_of_densities_with_factors_stays_out_of_the_program():
    """Where the samples' weights are still computed inside."""
    theta = torch.tensor(0.3, requires_grad=True)
    factor = torch.tensor([0.5, 2.0, 0.0])

    def loss():
        posterior = gt.with_factor(dist.Normal(theta.expand(3), 0.8), 0.5)
        prior = gt.with_factor(dist.Normal(theta.expand(3) ** 2, 1.0), factor)
        return gt.bound(posterior, prior, lambda z: -(z**2), num_samples=4).sum()

    found = []
    for run in (loss, torch.compile(loss, backend="eager")):
        torch.manual_seed(0)
        value = run()
        found.append((value.detach(), torch.autograd.grad(value, theta)[0]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.slow
def test_batch_norm_over_samples_is_refused_in_a_program():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
    loc = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)

    def loss():
        normal = dist.Independent(dist.Normal(loc, 1.0, validate_args=False), 1)
        return gt.bound(
            normal, normal, lambda z: network(z.reshape(-1, 2)).reshape(z.shape).sum(-1),
            num_samples=4,
        ).sum()  # fmt: skip

    with pytest.raises(Exception, match="normalises over the importance samples"):
        torch.compile(loss, backend="aot_eager")()


@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"num_gradient_samples": 3}])
def test_noise_of_a_compiled_network_is_that_of_its_samples(options):
    """Where it has to be recorded, PyTorch runs the network as it stands."""
    model = Noisy()
    value, expected = value_and_gradients(lambda: model(**options), list(model.parameters()))
    torch.compiler.reset()
    model.decode = torch.compile(model.decode, backend="aot_eager", dynamic=False)
    found_value, found = value_and_gradients(lambda: model(**options), list(model.parameters()))
    torch.testing.assert_close(found_value, value)
    torch.testing.assert_close(found, expected)
