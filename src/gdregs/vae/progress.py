"""The progress bar of a training run."""

from typing import Any


class EpochBar:
    """A progress bar over epochs, with the bound and images/s."""

    def __init__(self, total: int, done: int = 0):
        from tqdm import tqdm

        self.bar = tqdm(total=total, initial=done, unit="epoch", dynamic_ncols=True)
        self.test = ""

    def __call__(self, row: dict[str, Any]) -> None:
        """Count an epoch, and show what its row of metrics says."""
        if "test_bound" in row:
            self.test = f"test {row['test_bound']:.2f}, "
        self.bar.set_postfix_str(
            f"bound {row['train_bound']:.2f}, {self.test}"
            f"ESS {row['effective_sample_size']:.1f}, {row['images_per_second']:.0f} images/s"
        )
        self.bar.update()
