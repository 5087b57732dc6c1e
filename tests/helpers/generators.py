"""Which of XLA's code generators for CPUs compiles the programs of the tests.

Without optimisations the older one takes 60% of the newer one's time; with them, twice its time
for the largest programs.
"""

import os

import jax

OPTION = "xla_cpu_use_fusion_emitters"


def choose_older():
    """Set the flag for the processes to come; where XLA does not know it, they would end."""
    try:
        jax.jit(lambda: 0.0, compiler_options={OPTION: False}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{OPTION}=false".strip()
