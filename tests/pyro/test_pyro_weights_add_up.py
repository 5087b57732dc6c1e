"""The derivative of Pyro's loss by a constant added to the log-likelihood is -1 a datapoint."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402

import gdregs.torch as gt  # noqa: E402
from gdregs.pyro import Bound  # noqa: E402
from torch_families import families, make  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Singular sample"),  # of every Wishart's draw
    pytest.mark.usefixtures("clean"),
]
K, DATAPOINTS = 12, 3
CHUNKS = (5, 4, 6)
OBJECTIVES = (gt.ELBO(), gt.IWAE(), gt.VRIWAE(0.4), gt.VRIWAE(2.0), gt.JVI())
FAMILIES = families(dist)
NAMES = list(FAMILIES)


def derivative(name, objective, **options):
    def draw():
        # PyTorch has no batches of its temperatures.
        copies = () if name == "RelaxedOneHotCategorical" else (DATAPOINTS,)
        return pyro.sample("z", make(name, *copies, of=FAMILIES)[1])

    def model():
        constant = pyro.param("constant", torch.tensor(0.0))
        with pyro.plate("data", DATAPOINTS):
            z = draw()
            events = z.ndim - len(make(name, of=FAMILIES)[1].event_shape)
            terms = torch.sin(z).reshape(*z.shape[:events], -1).sum(-1)
            pyro.factor("x", constant + terms)

    def guide():
        with pyro.plate("data", DATAPOINTS):
            draw()

    pyro.clear_param_store()
    loss = Bound(K, objective, "dregs", "gdregs", vectorize_particles=True, **options)
    loss.loss_and_grads(model, guide)
    return pyro.param("constant").grad.item()


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_in_blocks(number):
    """Every family with every objective, and either with each size of blocks."""
    for place, objective in enumerate(OBJECTIVES):
        chunk_size = CHUNKS[(number + place) % len(CHUNKS)]
        found = derivative(NAMES[number], objective, chunk_size=chunk_size)
        assert found == pytest.approx(-DATAPOINTS, rel=1e-9)


@pytest.mark.parametrize("chunk_size", [None, *CHUNKS])
@pytest.mark.parametrize("name", ["Gamma", "Beta", "Normal"])
def test_of_kept_samples(name, chunk_size):
    """M = 5: of each draw, since no v is negative."""
    for objective in OBJECTIVES[:-1]:
        found = derivative(name, objective, chunk_size=chunk_size, num_gradient_samples=5)
        assert found == pytest.approx(-DATAPOINTS, rel=1e-9)
