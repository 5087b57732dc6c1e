"""The means of several estimators in PyTorch against that of a reference, until it is decided."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

from gdregs.shared.statistics import largest_by_chance  # noqa: E402


def assert_unbiased(draw, *, biased, block=2000, most_draws=64_000, false_alarm=1e-3):
    """Suspects have the mean of the reference, and those named in `biased` do not.

    A group-sequential test, as `means.assert_unbiased` is for JAX: it looks after `block` draws,
    after twice as many, and so on, and ends where each of the biased ones is beyond twice what
    chance allows. All looks, suspects and entries together raise a false alarm with probability
    `false_alarm` at most (Bonferroni).

    Args:
        draw: From a number of draws to gradients of suspects, by name, and those of the reference:
            lists of tensors `[draws, ...]`. Draws are independent of each other.
        biased: Names of suspects that must be found.
        block: How many draws there are at the first look.
        most_draws: How many there are at the last look.
        false_alarm: Probability of rejecting suspects none of which is biased.

    Returns:
        The number of draws, and the largest z-score of each suspect as a multiple of what chance
        allows.
    """
    num_looks = (most_draws // block).bit_length()
    sums, largest, count = {}, {}, 0
    for look in range(num_looks):
        while count < block * 2**look:
            suspects, reference = draw(block)
            assert biased, "a test that catches nothing proves nothing"
            assert set(biased) < set(suspects), suspects.keys()
            expected = _flat(reference, block)
            for name, gradients in suspects.items():
                difference = _flat(gradients, block) - expected
                found = torch.stack([difference, difference**2, expected**2]).sum(1)
                sums[name] = sums.get(name, 0) + found
            count += block
        threshold = largest_by_chance(len(sums) * expected.shape[1], false_alarm / num_looks)
        largest = {name: _z_score(*of / count, count) / threshold for name, of in sums.items()}
        found = {name for name, multiple in largest.items() if not multiple <= 1}
        assert found <= set(biased), f"biased after {count} draws: {largest}"
        if all(largest[name] > 2 for name in biased):
            return count, largest
    raise AssertionError(f"not found in {count} draws: {largest}")


def _flat(gradients, count):
    return torch.cat([one.detach().double().reshape(count, -1) for one in gradients], 1)


def _z_score(mean, square, size, count):
    """The largest one; a difference of rounding is none."""
    error = ((square - mean**2).clamp(min=0) / count).sqrt()
    floor = 1e-12 * size.sqrt() + torch.finfo(mean.dtype).tiny
    return (mean.abs() / torch.maximum(error, floor)).max().item()
