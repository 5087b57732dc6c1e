"""Flags with which XLA compiles the programs of the tests for CPUs in the least time.

Without optimisations the older code generator takes 45 to 60% of the newer one's time; with them,
up to twice its time for the largest programs. In one piece in place of up to 32, a program takes 10
to 20% less.
"""

import os

import jax

OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def choose_fastest():
    """Set the flags for the processes to come; where XLA does not know them, they would end."""
    try:
        jax.jit(lambda: 0.0, compiler_options=OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return
    flags = [f"--{name}={str(value).lower()}" for name, value in OPTIONS.items()]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
