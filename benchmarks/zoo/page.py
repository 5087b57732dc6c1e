"""The zoo's table, as Markdown, and its figure."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from times import PROCESSES, ROUNDS

from gdregs.vae.show.markdown import markdown_table


def page(content):
    rows = []
    for found in content["models"].values():
        early = max((r for r in found["variances"] if r["step"] < 100), key=lambda r: r["ratio"])
        late = max((r for r in found["variances"] if r["step"] >= 100), key=lambda r: r["ratio"])
        last = found["variances"][-1]
        bounds = found["bounds"]
        rows.append(
            [
                found["about"],
                f"{early['ratio']:.2f} ± {early['ratio_error']:.2f}",
                f"{late['ratio']:.2f} ± {late['ratio_error']:.2f}",
                f"{last['ratio']:.2f} ± {last['ratio_error']:.2f}",
                *(
                    f"{bounds[k]['mean']:.2f} ± {_error(bounds[k]):.2f}" if k in bounds else ""
                    for k in ("ours", "RenyiELBO", "Trace_ELBO")
                ),
                *(_times_cell(found["step"][when]) for when in ("run", "first", "later")),
            ]
        )
    header = [
        "model", "before step 100", "from step 100", "at the end",
        "ours", "RenyiELBO", "Trace_ELBO", "time", "first half", "later",
    ]  # fmt: skip
    origin, times = (
        f"`{one['command']}`, {one['date']}, {one['hardware']}."
        for one in (content, content["times"])
    )
    return f"""# Models as users of NumPyro write them

{origin} K = {content["samples"]} particles,
{content["steps"]:,} steps of Adam, all from the same start.

*Variance*: the total variance of the gradient with our defaults, along our run, relative to the
better of our naive gradient and `RenyiELBO(alpha=0)` at the same parameters: the largest ratio
before step 100 and from then on, and the last, with standard errors over {content["draws"]} draws.
*Bound*: with K = 1,000 after training by each objective, in nats, with the standard error over
{content["seeds"]} seeds and the draws. *Time* of a step on one core (`taskset -c 0`), relative to
`RenyiELBO`'s (to `TraceEnum_ELBO`'s where components are summed out), over a run of 2,000 steps,
over its first half, 156 steps of which learn from several gradients, and over 1,000 from step
4,000 on, of which 16 do: the median of {PROCESSES} processes of {ROUNDS} rounds each. {times}
Brackets hold the least and the largest process.

{markdown_table(header, rows)}

![Variance relative to the better of the naive gradients](numpyro-zoo.png)
"""


def _times_cell(times):
    return f"{times['ratio']:.2f} ({times['ratios'][0]:.2f}–{times['ratios'][-1]:.2f})"


def _error(bound):
    of_seeds = np.std(bound["by_seed"], ddof=1) / len(bound["by_seed"]) ** 0.5
    return float(np.hypot(of_seeds, bound["error_of_draws"]))


def draw_figure(content, path):
    models = content["models"]
    columns = 5
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 1.9 * rows), layout="constrained", squeeze=False,
        sharex=True,
    )  # fmt: skip
    for axis in axes.flat[len(models) :]:
        axis.axis("off")
    for axis, found in zip(axes.flat, models.values(), strict=False):
        steps = [row["step"] for row in found["variances"]]
        for label, style in (("naive", "C0o-"), ("RenyiELBO", "C7x--"), ("ours", "C2o-")):
            values = [row["variance"].get(label, np.nan) for row in found["variances"]]
            axis.plot(steps, values, style, markersize=3, linewidth=1, label=label)
        axis.set(xscale="symlog", yscale="log", title=found["about"])
        axis.title.set_fontsize(8)
        axis.set_xlim(-1, None)
        axis.tick_params(which="both", labelsize=7)
        axis.grid(alpha=0.2)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("total variance of the gradient", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
