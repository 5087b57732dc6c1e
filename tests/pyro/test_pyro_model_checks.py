"""The doctor of Pyro programs finds each fault, nothing in sound ones, and leaves no trace."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import SVI, autoguide  # noqa: E402

import gdregs.pyro  # noqa: E402
from pyro_programs import DATA, guide, model  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")
AT_ONCE = {"vectorize_particles": True}


def failed(*programs, arguments=(DATA,), **options):
    report = gdregs.pyro.check_model(*programs, *arguments, **options)
    assert report.ok == (not any(row.ok is False for row in report.rows))
    assert all(row.remedy or "Error" in row.found for row in report.rows if row.ok is False)
    return {row.check for row in report.rows if row.ok is False}, report


def plain_guide(data):
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.7))


def model_of(likelihood, prior=lambda: dist.Normal(0.0, 1.0)):
    def program(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=data)

    return program


def seen(z):
    return dist.Normal(z, 1.0)


def test_sound_programs_have_no_fault():
    found, report = failed(model, guide, num_draws=60, **AT_ONCE)
    assert not found, str(report)
    rows = {row.check: row.found for row in report.rows}
    assert rows["sites"] == "latents level [], z [4]; observed x"
    assert rows["shapes"] == "batch []; event axes z['level'] [], z['z'] [4]; float64"
    assert rows["parameters"] == "tensors: posterior 2, prior 2, likelihood 0"
    assert rows["masks and scales"] == "none"
    assert rows["estimators of the posterior"] == "naive, stl, dregs, rws, rws-dregs"
    assert rows["estimators of the prior"] == "naive, gdregs, gdregs-mix"
    assert "of 1000" in rows["weights"]
    assert "standard errors" in rows["agreement"]
    assert all(row.check in str(report) for row in report.rows)


def test_masks_and_scales_of_each_site_are_told():
    def program(data):
        with pyro.plate("data", len(data)), poutine.scale(scale=0.5):
            with poutine.mask(mask=torch.tensor([True, True, False, True])):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", seen(z), obs=data)

    found, report = failed(program, plain_guide, **AT_ONCE)
    assert not found, str(report)
    (row,) = [row for row in report.rows if row.check == "masks and scales"]
    assert row.found == "model z: 25% masked, factor 0.5; model x: factor 0.5"


@pytest.mark.parametrize("options", [AT_ONCE, {}], ids=["at once", "one by one"])
def test_dropout_and_automatic_guides_are_no_fault(options):
    """Of particles at once it cannot be told whether they are independent: a remark."""
    torch.manual_seed(0)
    dropout = torch.nn.Dropout(0.3)
    program = model_of(lambda z: seen(dropout(z)))
    automatic = autoguide.AutoNormal(program)
    found, report = failed(program, automatic, **options)
    assert not found, str(report)
    (row,) = [row for row in report.rows if row.check == "samples are independent"]
    assert row.ok is (None if options else True)


def test_programs_that_do_not_fit():
    found, report = failed(model, lambda data: None)
    assert found == {"sites"}
    assert "'level' is missing in the guide" in report.rows[0].found
    assert failed(model, guide, num_samples=0)[0] == {"sites"}


def test_particles_that_depend_on_each_other():
    found, _ = failed(model_of(lambda z: seen(z - z.mean(0))), plain_guide, **AT_ONCE)
    assert found == {"samples are independent"}
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm1d(1)
    normed = model_of(lambda z: seen(layer(z.reshape(-1, 1)).reshape(z.shape)))
    found, _ = failed(normed, plain_guide, **AT_ONCE)
    assert found == {"samples are independent", "gradient"}
    found, _ = failed(normed, plain_guide)
    assert found == {"gradient"}  # where each particle is alone, datapoints are coupled
    assert layer.num_batches_tracked == 0


def test_noise_that_is_not_pytorchs():
    numbers = np.random.default_rng(0)
    found, _ = failed(model_of(lambda z: seen(z + numbers.normal())), plain_guide, **AT_ONCE)
    assert "deterministic" in found


def test_draws_without_digits():
    def small(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Gamma(pyro.param("c", torch.tensor(0.002)), 1.0))

    found, _ = failed(model_of(seen, lambda: dist.Gamma(0.5, 1.0)), small, **AT_ONCE)
    assert "precision" in found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(AT_ONCE, id="at once"),
        pytest.param({}, id="one by one", marks=pytest.mark.slow),
    ],
)
def test_angles_of_which_a_function_is_not_periodic(options):
    def angle(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.VonMises(pyro.param("loc", torch.tensor(2.0)), 1.5))

    def uniform():
        return dist.VonMises(0.0, 0.1)

    assert not failed(model_of(lambda z: seen(z.sin()), uniform), angle, **options)[0]
    found, _ = failed(model_of(seen, uniform), angle, **options)
    assert found == {"functions on the circle"}


def test_estimators_without_a_path():
    def mixture():
        weights = dist.Categorical(logits=torch.zeros(2))
        return dist.MixtureSameFamily(weights, dist.Beta(torch.ones(2), 2.0))

    def beta(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Beta(pyro.param("a", torch.tensor(2.0)), 1.5))

    _, report = failed(model_of(seen, mixture), beta, **AT_ONCE)
    rows = {row.check: row for row in report.rows}
    assert rows["estimators of the prior"].found == "naive"
    assert "no re-expression rule" in rows["estimators of the prior"].remedy


@pytest.mark.slow
def test_an_estimator_with_another_mean():
    def tight(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.5)), 0.3))

    options = {"posterior_estimator": "stl", "num_draws": 500, **AT_ONCE}
    found, _ = failed(model_of(seen), tight, **options)
    assert found == {"agreement"}


def test_no_trace_is_left():
    with pyro.plate("before", 2):
        pyro.param("slope", torch.tensor(0.7))
    store = pyro.get_param_store()
    slope = store._params["slope"]
    before = torch.get_rng_state()
    gdregs.pyro.check_model(model, guide, DATA, num_draws=3, **AT_ONCE)
    assert torch.equal(before, torch.get_rng_state())
    assert list(store.keys()) == ["slope"]
    assert store._params["slope"] is slope
    assert slope.grad is None


def test_what_was_checked_can_be_trained():
    automatic = autoguide.AutoNormal(model)
    gdregs.pyro.check_model(model, automatic, DATA, **AT_ONCE)
    loss = gdregs.pyro.Bound(4, **AT_ONCE)
    svi = SVI(model, automatic, pyro.optim.Adam({"lr": 0.05}), loss)
    losses = [svi.step(DATA) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
