"""`gdregs train` and `gdregs compare`."""

from pathlib import Path
from typing import Annotated, Any

from gdregs.cli.common import describe, load_dataset
from gdregs.vae.arguments import FLAT
from gdregs.vae.config import Config
from gdregs.vae.errors import UserError


def _default_folder(config: Config) -> Path:
    estimators = f"{config.posterior_estimator}-{config.prior_estimator}"
    return Path("runs") / f"{config.task}-{estimators}-seed{config.seed}"


def train(
    config: Annotated[Config, FLAT] = Config(),
    data_dir: Path | None = None,
    out: Path | None = None,
    mesh: str = "",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a hierarchical VAE; run the same command again to continue one that was cut off.

    Args:
        config: The settings of the run.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        out: The run folder; by default named after the settings, under runs/.
        mesh: Devices that share each batch and the importance samples, such as data=4,samples=2.
            By default one device, or, with several processes, all of them along data.
        coordinator: Address and port of process 0, to train in several processes. The tasks of a
            Slurm step find each other without it.
        num_processes: How many processes there are.
        process_id: Which one this is, from 0. The first one writes all files.
        quiet: Print nothing but what is wrong.
        tensorboard: Write the metrics for TensorBoard too, into the run folder.
    """
    import jax

    from gdregs.vae.runs.folders import open_run, read_metrics
    from gdregs.vae.runs.folders import train as run_training
    from gdregs.vae.runs.lock import locked
    from gdregs.vae.runs.record import CONFIG, check_data
    from gdregs.vae.runs.record import describe as describe_data
    from gdregs.vae.show.pictures import draw_curve, draw_reconstructions, draw_samples
    from gdregs.vae.show.progress import Echo, EpochReport, tensorboard_writer
    from gdregs.vae.training.meshes import describe_mesh, read_mesh
    from gdregs.vae.training.processes import is_first, noticing_deaths, start_processes
    from gdregs.vae.training.task import make_task

    start_processes(coordinator, num_processes, process_id)
    devices = read_mesh(mesh, config)
    out = out or _default_folder(config)
    echo = Echo(quiet)
    if not is_first():
        with noticing_deaths():
            task = make_task(config, load_dataset(config, data_dir))
            run_training(out, config, task, mesh=devices)
        return
    if (out / CONFIG).exists():
        open_run(out, config)
        with locked(out):  # before anything takes time
            pass
    dataset = load_dataset(config, data_dir)
    check_data(out, dataset)
    task = make_task(config, dataset)
    open_run(out, config, data=describe_data(dataset, data_dir))
    rows = read_metrics(out)
    if len(rows) >= config.epochs:
        echo(f"{out} is complete after {len(rows)} epochs; a larger --epochs continues it.")
    elif rows:
        echo(f"Continuing {out} after epoch {len(rows)}: {describe(config)}")
    else:
        echo(f"Training {out}: {describe(config)}, {task.num_train} images")
    if devices is not None:
        echo(describe_mesh(devices))
    writer = tensorboard_writer(out) if tensorboard else None
    with (
        EpochReport(config.epochs, len(rows), quiet=quiet, writer=writer) as report,
        noticing_deaths(),
    ):
        state = run_training(out, config, task, report, mesh=devices)
    rows = read_metrics(out)
    if not rows:
        echo(f"{out}: no epoch to train.")
        return
    draw_curve(out / "curve.png", rows, describe(config))
    key = jax.random.key(config.seed)
    draw_samples(out / "samples.png", state.model, task, key, title=describe(config))
    draw_reconstructions(out / "reconstructions.png", state.model, task, key, describe(config))
    last = rows[-1]
    kept = config.gradient_samples or config.num_samples
    echo(
        f"train bound {last['train_bound']:.2f}, test bound {last['test_bound']:.2f} nats per image"
        f" (K={config.num_samples})"
        + _in_bits(last["test_bound"], task)
        + f"\neffective sample size {last['effective_sample_size']:.2f} of {config.num_samples};"
        f" the backward pass ran on {min(kept, config.num_samples)} samples with"
        f" {100 * last['weight_kept']:.1f}% of the weight\n"
        + _describe_mix(last)
        + f"{out}: config.json, metrics.jsonl, checkpoint.eqx, curve.png, samples.png,"
        " reconstructions.png"
    )


def _in_bits(bound: float, task: Any) -> str:
    height, width, colours = task.target_shape
    bits = task.observation.bits_per_dimension(bound, height * width * colours)
    return "" if bits is None else f", {bits:.3f} bits per dimension on the test images"


def _describe_mix(row: dict[str, Any]) -> str:
    if "alpha" not in row:
        return ""
    strengths = ", ".join(f"{name} {alpha:.2f}" for name, alpha in row["alpha"].items())
    return f"learned share of GDReGs in the prior's gradient: {strengths}\n"


def compare(
    config: Annotated[Config, FLAT] = Config(epochs=40),
    data_dir: Path | None = None,
    out: Path | None = None,
    pairs: tuple[str, ...] = (),
    seeds: int = 1,
    draws: int = 200,
    quiet: bool = False,
) -> None:
    """Train the same model with several pairs of estimators from the same seeds.

    Args:
        config: The settings that all runs share; the pair is taken from --pairs.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        out: Folder for all runs, the table and the figure.
        pairs: Posterior and prior estimator, such as dregs+gdregs; by default the papers' six.
        seeds: How many seeds.
        draws: Draws for the moments of the gradients.
        quiet: Print nothing but what is wrong.
    """
    from gdregs.vae.files import write_json, write_text
    from gdregs.vae.runs.compare import PAPER_PAIRS, format_table, read_pair
    from gdregs.vae.runs.compare import compare as run_comparison
    from gdregs.vae.show.pictures import draw_comparison
    from gdregs.vae.show.progress import Echo, EpochReport
    from gdregs.vae.training.task import make_task

    chosen = pairs or PAPER_PAIRS
    for pair in chosen:
        read_pair(pair)
    if seeds < 1 or draws < 2:
        raise UserError("--seeds must be at least 1 and --draws at least 2.")
    if config.epochs < 1:
        raise UserError("--epochs must be at least 1 to compare anything.")
    out = out or Path("runs") / f"compare-{config.task}"
    task = make_task(config, load_dataset(config, data_dir))
    with EpochReport(len(chosen) * seeds * config.epochs, quiet=quiet) as report:
        results = run_comparison(out, config, chosen, seeds, task, report.named, draws)
    table = format_table(results)
    summary = {"config": config.to_dict(), "seeds": seeds, "draws": draws, "results": results}
    write_json(out / "comparison.json", summary)
    write_text(out / "comparison.md", f"{table}\n")
    kind = "conditional" if config.conditional else "unconditional"
    title = f"{config.task}, {kind}, L={config.num_layers}, K={config.num_samples}"
    draw_comparison(out / "comparison.png", results, title)
    Echo(quiet)(f"{table}\n{out}: comparison.md, comparison.json, comparison.png")
