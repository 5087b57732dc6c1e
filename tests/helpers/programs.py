"""How many programs a test compiles: most of a test's time is XLA's."""

import jax
from jax import monitoring

MOST = 8
"""A fast test that compiles more has operations outside of `jax.jit`, or too many cases."""

_compiled: list[str] = []


def _note(event, _seconds, *, fun_name="?", **_):
    if event.endswith("/backend_compile_duration"):
        _compiled.append(str(fun_name))


monitoring.register_event_duration_secs_listener(_note)


def start_counting(*, anew):
    """Forget what was compiled; with `anew`, what JAX keeps of other tests too."""
    if anew:
        jax.clear_caches()
    _compiled.clear()


def counted():
    """The names of the programs that were compiled since, in order."""
    return tuple(_compiled)
