"""The doctor finds each fault of a model, nothing in one that has none, and leaves no trace."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions
X = torch.tensor([1.0, -0.5])


def leaf(value):
    return torch.tensor(value, requires_grad=True)


def posterior():
    return dist.Normal(leaf(0.3) * X, 0.8)


def prior():
    return dist.Normal(leaf(0.0).expand(2), 1.0)


def seen(z):
    return dist.Normal(z, 1.0).log_prob(X)


def failed(*parts, **options):
    report = gt.check_model(*parts, generator=torch.Generator().manual_seed(0), **options)
    assert report.ok == (not any(row.ok is False for row in report.rows))
    assert all(row.remedy or "Error" in row.found for row in report.rows if row.ok is False)
    return {row.check for row in report.rows if row.ok is False}, report


def test_a_sound_model_has_no_fault():
    masked = gt.with_factor(prior(), torch.tensor([1.0, 0.0]))
    found, report = failed(posterior(), masked, seen, num_draws=100)
    assert not found, str(report)
    rows = {row.check: row.found for row in report.rows}
    assert rows["shapes"] == "batch [2]; event axes z []; float32"
    assert rows["parameters"] == "tensors: posterior 1, prior 1, likelihood 0"
    assert rows["masks and scales"] == "prior of z: 50% masked"
    assert rows["estimators of the posterior"] == "naive, stl, dregs, rws, rws-dregs"
    assert rows["estimators of the prior"] == "naive, gdregs, gdregs-mix"
    assert "of 1000" in rows["weights"]
    assert "standard errors" in rows["agreement"]
    assert all(row.check in str(report) for row in report.rows)


class Layers:
    """Two layers of vectors, whose decoder is of these modules."""

    def __init__(self, *modules):
        torch.manual_seed(0)
        self.encoder, self.lower = torch.nn.Linear(5, 3), torch.nn.Linear(3, 3)
        self.decoder = torch.nn.Sequential(torch.nn.Linear(3, 4), *modules, torch.nn.Linear(4, 5))
        self.x = torch.randn(6, 5)

    def parts(self):
        def normal(loc):
            return dist.Independent(dist.Normal(loc, 0.7), 1)

        above = normal(self.encoder(self.x))
        posterior = gt.Hierarchy({"a": (above, ()), "b": (lambda a: normal(self.lower(a)), ("a",))})
        prior = gt.Hierarchy(
            {"b": (normal(torch.zeros(6, 3)), ()), "a": (lambda b: normal(b.sin()), ("b",))}
        )
        return posterior, prior, self.likelihood

    def likelihood(self, z):
        logits = self.decoder((z["a"] + z["b"]).flatten(0, 1)).unflatten(0, z["a"].shape[:2])
        return dist.Normal(logits, 1.0).log_prob(self.x).sum(-1)


@pytest.mark.parametrize("modules", [(), (torch.nn.Dropout(0.4),)], ids=["plain", "dropout"])
def test_layers_and_noise_of_their_own_are_no_fault(modules):
    found, report = failed(*Layers(*modules).parts())
    assert not found, str(report)
    assert report.rows[0].found == "batch [6]; event axes z['a'] [3], z['b'] [3]; float32"
    (row,) = [row for row in report.rows if row.check == "parameters"]
    assert row.found == "tensors: posterior 4, prior 0, likelihood 4"


def test_noise_that_belongs_to_no_sample_is_a_remark():
    """It cannot be told whether samples are independent."""

    def likelihood(z):
        return seen(z) + torch.rand(len(z), 1)  # one number for all datapoints

    found, report = failed(posterior(), prior(), likelihood)
    assert not found, str(report)
    (row,) = [row for row in report.rows if row.check == "samples are independent"]
    assert row.ok is None
    assert "draws random numbers of shape" in row.found


def test_shapes_that_do_not_fit():
    found, report = failed(posterior(), dist.Normal(torch.zeros(3), 1.0), seen)
    assert found == {"shapes"}
    assert len(report.rows) == 1
    found, report = failed(posterior(), prior(), lambda z: seen(z).sum(-1))
    assert found == {"shapes"}
    assert "likelihood" in report.rows[0].found


def test_samples_that_depend_on_each_other():
    found, report = failed(posterior(), prior(), lambda z: seen(z - z.mean(0)))
    assert found == {"samples are independent"}
    assert "likelihood: a sample alone" in str(report)
    found, _ = failed(*Layers(torch.nn.BatchNorm1d(4)).parts())
    assert found == {"samples are independent", "gradient"}
    assert not failed(*Layers(torch.nn.BatchNorm1d(4).eval()).parts())[0]


def test_noise_that_is_not_pytorchs():
    numbers = np.random.default_rng(0)
    found, _ = failed(posterior(), prior(), lambda z: seen(z) + numbers.normal())
    assert "deterministic" in found


def test_draws_without_digits():
    few = dist.Dirichlet(torch.full((3,), 0.01))
    found, report = failed(few, dist.Dirichlet(torch.ones(3)), lambda z: z[..., 0])
    assert found == {"precision"}
    assert "of z" in str(report)
    double = dist.Dirichlet(torch.full((3,), 0.3, dtype=torch.float64))
    ones = dist.Dirichlet(torch.ones(3, dtype=torch.float64))
    assert not failed(double, ones, lambda z: z[..., 0])[0]


def test_angles_of_which_a_function_is_not_periodic():
    angle, above = dist.VonMises(leaf(2.0), 1.5), dist.VonMises(leaf(0.0), 0.7)
    found, report = failed(angle, above, torch.cos)
    assert not found, str(report)
    assert "the same density at -pi and pi" in str(report)
    found, report = failed(angle, above, torch.tanh)
    assert found == {"functions on the circle"}
    assert "other values at -pi and pi: likelihood at z" in str(report)
    assert failed(angle, dist.Normal(leaf(0.3), 1.0), torch.cos)[0] == found


def test_estimators_without_a_path():
    weights = dist.Categorical(logits=torch.zeros(2))
    mixture = dist.MixtureSameFamily(weights, dist.Beta(torch.ones(2), 2.0))
    _, report = failed(dist.Beta(leaf(2.0), 1.0), mixture, torch.log)
    rows = {row.check: row for row in report.rows}
    assert rows["estimators of the prior"].found == "naive"
    assert rows["estimators of the prior"].ok is None
    assert "no re-expression rule" in rows["estimators of the prior"].remedy
    assert "no re-expression rule" in rows["gradient"].found  # gdregs, by default
    assert not failed(dist.Beta(leaf(2.0), 1.0), mixture, torch.log, prior_estimator="naive")[0]


def test_a_gradient_that_is_not_finite():
    scale = leaf(0.0)
    found, _ = failed(posterior(), prior(), lambda z: seen(z) - scale.abs().sqrt())
    assert found == {"gradient"}


def test_weights_that_are_all_zero():
    far = dist.Uniform(leaf(5.0).detach().expand(2), 6.0)
    found, _ = failed(posterior(), far, seen, prior_estimator="naive")
    assert "weights" in found


@pytest.mark.slow
def test_an_estimator_with_another_mean():
    loose = dist.Normal(leaf(1.0) + X, 0.3)
    found, _ = failed(loose, prior(), seen, posterior_estimator="stl", num_draws=1500)
    assert found == {"agreement"}


def test_no_trace_is_left():
    layers = Layers(torch.nn.BatchNorm1d(4))
    parameters = [*layers.encoder.parameters(), *layers.decoder.parameters()]
    parameters[0].grad = torch.ones_like(parameters[0])
    generator = torch.Generator().manual_seed(3)
    buffers = [buffer.clone() for buffer in layers.decoder.buffers()]
    grads = [one.grad for one in parameters]

    def states():
        return torch.get_rng_state(), generator.get_state()

    before = states()
    parts = layers.parts()
    gt.check_model(*parts, generator=generator, num_draws=3)
    after = states()
    assert all(map(torch.equal, before, after))
    assert all(map(torch.equal, buffers, layers.decoder.buffers()))
    assert all(one.grad is other for one, other in zip(parameters, grads, strict=True))
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    # The graph above the posterior remains too.
    bound = gt.bound(*parts, num_samples=2, posterior_estimator="naive", prior_estimator="naive")
    bound.sum().backward()


def test_arguments_that_are_wrong_are_rows():
    assert failed(posterior(), prior(), 3)[0] == {"shapes"}
    assert failed(posterior(), prior(), seen, num_samples=0)[0] == {"shapes"}
    assert failed(posterior(), prior(), seen, posterior_estimator="none")[0] == {"gradient"}
