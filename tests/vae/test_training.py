"""Training: resumed runs equal uninterrupted ones bit for bit, whatever cuts them off."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import kl_divergence

from commands import start
from filled import filled
from gdregs.objectives import ELBO, IWAE, JVI, VRIWAE
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
from gdregs.vae.files import write_text
from gdregs.vae.networks.bernoulli import binarise
from gdregs.vae.training.epochs import make_epoch

SMALL = Config(
    num_layers=2, latent_size=3, hidden_size=8, num_samples=4, gradient_samples=2, epochs=3,
    train_images=192, batch_size=64,
)  # fmt: skip
LEARNED = dataclasses.replace(SMALL, conditional=True, prior_estimator="gdregs-mix")
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


def make_model(config, task):
    return filled(lambda: make_state(config, task).model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """Three epochs of `SMALL`, without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, SMALL, data)
    return folder


def test_epochs_climb_and_count_and_start_from_what_they_are_given(data):
    """One program; an epoch of one state is the same twice, and another epoch than the next."""
    config = dataclasses.replace(SMALL, num_layers=1, gradient_samples=0, learning_rate=1e-2)
    task = make_task(config, data)
    begin = jax.jit(lambda model: make_state(config, task, model))
    epoch = make_epoch(config, task)
    bounds = []
    for _ in range(2):
        state = begin(make_model(config, task))
        for number in range(1, 5):
            state, metrics = epoch(state)
            assert (int(state.epoch), int(metrics.diverged_at)) == (number, 0)
            assert 1 <= float(metrics.effective_sample_size) <= 4
            bounds.append(float(metrics.bound))
    assert bounds[:4] == bounds[4:]
    assert bounds[3] > bounds[0] + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, LEARNED], ids=["dregs", "learned mix"])
def test_resuming_is_bitwise(tmp_path, data, config, request):
    if config == SMALL:
        reference = request.getfixturevalue("whole")
    else:
        reference = tmp_path / "whole"
        run(reference, config, data)
    run(tmp_path / "parts", dataclasses.replace(config, epochs=2), data)
    # What a process leaves that died after an epoch's metrics and before its checkpoint.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_bound": 0.0}\n{"epoch": 4, "tr')
    run(tmp_path / "parts", config, data)
    assert_same_run(reference, tmp_path / "parts")
    assert [row["epoch"] for row in numbers(reference)] == [1, 2, 3]


@pytest.mark.slow
def test_a_killed_process_loses_only_the_epoch_under_way(tmp_path, data):
    config = dataclasses.replace(SMALL, epochs=400)
    arguments = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in ("latent_size", "hidden_size", "num_samples", "gradient_samples", "epochs",
                     "train_images", "batch_size")
    ]  # fmt: skip
    folder = tmp_path / "killed"
    command = ["-m", "gdregs", "train", "--out", folder, *arguments]
    process = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
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


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch, function):
    """Of a checkpoint, settings, metrics and pages, which all are written so."""
    write_text(tmp_path / "file", "before")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"os.{function}", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "after")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
    write_text(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "after"


def test_a_folder_of_other_settings_is_left_alone(tmp_path):
    open_run(tmp_path / "run", SMALL)
    (tmp_path / "run" / "checkpoint.eqx").write_bytes(b"precious")
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


@pytest.mark.slow
def test_spoiled_checkpoints_are_refused(tmp_path, data, whole):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.eqx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is truncated, corrupt or of another model"):
        load_state(tmp_path / "run", SMALL, make_task(SMALL, data))


def test_spoiled_settings_are_refused(tmp_path):
    open_run(tmp_path / "run", SMALL)
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


def test_settings_name_every_objective():
    order = {"order": 0.25}
    named = {
        name: dataclasses.replace(SMALL, objective=name, **order).make_objective()
        for name in ("iwae", "elbo", "vr-iwae", "jvi")
    }
    assert named == {"iwae": IWAE(), "elbo": ELBO(), "vr-iwae": VRIWAE(0.25), "jvi": JVI()}


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("jvi", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("elbo", "vr-iwae")),
    ],
)
def test_every_objective_trains(tmp_path, data, objective):
    config = dataclasses.replace(SMALL, objective=objective, learning_rate=1e-2)
    run(tmp_path, config, data)
    rows = numbers(tmp_path)
    assert rows[-1]["test_bound"] > rows[0]["test_bound"] + 0.5


