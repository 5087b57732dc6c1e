"""The means of several estimators against those of their references."""

import jax
import jax.numpy as jnp

import gdregs


def largest_z(suspects, references, key, num_draws, false_alarm=None, **options):
    """For each of the suspects, its largest z-score as a multiple of what chance allows.

    `suspects` are gradients as functions of a key, by name, and `references` one for all of them or
    one for each. All run in one program, as most of the time goes to compiling. Above 1 is a bias;
    chance gets there with probability 1e-3 for each suspect, or `false_alarm` for all together.
    """
    if callable(references):
        references = dict.fromkeys(suspects, references)

    def reference_gradients(key):
        once = {of: of(key) for of in dict.fromkeys(references.values())}
        return {name: once[of] for name, of in references.items()}

    check = gdregs.check_unbiased(
        lambda key: {name: of(key) for name, of in suspects.items()},
        reference_gradients,
        key,
        num_draws,
        false_alarm=1e-3 * len(suspects) if false_alarm is None else false_alarm,
        **options,
    )
    return {
        name: max(float(jnp.max(jnp.abs(z))) for z in jax.tree.leaves(scores)) / check.threshold
        for name, scores in check.z_scores.items()
    }
