"""What is compared: implementations by worker and estimator, and the estimators by name."""

BATCH = 64
IMPLEMENTATIONS = {
    "gdregs, M = 8": ("jax:gdregs, M = 8", "DReGs + GDReGs, M = 8"),
    "gdregs, M = K": ("jax:gdregs, M = K", "DReGs + GDReGs"),
    "JAX by hand, gdregs' networks": ("jax:by hand", "naive"),
    "JAX by hand": ("jax:plain", "naive"),
    "JAX, the papers' three surrogates": ("jax:surrogates", "DReGs + GDReGs"),
    "NumPyro RenyiELBO": ("jax:numpyro", "naive"),
    "tfp-nightly DReGs (biased prior)": ("jax:tfp", "DReGs"),
    "PyTorch by hand": ("torch:naive", "naive"),
    "PyTorch by hand, compiled": ("torch:naive compiled", "naive"),
    "PyTorch DReG hook": ("torch:dreg", "DReGs"),
    "PyTorch DReG hook, compiled": ("torch:dreg compiled", "DReGs"),
    "Pyro RenyiELBO": ("torch:pyro", "naive"),
    "gdregs.torch, M = 8": ("torch:gdregs 8", "DReGs + GDReGs, M = 8"),
    "gdregs.torch, M = K": ("torch:gdregs all", "DReGs + GDReGs"),
    "gdregs.torch, compiled, M = 8": ("torch:gdregs 8 compiled", "DReGs + GDReGs, M = 8"),
    "gdregs.torch, compiled, M = K": ("torch:gdregs all compiled", "DReGs + GDReGs"),
    "gdregs.torch, networks compiled, M = 8": (
        "torch:gdregs 8 networks",
        "DReGs + GDReGs, M = 8",
    ),
    "gdregs.torch, networks compiled, M = K": ("torch:gdregs all networks", "DReGs + GDReGs"),
}
OURS = tuple(name for name in IMPLEMENTATIONS if name.startswith("gdregs"))
PYTORCH_BY_HAND = tuple(name for name in IMPLEMENTATIONS if name.startswith("PyTorch "))
ALSO_OURS = "JAX by hand, gdregs' networks"  # a reference that uses this library's networks
ESTIMATORS = {
    "naive": ("naive", "naive", 0),
    "DReGs": ("dregs", "naive", 0),
    "DReGs + GDReGs": ("dregs", "gdregs", 0),
    "DReGs + GDReGs, M = 8": ("dregs", "gdregs", 8),
}
