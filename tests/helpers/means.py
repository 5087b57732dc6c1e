"""Several estimators against one reference."""

import jax
import jax.numpy as jnp

import gdregs


def largest_z(suspects, reference, key, num_draws, **options):
    """For each of the suspects, its largest z-score as a multiple of what chance allows.

    `suspects` are gradients as functions of a key, by name; all run beside one reference in one
    program, as most of the time goes to compiling. Above 1 is a bias.
    """

    def references(key):
        return dict.fromkeys(suspects, reference(key))

    check = gdregs.check_unbiased(
        lambda key: {name: of(key) for name, of in suspects.items()},
        references,
        key,
        num_draws,
        false_alarm=1e-3 * len(suspects),
        **options,
    )
    return {
        name: max(float(jnp.max(jnp.abs(z))) for z in jax.tree.leaves(scores)) / check.threshold
        for name, scores in check.z_scores.items()
    }