@pytest.mark.slow
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
    grey = np.array([[0, 4, 8, 16]], np.uint8)

    @jax.jit
    def draw(seed):
        keys = jax.random.split(jax.random.key(seed), 10_000)
        return jax.vmap(lambda key: binarise(key, jnp.asarray(grey), 16))(keys)

    draws = np.asarray(draw(0))
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_allclose(draws.mean((0, 1)), [0, 0.25, 0.5, 1], atol=5 * 0.5 / 100)


def test_evaluation_covers_every_test_image(data):
    """Ten images in batches of four: the short last batch counts too, with a key of its own."""
    config = dataclasses.replace(SMALL, num_layers=1, batch_size=4, test_images=10)
    task = make_task(config, data)
    model = make_model(config, task)
    found = make_evaluation(config, task, task.test)(model)

    @jax.jit
    def by_hand(model, images):
        bounds = []
        for number in range(3):
            key = jax.random.fold_in(jax.random.key(20_000), number)
            binary_key, sample_key = jax.random.split(key)
            x = binarise(binary_key, images[4 * number : 4 * number + 4], task.levels)
            posterior, prior = model.posterior(x), model.prior()
            z = posterior.sample(sample_key, (4,))
            log_weights = prior.log_prob(z) + model.likelihood(x)(z) - posterior.log_prob(z)
            bounds.append(jax.nn.logsumexp(log_weights, axis=0) - np.log(4))
        return jnp.mean(jnp.concatenate(bounds))

    np.testing.assert_allclose(found.bound, by_hand(model, task.test), rtol=1e-5)


@pytest.mark.slow
def test_an_evaluation_with_more_samples_is_tighter(data):
    task = make_task(SMALL, data)
    model = make_state(SMALL, task).model
    bound = make_evaluation(SMALL, task, task.test)(model).bound
    done = []
    value, error = evaluate_log_marginal(model, SMALL, task, task.test, 200, done.append)
    assert sum(done) == 297
    assert value > float(bound)
    assert 0 < error < 3


@pytest.mark.slow
def test_gradient_quality(data):
    task = make_task(SMALL, data)
    model = make_state(SMALL, task).model

    def measure(config):
        return jax.jit(
            lambda model: gradient_quality(model, config, task, jax.random.key(0), num_draws=200)
        )(model)

    # Naive gradients of the posterior vary more than doubly reparameterized ones.
    naive, dregs = (
        measure(dataclasses.replace(SMALL, posterior_estimator=name, gradient_samples=0))
        for name in ("naive", "dregs")
    )
    assert set(dregs) == {"posterior", "prior", "likelihood"}
    assert all(q.variance > 0 and q.snr > 0 for q in dregs.values())
    assert naive["posterior"].variance > 1.2 * dregs["posterior"].variance


def test_kl_of_a_layer_is_that_of_two_gaussians(data):
    """One layer, conditional: the average over samples against the closed form."""
    config = dataclasses.replace(
        SMALL, conditional=True, num_layers=1, num_samples=2000, test_images=64
    )
    task = make_task(config, data)
    model = make_model(config, task)
    found = make_evaluation(config, task, task.test)(model)

    @jax.jit
    def closed_form(model, images):
        key = jax.random.split(jax.random.fold_in(jax.random.key(20_000), 0))[0]
        x, context = task.split(binarise(key, images, task.levels))
        q = model.posterior(x, context).conditionals["z1"]
        p = model.prior(context).conditionals["z1"]
        return jnp.mean(kl_divergence(q, p))

    np.testing.assert_allclose(found.kl["z1"], closed_form(model, task.test), rtol=0.01)
    assert found.bound.shape == ()
