"""A doctor for models: one call that says what is wrong with a posterior, prior or likelihood."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray, PyTree

from gdregs.bound import bound
from gdregs.diagnostics import check_unbiased
from gdregs.evaluation.weights import Model, Noise, read_model
from gdregs.hierarchy import Hierarchy
from gdregs.objectives import IWAE
from gdregs.reexpression.factors import factor_of, has_factor, without_factors
from gdregs.reexpression.paths import separate
from gdregs.shared.report import ENOUGH_WEIGHTS, Report, Row, attempt, row_of_weights
from gdregs.shared.rows import (
    describe_factor,
    row_of_agreement,
    row_of_cost,
    row_of_estimators,
    row_of_factors,
    row_of_gradient,
    row_of_precision,
)
from gdregs.shared.tables import POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS
from gdregs.weights import log_weights

PARTS = ("posterior", "prior", "likelihood")

COUPLED = (
    "Its value for one sample depends on the other samples, which breaks every doubly"
    " reparameterized gradient. Normalise over features (layer or group norm) or over the data"
    " before it is encoded, run batch norm in evaluation mode, and let what is drawn for sample k"
    " depend on keys[k] alone."
)


def check_model(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any = 8,
    objective: Any = IWAE(),
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_draws: int | None = None,
) -> Report:
    r"""Check a model before it is trained, and say in words what to mend.

    It draws and evaluates the model a few times, without training. Checked are: shapes; whether
    each part is deterministic given its keys; whether samples are independent of each other;
    arrays that a part captures; masks and scales; which estimators can be used; whether the
    gradient is finite; how the weights of 1,000 samples are spread; numerical precision; and the
    cost of each part. Call it outside of `jax.jit`, with concrete parameters.

    Args:
        posterior: As in `gdregs.bound`.
        prior: As in `gdregs.bound`.
        likelihood: As in `gdregs.bound`.
        key: A JAX random key.
        num_samples: K.
        objective: As in `gdregs.bound`.
        posterior_estimator: As in `gdregs.bound`: the one whose gradient is looked at.
        prior_estimator: As in `gdregs.bound`.
        num_draws: If given, the mean of so many gradients by the parameters of posterior and prior
            is compared with that of as many naive ones.

    Returns:
        A report, with `rows`, `ok`, and a table as its `str`. Errors of the model are rows of it.

    Example:
        >>> import gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def centred(z):  # a batch norm over the importance samples
        ...     return dist.Normal(z - jnp.mean(z, axis=0), 1.0).log_prob(0.0)
        >>> report = gdregs.check_model(
        ...     dist.Normal(0.1, 1.0), dist.Normal(0.0, 1.0), centred, key=jax.random.key(0))
        >>> report.ok, [row.check for row in report.rows if row.ok is False]
        (False, ['samples are independent', 'gradient'])
    """
    estimators = {"posterior_estimator": posterior_estimator, "prior_estimator": prior_estimator}
    options = {"key": key, "num_samples": num_samples, "objective": objective}
    return check_parts((posterior, prior, likelihood), options, estimators, num_draws)


def check_parts(
    parts: Any,
    options: Mapping[str, Any],
    estimators: Mapping[str, Any],
    num_draws: int | None,
    of_sites: Callable[[], Iterable[Row]] | None = None,
) -> Report:
    """The report of posterior, prior and likelihood; a front-end describes its sites itself."""
    key, num_samples = options["key"], options["num_samples"]
    model, rows = _read(parts, key, num_samples)
    if model is None:
        return Report(tuple(rows))
    z, noise = jax.jit(lambda: (model.draw(0, num_samples), model.noise(0, num_samples)))()
    rows += attempt("deterministic", lambda: _is_deterministic(model, z, noise))
    rows += attempt("samples are independent", lambda: _are_independent(model, z, noise))
    rows += attempt("captured arrays", lambda: _captured(model, z, noise))
    rows += attempt("masks and scales", of_sites or (lambda: _factors(model, z, noise)))
    rows += attempt("estimators", lambda: _estimators(parts, options))
    rows += attempt("gradient", lambda: _gradient(parts, {**options, **estimators}))
    rows += attempt("weights", lambda: _weights(parts, key, num_samples))
    if of_sites is None:
        rows += attempt("precision", lambda: _precision(model, z, noise))
    rows += attempt("cost", lambda: _cost(model, z, noise))
    if num_draws is not None:
        rows += attempt("agreement", lambda: _agreement(parts, options, estimators, num_draws))
    return Report(tuple(rows))


def _read(parts: Any, key: PRNGKeyArray, num_samples: Any) -> tuple[Model | None, list[Row]]:
    found: list[Model] = []

    def run() -> Iterator[Row]:
        model = read_model(*parts, key=key, num_samples=num_samples, chunk_size=None)
        found.append(model)
        leaves = jax.tree_util.tree_leaves_with_path(model.shapes)
        events = ", ".join(
            f"z{jax.tree_util.keystr(path)} {list(leaf.shape[1 + len(model.batch) :])}"
            for path, leaf in leaves
        )
        yield Row("shapes", f"batch {list(model.batch)}; event axes {events}; {model.dtype}")

    rows = attempt("shapes", run)
    if not found:
        rows[-1] = rows[-1]._replace(
            remedy="All three densities must have the shape [K, *batch] for samples [K, *batch,"
            " *event]: event axes are summed over, by .to_event(...) or in the likelihood. The"
            " other checks need this."
        )
    return (found[0] if found else None), rows


def _densities(model: Model, z: PyTree, noise: Noise) -> dict[str, Array]:
    given = model.with_noise(noise)
    return {
        "posterior": given.posterior.log_prob(z),
        "prior": given.prior.log_prob(z),
        "likelihood": model.log_likelihood(z, noise.likelihood),
    }


def _is_deterministic(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    """Each part is traced and run twice."""
    size = model.num_samples
    runs = [jax.jit(lambda: (model.draw(0, size), _densities(model, z, noise)))() for _ in range(2)]
    (first, densities), (second, others) = runs
    same = {name: _equal(densities[name], others[name]) for name in PARTS}
    same["posterior.sample"] = all(map(_equal, jax.tree.leaves(first), jax.tree.leaves(second)))
    random = [name for name, is_same in same.items() if not is_same]
    if not random:
        yield Row("deterministic", "each part gives the same for the same key")
        return
    yield Row(
        "deterministic", f"{', '.join(random)} gave other values at the same samples", False,
        "It draws random numbers that do not come from a key. Let the likelihood be a function of z"
        " and keys, and a conditional take the samples' keys.",
    )  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other, equal_nan=True))


def _are_independent(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    """Each sample is evaluated alone."""

    def alone(place: Array) -> dict[str, Array]:
        def row(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, place, 1)

        one = jax.tree.map(row, z), jax.tree.map(row, noise)
        return {name: value[0] for name, value in _densities(model, *one).items()}

    together = jax.jit(lambda: _densities(model, z, noise))()
    each = jax.jit(lambda: jax.lax.map(alone, jnp.arange(model.num_samples)))()
    tolerance = 1e3 * float(jnp.finfo(model.dtype).eps)
    coupled = [
        name
        for name in PARTS
        if not np.allclose(
            each[name], together[name], rtol=tolerance, equal_nan=True,
            atol=tolerance * (1 + _size(together[name])),
        )
    ]  # fmt: skip
    if coupled:
        found = f"{', '.join(coupled)}: a sample alone has another value than among the others"
        yield Row("samples are independent", found, False, COUPLED)
    else:
        yield Row("samples are independent", "each sample has the same densities alone")


def _size(values: Any) -> float:
    values = np.asarray(values)
    return float(np.max(np.abs(values), where=np.isfinite(values), initial=0))


def _captured(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    """Arrays that posterior or prior use and that are no leaves of theirs."""
    given = model.with_noise(noise)
    found = []
    for name, part in (("posterior", given.posterior), ("prior", given.prior)):
        parameters, with_parameters = separate(part)
        program = jax.make_jaxpr(lambda new, z, rebuild=with_parameters: rebuild(new).log_prob(z))(
            parameters, z
        )
        shapes = [
            str(list(np.shape(one)))
            for one in program.consts
            if eqx.is_inexact_array(one) and np.size(one) > 1
        ]
        if shapes:
            found.append(f"the {name} captures arrays of shape {', '.join(shapes)}")
    if not found:
        yield Row("captured arrays", "posterior and prior hold all that they use")
        return
    yield Row(
        "captured arrays", "; ".join(found), None,
        "That is right for constants. A parameter must be a leaf of the pytree (a field of an"
        " equinox.Module, or bound by jax.tree_util.Partial); a hidden one is refused on"
        " differentiation.",
    )  # fmt: skip


def _nodes(part: Any, z: PyTree) -> dict[str, tuple[Any, Any]]:
    """The distribution and value of each latent whose distribution is known."""
    if isinstance(part, Hierarchy):
        return _of_hierarchy(part, z)
    return {"z": (part, z)} if isinstance(z, jax.Array) else {}


def _of_hierarchy(part: Hierarchy, z: Any) -> dict[str, tuple[Any, Any]]:
    return {name: (part.conditional(name, above, z), z[name]) for name, above in part.parents}


def _factors(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    given = model.with_noise(noise)
    found = []
    for name, part in (("posterior", given.posterior), ("prior", given.prior)):
        for latent, (one, value) in _nodes(part, z).items():
            if has_factor(one):
                factor = np.broadcast_to(factor_of(one, value), np.shape(value))
                found.append(f"{name} of {latent}: {describe_factor(factor)}")
    yield row_of_factors(found)


def _differentiable(parts: Any) -> tuple[list[Any], Callable[..., Any]]:
    """The parameters of posterior and prior, and the summed bound as a function of them."""
    posterior, prior, likelihood = parts
    parameters, with_parameters = separate((posterior, prior))

    def total(parameters: list[Any], **options: Any) -> Array:
        posterior, prior = with_parameters(parameters)
        return jnp.sum(bound(posterior, prior, likelihood, **options))

    return [jnp.asarray(one) for one in parameters], total


def _estimators(parts: Any, options: Mapping[str, Any]) -> Iterator[Row]:
    """Each estimator is traced, beside the naive one of the other part."""
    parameters, total = _differentiable(parts)
    for part, table in (("posterior", POSTERIOR_ESTIMATORS), ("prior", PRIOR_ESTIMATORS)):
        other = "prior" if part == "posterior" else "posterior"
        works, reasons = [], []
        for name in table:
            chosen = {**options, f"{part}_estimator": name, f"{other}_estimator": "naive"}
            try:
                jax.eval_shape(jax.grad(lambda p, o=chosen: total(p, **o)), parameters)
            except (TypeError, ValueError, NotImplementedError) as error:
                reasons.append(str(error).splitlines()[0])
            else:
                works.append(name)
        yield row_of_estimators(part, works, reasons)


def _gradient(parts: Any, options: Mapping[str, Any]) -> Iterator[Row]:
    parameters, total = _differentiable(parts)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: total(p, **options)))(parameters)
    bad = sum(int(np.sum(~np.isfinite(leaf))) for leaf in gradient)
    yield row_of_gradient(float(value), bad)


def _weights(parts: Any, key: PRNGKeyArray, num_samples: int) -> Iterator[Row]:
    number = max(num_samples, 2 * ENOUGH_WEIGHTS)
    options = {"key": key, "num_samples": number, "chunk_size": min(number, 50)}
    yield row_of_weights(jax.jit(lambda: log_weights(*parts, **options))())


def _precision(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    given, ends = model.with_noise(noise), []
    for latent, (one, value) in _nodes(given.posterior, z).items():
        share = share_at_an_end(one, value)
        if share > 0:
            ends.append(f"{share:.1%} of {latent}")
    yield precision(str(model.dtype), ends)


def share_at_an_end(distribution: Any, value: Any) -> float:
    """The share of a draw that has been rounded to an end of its support, where the density is 0 or
    infinite.
    """
    if not isinstance(distribution, dist.Distribution):
        return 0.0
    support = without_factors(distribution).support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    name = type(support).__name__.lower()
    value = np.asarray(value)
    if not np.issubdtype(value.dtype, np.floating):
        return 0.0
    tiny = np.finfo(value.dtype).tiny
    if "simplex" in name or "unitinterval" in name.replace("_", ""):
        return float(np.mean((value <= tiny) | (value >= 1 - np.finfo(value.dtype).epsneg)))
    return float(np.mean(value <= tiny)) if "positive" in name else 0.0


def precision(dtype: str, ends: list[str]) -> Row:
    """Whether draws have digits, and how a user of JAX has more."""
    return row_of_precision(dtype, ends, " (jax.config.update('jax_enable_x64', True))")


def _cost(model: Model, z: PyTree, noise: Noise) -> Iterator[Row]:
    """The least of three times, compiled."""
    size = model.num_samples
    runs = {"draw": jax.jit(lambda z: model.draw(0, size))}
    for name in PARTS:
        runs[name] = jax.jit(lambda z, name=name: _densities(model, z, noise)[name])
    times = {}
    for name, run in runs.items():
        jax.block_until_ready(run(z))
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(run(z))
            taken.append(time.perf_counter() - start)
        times[name] = 1000 * min(taken)
    yield row_of_cost(times, size)


def _agreement(
    parts: Any, options: Mapping[str, Any], estimators: Mapping[str, Any], num_draws: int
) -> Iterator[Row]:
    parameters, total = _differentiable(parts)
    naive = dict.fromkeys(estimators, "naive")

    def gradient(chosen: Mapping[str, Any]) -> Callable[[PRNGKeyArray], PyTree]:
        def of(key: PRNGKeyArray) -> PyTree:
            return jax.grad(lambda p: total(p, **{**options, **chosen, "key": key}))(parameters)

        return of

    result = check_unbiased(gradient(estimators), gradient(naive), options["key"], num_draws)
    yield row_of_agreement(result, num_draws)
