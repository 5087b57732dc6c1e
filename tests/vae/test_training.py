"""Training: resumed runs equal uninterrupted ones bit for bit, whatever cuts them off."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import kl_divergence

from gdregs.vae import (
    Config,
    UserError,
    evaluate_log_marginal,
    gradient_quality,
    load_dataset,
    load_state,
    make_evaluation,
    make_state,
    make_task,
    open_run,
    read_metrics,
    train,
)
from gdregs.vae.networks.bernoulli import binarise

SMALL = Config(
    num_layers=2, latent_size=3, hidden_size=8, num_samples=4, gradient_samples=2, epochs=4,
    train_images=192, batch_size=64,
)  # fmt: skip
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


def run(folder, config, data):
    open_run(folder, config)
    return train(folder, config, make_task(config, data))


def numbers(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(folder)]


def assert_same_run(one, other):
    assert numbers(one) == numbers(other)
    assert (one / "checkpoint.eqx").read_bytes() == (other / "checkpoint.eqx").read_bytes()


@pytest.mark.parametrize(
    "changes", [{}, {"conditional": True, "num_layers": 1, "prior_estimator": "gdregs-mix"}]
)
def test_resuming_is_bitwise(tmp_path, data, changes):
    config = dataclasses.replace(SMALL, **changes)
    run(tmp_path / "whole", config, data)
    run(tmp_path / "parts", dataclasses.replace(config, epochs=1), data)
    run(tmp_path / "parts", dataclasses.replace(config, epochs=3), data)
    # What a process leaves that died after an epoch's metrics and before its checkpoint.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "train_bound": 0.0}\n{"epoch": 5, "tr')
    run(tmp_path / "parts", config, data)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [row["epoch"] for row in numbers(tmp_path / "whole")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_killed_process_loses_only_the_epoch_under_way(tmp_path, data):
    config = dataclasses.replace(SMALL, epochs=400)
    arguments = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in ("latent_size", "hidden_size", "num_samples", "gradient_samples", "epochs",
                     "train_images", "batch_size")
    ]  # fmt: skip
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "gdregs", "train", "--out", str(folder), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(read_metrics(folder))
    assert 3 <= done < 400
    epoch = int(load_state(folder, config, make_task(config, data)).epoch)
    assert epoch in (done - 1, done)
    until = dataclasses.replace(config, epochs=epoch + 2)
    train(folder, until, make_task(until, data))
    run(tmp_path / "whole", until, data)
    assert_same_run(tmp_path / "whole", folder)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path, data, monkeypatch):
    run(tmp_path / "run", dataclasses.replace(SMALL, epochs=1), data)
    before = (tmp_path / "run" / "checkpoint.eqx").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run", SMALL, make_task(SMALL, data))
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint.eqx").read_bytes() == before
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".lock"]
    train(tmp_path / "run", SMALL, make_task(SMALL, data))
    run(tmp_path / "whole", SMALL, data)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_folder_of_other_settings_is_left_alone(tmp_path, data):
    run(tmp_path / "run", dataclasses.replace(SMALL, epochs=1), data)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other = dataclasses.replace(SMALL, seed=5, num_samples=7)
    with pytest.raises(UserError, match=r"with --num-samples 4 \(not 7\), --seed 0 \(not 5\)"):
        open_run(tmp_path / "run", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not a run folder; choose another folder"):
        open_run(tmp_path / "mine", SMALL)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_spoiled_checkpoints_are_refused(tmp_path, data):
    run(tmp_path / "run", dataclasses.replace(SMALL, epochs=1), data)
    path = tmp_path / "run" / "checkpoint.eqx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is truncated, corrupt or of another model"):
        load_state(tmp_path / "run", SMALL, make_task(SMALL, data))


def test_spoiled_settings_are_refused(tmp_path, data):
    run(tmp_path / "run", dataclasses.replace(SMALL, epochs=1), data)
    for text in ("{", "{}", json.dumps({"config": {"colour": "red"}})):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(UserError, match="is not the settings of a run"):
            open_run(tmp_path / "run", SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar"}, "unknown dataset 'cifar'"),
        ({"num_layers": 0}, "--num-layers must be at least 1"),
        ({"epochs": -1}, "--epochs must not be negative"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"posterior_estimator": "dreg"}, "posterior_estimator must be one of"),
        ({"prior_estimator": "dregs"}, "prior_estimator must be one of"),
        ({"objective": "vr-iwae", "order": 1.0}, "VRIWAE of order alpha = 1 is the ELBO"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_a_batch_must_fit(data):
    with pytest.raises(UserError, match="--batch-size 64 is more than the 10 training images"):
        make_task(dataclasses.replace(SMALL, train_images=10), data)


@pytest.mark.parametrize("objective", ["elbo", "vr-iwae", "jvi"])
def test_every_objective_trains(tmp_path, data, objective):
    config = dataclasses.replace(SMALL, objective=objective, learning_rate=3e-3)
    run(tmp_path, config, data)
    rows = numbers(tmp_path)
    assert rows[-1]["test_bound"] > rows[0]["test_bound"] + 0.5


def test_the_mix_is_learned_and_reported(tmp_path, data):
    config = dataclasses.replace(SMALL, prior_estimator="gdregs-mix", epochs=1)
    state = run(tmp_path / "two", config, data)
    alpha = read_metrics(tmp_path / "two")[0]["alpha"]
    assert alpha == {name: float(value) for name, value in state.mix.alpha.items()}
    assert alpha["z1"] != 0.5
    assert alpha["z2"] == 0.5  # the top layer's prior has no parameters
    # An unconditional model of one layer has no prior to learn at all.
    run(tmp_path / "one", dataclasses.replace(config, num_layers=1), data)
    assert read_metrics(tmp_path / "one")[0]["alpha"] == {"z1": 0.5}


def test_binarisation_has_the_grey_values_as_probabilities():
    grey = jnp.array([[0, 4, 8, 16]], jnp.uint8)
    draws = jax.vmap(lambda key: binarise(key, grey, 16))(
        jax.random.split(jax.random.key(0), 10_000)
    )
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_allclose(draws.mean((0, 1)), [0, 0.25, 0.5, 1], atol=5 * 0.5 / 100)


def test_evaluation_covers_every_test_image(data):
    """297 images in batches of 64: the short last batch counts too."""
    task = make_task(SMALL, data)
    model = make_state(SMALL, task).model
    by_batch = make_evaluation(SMALL, task, task.test)(model)
    parts = [
        make_evaluation(SMALL, task, task.test[:256])(model),
        by_batch,
    ]
    assert all(jnp.isfinite(part.bound) for part in parts)
    assert parts[0].bound != parts[1].bound
    done = []
    value, error = evaluate_log_marginal(model, SMALL, task, task.test, 200, done.append)
    assert sum(done) == 297
    assert value > float(by_batch.bound)  # a bound with more samples is tighter
    assert 0 < error < 3


@pytest.mark.slow
def test_gradient_quality(data):
    task = make_task(SMALL, data)
    model = make_state(SMALL, task).model
    quality = gradient_quality(model, SMALL, task, jax.random.key(0), num_draws=50)
    assert set(quality) == {"posterior", "prior", "likelihood"}
    assert all(q.variance > 0 and q.snr > 0 for q in quality.values())
    # Naive gradients of the posterior vary more than doubly reparameterized ones.
    naive = dataclasses.replace(SMALL, posterior_estimator="naive", gradient_samples=0)
    dregs = dataclasses.replace(SMALL, gradient_samples=0)
    noise = [
        gradient_quality(model, c, task, jax.random.key(0), num_draws=200)["posterior"].variance
        for c in (naive, dregs)
    ]
    assert noise[0] > 1.2 * noise[1]


def test_kl_of_a_layer_is_that_of_two_gaussians(data):
    """One layer, conditional: the average over samples against the closed form."""
    config = dataclasses.replace(
        SMALL, conditional=True, num_layers=1, num_samples=2000, test_images=64
    )
    task = make_task(config, data)
    model = make_state(config, task).model
    found = make_evaluation(config, task, task.test)(model)
    key = jax.random.split(jax.random.fold_in(jax.random.key(20_000), 0))[0]
    x, context = task.split(binarise(key, task.test, task.levels))
    q = model.posterior(x, context).conditionals["z1"]
    p = model.prior(context).conditionals["z1"]
    closed = jnp.mean(kl_divergence(q, p))
    np.testing.assert_allclose(found.kl["z1"], closed, rtol=0.01)
    assert found.bound.shape == ()


def test_measurements_keep_to_their_schedule(tmp_path, data):
    config = dataclasses.replace(SMALL, epochs=5, record_every=2, variance_draws=2, test_images=64)
    run(tmp_path, config, data)
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows if "test_bound" in row] == [2, 4, 5]
    assert all(set(row["variance"]) == {"posterior", "prior", "likelihood"} for row in rows[1::2])
    assert all(value > 0 for value in rows[-1]["variance"].values())
