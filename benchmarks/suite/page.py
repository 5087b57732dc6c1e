"""The tables of `run.py`, as Markdown."""

import numpy as np
from implementations import ALSO_OURS, BATCH, IMPLEMENTATIONS, OURS, PYTORCH_BY_HAND

from gdregs.papers.measures.measure import error_of_median
from gdregs.vae.show.markdown import markdown_table


def fastest_peer(results):
    """The quickest estimator of others (TFP's and NumPyro's run on this library's networks)."""
    peers = {
        name: result["median"]
        for name, result in results.items()
        if name not in (*OURS, ALSO_OURS) and "median" in result
    }
    return min(peers, key=peers.__getitem__) if peers else None


def step_rows(content):
    variances, rows = content["variance"], []
    for cell in content["cells"]:
        results = cell["steps"]
        peer = fastest_peer(results)
        variance = variances.get(str(cell["num_layers"]), {})
        for name, result in results.items():
            first = name == next(iter(results))
            label = "L = {num_layers}, K = {num_samples}, {rounds} rounds".format(**cell)
            label = label if first else ""
            rate = cell.get("matrix_flops_per_second", content["matrix_flops_per_second"])
            if "median" not in result:
                rows.append((label, name, result["error"], *[""] * 6))
                continue
            estimator = IMPLEMENTATIONS[name][1]
            milliseconds = [1e3 * s for s in (result["median"], *result["spread"])]
            relative = ""
            if variance:
                naive, own = (sum(variance[e].values()) for e in ("naive", estimator))
                relative = f"{own / naive:.3f}"
            rows.append(
                (
                    label,
                    f"**{name}**" if name == peer else name,
                    "{:.1f} ({:.1f}-{:.1f})".format(*milliseconds),
                    f"{result['median'] / results[peer]['median']:.2f}" if peer else "",
                    f"{result['flops'] / 1e9:.2f}",
                    f"{result['flops'] / result['median'] / rate:.2f}",
                    f"{result['megabytes']:.0f}",
                    f"{result['compile_seconds']:.1f}",
                    relative,
                )
            )
    return rows


def pytorch_rows(cells):
    """Ours in PyTorch relative to the fastest step by hand in PyTorch, eager or compiled."""
    rows = []
    for cell in cells:
        results = {name: one for name, one in cell["steps"].items() if "median" in one}
        by_hand = [name for name in PYTORCH_BY_HAND if name in results]
        ours = [name for name in results if name.startswith("gdregs.torch")]
        if not by_hand or not ours:
            continue
        fastest = min(by_hand, key=lambda name: results[name]["median"])
        for name in ours:
            times, best = (np.array(results[one]["seconds"]) for one in (name, fastest))
            ratios = times / best
            low, high = np.quantile(ratios, [0.25, 0.75])
            # A single round that something disturbed is no matter.
            error = error_of_median(low, high, len(ratios))
            rows.append(
                (
                    "L = {num_layers}, K = {num_samples}".format(**cell),
                    name,
                    f"{np.median(ratios):.2f} ± {error:.2f}",
                    f"{results[name]['megabytes']:.0f}",
                    fastest,
                    f"{results[fastest]['megabytes']:.0f}",
                )
            )
    return rows


def origins(content):
    """Which cells were measured again, when and on what."""
    found = {}
    for cell in content["cells"]:
        if "date" in cell:
            libraries = ", ".join(" ".join(item) for item in cell["libraries"].items())
            origin = f"{cell['date']}, {cell['hardware']}; {libraries}"
            found.setdefault(origin, []).append(
                "L = {num_layers}, K = {num_samples}".format(**cell)
            )
    return [f"Measured again: {'; '.join(places)}: {origin}." for origin, places in found.items()]


def training(content):
    """Times to a target, and whole loops."""
    targets = [
        (
            f"{task}, {found['epochs']} epochs at {found['learning_rate']:g}"
            if name == "naive"
            else "",
            name,
            f"{values['seconds_per_epoch']:.2f}",
            str(values["epochs_to_target"] or "not reached"),
            "" if values["ratio"] is None else f"{values['seconds_to_target']:.1f}",
            "" if values["ratio"] is None else f"{values['ratio']:.2f}",
            f"{values['final_test_bound']:.2f}",
        )
        for task, found in content["time_to_target"].items()
        for name, values in found["estimators"].items()
    ]
    loops = [
        (name, f"{values['seconds_per_epoch']:.2f}" if "error" not in values else values["error"])
        for name, values in content["loops"].items()
    ]
    targets = markdown_table(
        (
            "task", "estimator", "s an epoch", "epochs to target", "s to target",
            "of naive's", "final test bound",
        ),
        targets,
    )  # fmt: skip
    return (
        "## Time to the test bound that naive IWAE ends with",
        "",
        targets,
        "",
        "## Seconds of an epoch in whole training loops, L = 1",
        "",
        f"{content['loop_images']} images, K = {content['loop_samples']}.",
        "",
        markdown_table(("loop", "s an epoch"), loops),
        "",
    )


def page(content):
    """The tables, as Markdown."""
    listed = (content["versions"] | content["peers"]).items()
    steps = markdown_table(
        (
            "", "implementation", "ms a step (quartiles)", "of the fastest peer's", "GFLOP",
            "of the matrix rate", "MB", "compile s", "variance / naive",
        ),
        step_rows(content),
    )  # fmt: skip
    return "\n".join(
        (
            "# A training step in this library and its peers",
            "",
            f"`{content['command']}`, {content['date']}, {content['hardware']}; batch"
            f" {BATCH}, the papers' networks; {', '.join(' '.join(item) for item in listed)}."
            " In bold the fastest peer of each cell. FLOPs are those of matrix"
            " products; megabytes the most that a step holds beyond what the process held before.",
            "",
            *origins(content),
            "",
            steps,
            "",
            "## In PyTorch, relative to the fastest step by hand",
            "",
            "Ours in eager mode, and around networks that are compiled; by hand the naive gradient"
            " and DReGs by a hook, eager and by `torch.compile`. Medians of the ratio of"
            " interleaved rounds, with standard errors from their quartiles.",
            "",
            markdown_table(
                ("", "implementation", "time", "MB", "the fastest by hand", "its MB"),
                pytorch_rows(content["cells"]),
            ),
            "",
            *(training(content) if content["time_to_target"] else ()),
        )
    )
