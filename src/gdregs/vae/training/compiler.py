"""What the training step asks of the compiler."""

import functools
from typing import Any

import jax

_OWN_FUSIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
}
"""Leave only convolutions to YNNPACK, of which there are none here.

XLA for CPU hands matrix products and reductions to that library, which then writes out what XLA
would fuse: the training step takes 9 to 12% longer.
"""


@functools.cache
def compiler_options(precision: str = "float32") -> dict[str, Any]:
    """Options for `jax.jit` under which the training step is fastest on this backend.

    Empty on accelerators, where this version of XLA does not know the option, and for products in
    bfloat16, which that library takes to the processor's matrix unit and XLA does not.
    """
    if jax.default_backend() != "cpu" or precision == "bfloat16":
        return {}
    try:
        jax.jit(lambda: 0.0, compiler_options=_OWN_FUSIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _OWN_FUSIONS
