"""Settings for all tests: numpyro broadcasts ranks implicitly, gdregs and its tests do not."""

import gc
import inspect
import os

import jax
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import compiler_flags
import nights
import programs

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile much and compute little, those over many draws too; what trains convolutions asks
# for `optimised`. Counts of operations and of memory are the same without.
jax.config.update("jax_disable_most_optimizations", True)


def _allow_rank_promotion(cls, names):
    for name in names:
        method = cls.__dict__.get(name)
        if not inspect.isfunction(method) or name in getattr(cls, "__abstractmethods__", ()):
            continue

        def wrapped(*args, _method=method, **kwargs):
            with jax.numpy_rank_promotion("allow"):
                return _method(*args, **kwargs)

        setattr(cls, name, wrapped)


for _module, _names in (
    (dist, ("sample", "log_prob", "cdf")),
    (dist.mixtures, ("sample", "log_prob", "cdf")),
    (transforms, ("__call__", "_inverse")),
):
    for _cls in vars(_module).values():
        if inspect.isclass(_cls):
            _allow_rank_promotion(_cls, _names)


def pytest_configure(config):
    """Compile each program once: workers, what they start, and later runs share a cache."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    compiler_flags.choose_fastest()
    nights.choose_night()
    # Else each worker has a thread for every core, with which PyTorch's tests took twice as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not config.pluginmanager.has_plugin("cacheprovider"):
        return
    folder = str(config.cache.mkdir("compiled"))
    for name, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_addoption(parser):
    """What a scheduled run adds."""
    parser.addoption(
        "--each-alone",
        action="store_true",
        help="count the programs of each test as if it were the first of its process",
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A fast test compiles few programs.

    What a worker has compiled for one test it need not compile for the next: a test that holds
    alone holds after any other.
    """
    programs.start_counting(anew=pyfuncitem.config.getoption("--each-alone"))
    result = yield
    found, many = programs.counted(), pyfuncitem.get_closest_marker("many_programs")
    if many is not None and not many.args:
        pytest.fail("many_programs takes the reason")
    is_fast = not any(map(pyfuncitem.get_closest_marker, ("slow", "nightly")))
    if len(found) > programs.MOST and is_fast and not many:
        pytest.fail(
            f"{len(found)} programs were compiled, of {programs.MOST} at most (put operations into"
            f" one jax.jit, set up in numpy, look for refusals under jax.eval_shape): {found}",
            pytrace=False,
        )
    return result


UNCOUNTED = tuple(f"tests/{name}" for name in ("test_unbiased", "test_cost", "numpyro/test_peers"))
"""Slow tests that reach no line that others do not: to count takes a sixth of their time."""


def pytest_collection_finish():
    """Look for cycles seldom: tracing makes many objects, which took 7% of the time of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A nightly case of a slow test is not slow; no lines are counted where that takes time."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]
        if item.get_closest_marker("slow") and item.nodeid.startswith(UNCOUNTED):
            item.add_marker("no_cover")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """Programs as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
