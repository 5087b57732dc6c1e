"""The tables of `run.py`, as Markdown."""

from implementations import ALSO_OURS, BATCH, IMPLEMENTATIONS, OURS

from gdregs.vae.show.markdown import markdown_table


def fastest_peer(results):
    """The quickest estimator of others (TFP's and NumPyro's run on this library's networks)."""
    peers = {
        name: result["median"]
        for name, result in results.items()
        if name not in (*OURS, ALSO_OURS) and "median" in result
    }
    return min(peers, key=peers.__getitem__) if peers else None


def step_rows(cells, variances, rate):
    rows = []
    for cell in cells:
        results = cell["steps"]
        peer = fastest_peer(results)
        variance = variances.get(str(cell["num_layers"]), {})
        for name, result in results.items():
            first = name == next(iter(results))
            label = "L = {num_layers}, K = {num_samples}, {rounds} rounds".format(**cell)
            label = label if first else ""
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


def page(content):
    """The tables, as Markdown."""
    listed = (content["versions"] | content["peers"]).items()
    steps = markdown_table(
        (
            "", "implementation", "ms a step (quartiles)", "of the fastest peer's", "GFLOP",
            "of the matrix rate", "MB", "compile s", "variance / naive",
        ),
        step_rows(content["cells"], content["variance"], content["matrix_flops_per_second"]),
    )  # fmt: skip
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
    return "\n".join(
        (
            "# A training step in this library and its peers",
            "",
            f"`python benchmarks/suite/run.py`, {content['date']}, {content['hardware']}; batch"
            f" {BATCH}, the papers' networks; {', '.join(' '.join(item) for item in listed)}."
            " In bold the fastest peer of each cell. FLOPs are those of matrix"
            " products; megabytes the most that a step holds beyond what the process held before.",
            "",
            steps,
            "",
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
    )
