"""The doctor for numpyro programs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from gdregs.model_checks import check_parts, precision, share_at_an_end
from gdregs.numpyro.bound import Bound
from gdregs.numpyro.sites import latents, sample_sites
from gdregs.objectives import IWAE
from gdregs.reexpression.factors import factor_of
from gdregs.shared.report import Report, Row, attempt
from gdregs.shared.rows import describe_factor, row_of_factors


def check_model(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    key: PRNGKeyArray,
    num_samples: int = 8,
    params: dict[str, Any] | None = None,
    objective: Any = IWAE(),
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_draws: int | None = None,
    **kwargs: Any,
) -> Report:
    """Check a model and a guide before they are trained, and say in words what to mend.

    As `gdregs.check_model`, with the masks and scales of each site.

    Args:
        model: A numpyro program.
        guide: Its guide.
        *args: What both are called with.
        key: A JAX random key.
        num_samples: K, the number of particles.
        params: The values of the parameters, as `SVI.get_params` returns them; their initial ones
            unless given.
        objective: As in `gdregs.numpyro.Bound`.
        posterior_estimator: As there: the one whose gradient is looked at.
        prior_estimator: As there.
        num_draws: If given, the mean of so many gradients is compared with that of naive ones.
        **kwargs: What both are called with.

    Returns:
        A report, with `rows`, `ok`, and a table as its `str`. Errors of programs are rows of it.

    Example:
        >>> import gdregs.numpyro, jax, numpyro, numpyro.distributions as dist
        >>> def model(x):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.7))
        >>> report = gdregs.numpyro.check_model(model, guide, 2.0, key=jax.random.key(0))
        >>> report.ok
        True
    """
    read: list[Any] = []

    def run() -> Iterator[Row]:
        traces = _traces(model, guide, key, params, args, kwargs)
        known = {
            name: site["value"]
            for trace in traces
            for name, site in trace.items()
            if site["type"] == "param"
        }
        loss = Bound(num_samples, objective, "naive", "naive")
        _, posterior, prior, _ = loss._read(key, known, model, guide, args, kwargs)
        if not prior.drawn:
            raise ValueError("The guide has no latents: nothing is estimated.")
        read.append((posterior, prior, traces))
        yield Row("sites", _listed(traces))

    rows = attempt("sites", run)
    if not read:
        return Report(tuple(rows))
    posterior, prior, traces = read[0]
    options = {"key": key, "num_samples": num_samples, "objective": objective}
    estimators = {"posterior_estimator": posterior_estimator, "prior_estimator": prior_estimator}
    report = check_parts(
        (posterior, prior, prior.likelihood),
        options,
        estimators,
        num_draws,
        lambda: _of_sites(traces, prior.layout.scale),
    )
    return Report((*rows, *report.rows))


def _traces(model, guide, key, params, args, kwargs) -> tuple[Any, Any]:
    """Guide and model at one draw."""
    of_guide, of_model = jax.random.split(key)
    guide = handlers.seed(guide, of_guide)
    if params is not None:
        model, guide = (handlers.substitute(one, data=params) for one in (model, guide))
    guide_trace = handlers.trace(guide).get_trace(*args, **kwargs)
    replayed = handlers.replay(handlers.seed(model, of_model), guide_trace)
    return handlers.trace(replayed).get_trace(*args, **kwargs), guide_trace


def _listed(traces: tuple[Any, Any]) -> str:
    model_trace, _ = traces
    sites = sample_sites(model_trace)
    shapes = {name: list(np.shape(site["value"])) for name, site in latents(sites).items()}
    drawn = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    seen = ", ".join(name for name in sites if name not in shapes)
    return f"latents {drawn or 'none'}; observed {seen or 'none'}"


def _of_sites(traces: tuple[Any, Any], scale: float) -> Iterator[Row]:
    found, ends = [], []
    for program, trace in zip(("model", "guide"), traces, strict=True):
        for name, site in sample_sites(trace).items():
            fn, value = site["fn"], jnp.asarray(site["value"])
            of_site = 1.0 if site["scale"] is None else np.asarray(site["scale"]) / scale
            factor = np.broadcast_to(factor_of(fn, value), np.shape(value))
            if np.any(factor != 1) or np.any(of_site != 1):
                words = [describe_factor(one) for one in (factor, of_site) if np.any(one != 1)]
                found.append(f"{program} {name}: {', '.join(words)}")
            if program == "guide" and share_at_an_end(fn, value) > 0:
                ends.append(f"{share_at_an_end(fn, value):.1%} of {name}")
    yield row_of_factors(found)
    dtypes = {str(site["value"].dtype) for site in latents(sample_sites(traces[1])).values()}
    yield precision(", ".join(sorted(dtypes)), ends)
