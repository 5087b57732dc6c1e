"""The command line: train, compare, evaluate, sample, complete and reproduce."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import gdregs
from gdregs.arguments import FLAT, POSITIONAL
from gdregs.papers.command import reproduce
from gdregs.vae.config import Config, read_config
from gdregs.vae.errors import UserError
from gdregs.vae.progress import EpochBar

_EXTRAS = ("matplotlib", "PIL", "pooch", "scipy", "sklearn", "tqdm", "tyro")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code (2 for a mistake of the user's)."""
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gdregs: {', '.join(missing)} not installed; run: pip install 'gdregs[cli]'",
            file=sys.stderr,
        )
        return 2
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"gdregs {gdregs.__version__}")
        return 0
    commands = {
        "train": train,
        "compare": compare,
        "evaluate": evaluate,
        "sample": sample,
        "complete": complete,
        "reproduce": reproduce,
    }
    import tyro

    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="gdregs",
            description="Train variational autoencoders with low-variance gradient estimators.",
            args=given,
        )
    except UserError as error:
        print(f"gdregs: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        rest = (
            "what had finished is written; the same command continues"
            if given[:1] == ["reproduce"]
            else "the same command continues from here"
        )
        print(f"gdregs: interrupted; {rest}.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"gdregs: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _prepare(config: Config, data_dir: Path | None):
    from gdregs.vae.datasets import load_dataset
    from gdregs.vae.training import make_task

    return make_task(config, load_dataset(config.dataset, data_dir))


def _describe(config: Config) -> str:
    kind = "conditional" if config.conditional else "unconditional"
    return f"{config.dataset}, {kind}, L={config.num_layers}, K={config.num_samples}, {config.pair}"


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
    """
    import jax

    from gdregs.vae.meshes import describe_mesh, read_mesh
    from gdregs.vae.pictures import draw_curve, draw_reconstructions, draw_samples
    from gdregs.vae.processes import is_first, noticing_deaths, start_processes
    from gdregs.vae.run import CONFIG, open_run, read_metrics
    from gdregs.vae.run import train as run_training

    start_processes(coordinator, num_processes, process_id)
    devices = read_mesh(mesh, config)
    out = out or _default_folder(config)
    if not is_first():
        with noticing_deaths():
            run_training(out, config, _prepare(config, data_dir), mesh=devices)
        return
    if (out / CONFIG).exists():
        open_run(out, config)
    task = _prepare(config, data_dir)
    open_run(out, config)
    rows = read_metrics(out)
    if len(rows) >= config.epochs:
        print(f"{out} is complete after {len(rows)} epochs; a larger --epochs continues it.")
    elif rows:
        print(f"Continuing {out} after epoch {len(rows)}: {_describe(config)}")
    else:
        print(f"Training {out}: {_describe(config)}, {task.train.shape[0]} images")
    if devices is not None:
        print(describe_mesh(devices))
    bar = EpochBar(config.epochs, len(rows))
    try:
        with noticing_deaths():
            state = run_training(out, config, task, bar, mesh=devices)
    finally:
        bar.bar.close()
    rows = read_metrics(out)
    if not rows:
        print(f"{out}: no epoch to train.")
        return
    draw_curve(out / "curve.png", rows, _describe(config))
    key = jax.random.key(config.seed)
    draw_samples(out / "samples.png", state.model, task, key, title=_describe(config))
    draw_reconstructions(out / "reconstructions.png", state.model, task, key, _describe(config))
    last = rows[-1]
    kept = config.gradient_samples or config.num_samples
    print(
        f"train bound {last['train_bound']:.2f}, test bound {last['test_bound']:.2f} nats per image"
        f" (K={config.num_samples})\n"
        f"effective sample size {last['effective_sample_size']:.2f} of {config.num_samples};"
        f" the backward pass ran on {min(kept, config.num_samples)} samples with"
        f" {100 * last['weight_kept']:.1f}% of the weight\n"
        + _describe_mix(last)
        + f"{out}: config.json, metrics.jsonl, checkpoint.eqx, curve.png, samples.png,"
        " reconstructions.png"
    )


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
) -> None:
    """Train the same model with several pairs of estimators from the same seeds.

    Args:
        config: The settings that all runs share; the pair is taken from --pairs.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        out: Folder for all runs, the table and the figure.
        pairs: Posterior and prior estimator, such as dregs+gdregs; by default the papers' six.
        seeds: How many seeds.
        draws: Draws for the moments of the gradients.
    """
    from gdregs.vae.compare import PAPER_PAIRS, format_table, read_pair
    from gdregs.vae.compare import compare as run_comparison
    from gdregs.vae.files import write_json, write_text
    from gdregs.vae.pictures import draw_comparison

    chosen = pairs or PAPER_PAIRS
    for pair in chosen:
        read_pair(pair)
    if seeds < 1 or draws < 2:
        raise UserError("--seeds must be at least 1 and --draws at least 2.")
    if config.epochs < 1:
        raise UserError("--epochs must be at least 1 to compare anything.")
    out = out or Path("runs") / f"compare-{config.task}"
    task = _prepare(config, data_dir)
    bar = EpochBar(len(chosen) * seeds * config.epochs)

    def report(name: str, row: dict[str, Any]) -> None:
        bar.bar.set_description(name)
        bar(row)

    try:
        results = run_comparison(out, config, chosen, seeds, task, report, draws)
    finally:
        bar.bar.close()
    table = format_table(results)
    summary = {"config": config.to_dict(), "seeds": seeds, "draws": draws, "results": results}
    write_json(out / "comparison.json", summary)
    write_text(out / "comparison.md", f"{table}\n")
    kind = "conditional" if config.conditional else "unconditional"
    title = f"{config.dataset}, {kind}, L={config.num_layers}, K={config.num_samples}"
    draw_comparison(out / "comparison.png", results, title)
    print(f"{table}\n{out}: comparison.md, comparison.json, comparison.png")


def evaluate(
    run: Annotated[Path, POSITIONAL],
    data_dir: Path | None = None,
    num_samples: int = 5000,
    images: int = 0,
    devices: int = 1,
) -> None:
    """Bounds of a trained run on its training and test images.

    Args:
        run: The run folder.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        num_samples: K for the estimate of log p(x), streamed.
        images: Use the first so many test images for log p(x); 0 uses all.
        devices: How many devices share the batches, and the K samples of log p(x).
    """
    import jax
    from tqdm import tqdm

    from gdregs.sharding import make_mesh
    from gdregs.vae.evaluation import evaluate_log_marginal, make_evaluation
    from gdregs.vae.files import write_json

    if num_samples < 1 or images < 0:
        raise UserError("--num-samples must be at least 1 and --images not negative.")
    mesh = None
    if devices != 1:
        if devices < 1 or devices > jax.device_count() or num_samples % devices:
            raise UserError(
                f"--devices must be between 1 and {jax.device_count()} and divide --num-samples"
                f" {num_samples}; got {devices}."
            )
        mesh = make_mesh(samples=devices)
    config, task, state = _load(run, data_dir)
    rows: list[tuple[str, float, float | None]] = []
    content: dict[str, Any] = {"epoch": int(state.epoch)}
    chosen = task.test[: images or None]
    total = task.train.shape[0] + task.test.shape[0] + chosen.shape[0]
    with tqdm(total=total, unit="image", dynamic_ncols=True) as bar:
        for name, data in (("train", task.train), ("test", task.test)):
            bar.set_description(f"{name} bound")
            result = make_evaluation(config, task, data, mesh=mesh)(state.model)
            values: dict[str, Any] = jax.tree.map(float, result._asdict())
            rows.append(
                (f"{name} bound, K={config.num_samples}", values["bound"], values["standard_error"])
            )
            rows.append((f"{name} effective sample size", values["effective_sample_size"], None))
            rows += [(f"{name} KL, {layer}", kl, None) for layer, kl in values["kl"].items()]
            content[name] = values
            bar.update(data.shape[0])
        bar.set_description("log p(x)")
        value, error = evaluate_log_marginal(
            state.model, config, task, chosen, num_samples, bar.update, mesh
        )
    rows.append((f"test log p(x), K={num_samples}, {chosen.shape[0]} images", value, error))
    content["log_marginal"] = {
        "num_samples": num_samples,
        "images": chosen.shape[0],
        "value": value,
        "standard_error": error,
    }
    write_json(run / "evaluation.json", content)
    width = max(len(row[0]) for row in rows)
    for label, value, spread in rows:
        print(
            f"{label.ljust(width)}  {value:9.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        )
    print(f"nats per image, ± standard error over images; {run}: evaluation.json")


def sample(
    run: Annotated[Path, POSITIONAL],
    data_dir: Path | None = None,
    kind: Literal["samples", "reconstructions"] = "samples",
    count: int = 100,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Draw a sheet of a trained run's samples (completions of top halves) or reconstructions.

    Args:
        run: The run folder.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        kind: samples, or reconstructions of test images.
        count: How many samples (other sheets have a fixed layout).
        seed: Seed of the samples.
        out: The PNG file; by default KIND-seedN.png in the run folder.
    """
    import jax

    from gdregs.vae.pictures import draw_reconstructions, draw_samples

    if count < 1:
        raise UserError("--count must be at least 1.")
    config, task, state = _load(run, data_dir)
    out = out or run / f"{kind}-seed{seed}.png"
    key = jax.random.key(seed)
    if kind == "samples":
        draw_samples(out, state.model, task, key, count, _describe(config))
    else:
        draw_reconstructions(out, state.model, task, key, _describe(config))
    print(out)


def complete(
    run: Annotated[Path, POSITIONAL],
    image: Path,
    data_dir: Path | None = None,
    ink: Literal["auto", "dark", "light"] = "auto",
    count: int = 24,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Complete the top half of an image of your own with a conditional run, as a PNG sheet.

    Args:
        run: The run folder of a conditional model.
        image: A PNG file with a top half, or with a whole image whose top half is taken.
        data_dir: Folder with the data set's official files; without it they are downloaded.
        ink: dark ink on light paper, light ink on dark, or auto: the one that covers less.
        count: How many completions.
        seed: Seed of the binarisation and of the completions.
        out: The PNG file; by default NAME-completed-seedN.png in the run folder.
    """
    import jax
    import jax.numpy as jnp

    from gdregs.vae.pictures import draw_completions
    from gdregs.vae.training import binarise
    from gdregs.vae.user_image import read_top_half

    if count < 1:
        raise UserError("--count must be at least 1.")
    config = read_config(run / "config.json")
    if not config.conditional:
        raise UserError(
            f"{run} is unconditional; `gdregs train --conditional` makes one that fits."
        )
    config, task, state = _load(run, data_dir)
    top = read_top_half(image, task.shape, ink)
    out = out or run / f"{image.stem}-completed-seed{seed}.png"
    if out.exists() and out.samefile(image):
        raise UserError(f"{out} is the image itself; choose another --out.")
    image_key, sample_key = jax.random.split(jax.random.key(seed))
    context = binarise(image_key, jnp.asarray(top.reshape(1, -1)), 255)[0]
    draw_completions(out, state.model, task, context, sample_key, count, _describe(config))
    print(out)


def _load(run: Path, data_dir: Path | None):
    from gdregs.vae.run import CHECKPOINT, CONFIG, load_state

    config = read_config(run / CONFIG)
    if not (run / CHECKPOINT).exists():
        raise UserError(f"{run} has no checkpoint yet; `gdregs train` writes one each epoch.")
    task = _prepare(config, data_dir)
    return config, task, load_state(run, config, task)


if __name__ == "__main__":
    sys.exit(main())
