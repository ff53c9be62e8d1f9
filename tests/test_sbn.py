"""Sigmoid belief nets: the log-joint is a density, every rule agrees with enumeration in two
layers, the script runs.
"""

import itertools
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased

import vijax as vj
from experiments.common import harness
from experiments.sbn import __main__ as sbn
from experiments.sbn.rules import RULES, estimator
from experiments.sbn.training import Checkpoint, build, variances
from vijax import rules

PIXELS, DRAWS = 2, 4000


def bits(size):
    return jnp.asarray(list(itertools.product((0.0, 1.0), repeat=size)))


@pytest.mark.parametrize(("sizes", "hidden"), [((2,), 0), ((2, 1), 3)])
def test_the_log_joint_sums_to_one(sizes, hidden):
    model = vj.models.sigmoid_belief_net(PIXELS, sizes, hidden=hidden)
    theta, every = model.init(jax.random.key(0)), bits(PIXELS + sum(sizes))

    def log_p(v):
        x, *layers = jnp.split(v, np.cumsum([PIXELS, *sizes])[:-1])
        return model.log_local(
            theta, None, layers[0] if len(sizes) == 1 else {"h1": layers[0], "h2": layers[1]}, x
        )

    assert abs(jnp.sum(jnp.exp(jax.vmap(log_p)(every))) - 1.0) < 1e-5


def test_simulation_has_the_models_law():
    model = vj.models.sigmoid_belief_net(PIXELS, (2,))
    theta, x = model.init(jax.random.key(3)), bits(PIXELS)
    probs = jax.vmap(
        lambda x: jnp.sum(jnp.exp(jax.vmap(lambda z: model.log_local(theta, None, z, x))(bits(2))))
    )(x)
    _, drawn = model.simulate(jax.random.key(1), theta, DRAWS)
    share = jnp.mean(jnp.all(drawn[:, None] == x[None], axis=-1), axis=0)
    assert np.all(np.abs(share - probs) < 5.0 * np.sqrt(probs * (1.0 - probs) / DRAWS))


@pytest.mark.parametrize("name", ["rloo", "disarm", "rebar"])
def test_two_layers_are_unbiased_in_every_weight(name):
    """Rules per layer, the inner one given the outer draw, against enumerated() in both layers."""
    model, guide = (
        vj.models.sigmoid_belief_net(PIXELS, (2, 2)),
        vj.models.recognition_net(PIXELS, (2, 2)),
    )
    x = jnp.array([[1.0, 0.0]])
    batch = vj.Batch(x, jnp.arange(1))
    exact = vj.estimator(
        model, guide, rules={"h1": rules.enumerated(), "h2": rules.enumerated()}, num_data=1
    )
    noisy = estimator(model, guide, RULES[name], x)
    params = noisy.init_params(jax.random.key(0))
    answer = exact.estimate(
        jax.random.key(0),
        exact.init_params(jax.random.key(0))._replace(theta=params.theta, phi=params.phi),
        exact.init(jax.random.key(0), params),
        batch,
    )[0].grads
    state = noisy.init(jax.random.key(0), params)
    draw = jax.jit(jax.vmap(lambda key: noisy.estimate(key, params, state, batch)[0].grads))
    draws = draw(jax.random.split(jax.random.key(5), DRAWS))
    assert_unbiased((draws.theta, draws.phi), (answer.theta, answer.phi))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(jax.tree.map(lambda g: 0.5 * g, draws.phi), answer.phi)


@pytest.mark.parametrize(("layers", "seeds"), [("8", 2), ("6,4", 1)])
def test_the_script_compares_rules_and_redraws_from_its_folder(layers, seeds, tmp_path):
    settings = ["--smoke", "--rules=rloo,disarm", f"--layers={layers}", f"--seeds={seeds}"]
    folder = sbn.main([*settings, f"--results_dir={tmp_path}"])
    config, metrics, arrays = harness.read(folder)
    assert config["layers"] == [int(width) for width in layers.split(",")]  # given: not --smoke's
    assert metrics["status"] == "finished" and set(metrics["rules"]) == {"rloo", "disarm"}
    assert all(m["test_bound"] >= m["test_elbo"] for m in metrics["rules"].values())
    history = harness.read_tables(folder)["history"]
    assert np.all(history.samples_seen == 50 * history.step)
    assert np.all(np.isfinite(history.drop(columns=["bound", "rule"])))
    for name, mine in metrics["rules"].items():
        last = history[(history.rule == name) & (history.step == 50)]
        assert len(last) == seeds and mine["test_bound"] == pytest.approx(last.test_bound.mean())
        of_images = arrays[f"rules/{name}/test_bound"]
        assert mine["test_bound"] == pytest.approx(of_images.mean(), rel=1e-5)
        if seeds == 2:
            spread = last.test_bound.std(ddof=1) / 2**0.5
            assert mine["test_bound_seeds_se"] == pytest.approx(spread, rel=1e-5) and spread > 0.0
        else:
            spread = of_images.std(ddof=1) / 64**0.5
            assert mine["test_bound_images_se"] == pytest.approx(spread, rel=1e-4)
            assert "test_bound_seeds_se" not in mine
    for figure in (folder / "figures").iterdir():
        figure.unlink()
    sbn.main([f"--replot={folder}"])
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "train_elbo",
        "test_bound",
        "gradient_variance",
    }


def test_the_variance_is_that_of_the_lab():
    """Summed over elements, nats^2, of the bound on all data: against draws taken by hand."""
    config = sbn.smoke_settings(sbn.Config(rules=("rloo",)))
    job = build(config)
    est, key = job.estimators["rloo"], jax.random.key(3)
    params = est.init_params(key)
    here = [Checkpoint(params, est.init(key, params))]
    with harness.progress_bar(1, None, "point") as bar:
        value, error = variances(jax.random.key(4), config, job, "rloo", here, here, bar)
    batch = vj.Batch(job.train_x[:50], jnp.arange(50))
    draw = jax.jit(lambda k: est.estimate(k, params, here[0].state, batch)[0].grads.phi)
    draws = jax.lax.map(draw, jax.random.split(jax.random.key(5), 400))
    leaves = [np.asarray(leaf).reshape(400, -1) for leaf in jax.tree.leaves(draws)]
    by_hand = sum(leaf.var(axis=0, ddof=1).sum() for leaf in leaves)
    spread = error[0] * (1.0 + (config.num_draws / 400) ** 0.5)
    assert abs(value[0] - by_hand) < 5.0 * spread
    size = sum(leaf.shape[1] for leaf in leaves)
    assert abs(value[0] - by_hand / size) > 5.0 * spread  # planted: the mean over elements


def test_ctrl_c_keeps_what_there_is(tmp_path):
    """Pressed as soon as there is anything."""
    seen = []

    def press():
        while not seen:
            seen.extend((tmp_path / "sbn").glob("*/history.csv"))
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(harness.Interrupted):
        sbn.main(["--smoke", "--rules=rloo,disarm", f"--results_dir={tmp_path}"])
    thread.join()
    folder = seen[0].parent
    _, metrics, _ = harness.read(folder)
    assert metrics["status"] == "interrupted" and "rloo" in metrics["rules"]
    assert (folder / "summary.txt").read_text().startswith("UNFINISHED (interrupted")
    assert {"train_elbo"} <= {path.stem for path in sbn.plot(folder)}  # from what there is


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_every_rule_runs_and_learns(name, tmp_path):
    folder = sbn.main(["--smoke", f"--rules={name}", "--num_draws=8", f"--results_dir={tmp_path}"])
    metrics = json.loads((folder / "metrics.json").read_text())["rules"][name]
    (curve,) = np.load(folder / "arrays.npz")[f"curve_{name}"]
    assert (
        np.all(np.isfinite(curve))
        and curve[-1] > curve[0]
        and metrics["test_bound"] >= metrics["test_elbo"]
    )


def test_unknown_rules_are_named():
    with pytest.raises(ValueError, match="choose from reinforce"):
        build(sbn.Config(rules=("rlo",)))


@pytest.mark.parametrize("num_steps", [0, 7, 1503])
def test_steps_that_would_be_rounded_without_a_word_are_refused(num_steps):
    with pytest.raises(ValueError, match="--num_steps=(0 must|7 .*=50|1503 .*=1500)"):
        build(sbn.Config(num_steps=num_steps))


def test_what_is_given_wins_over_the_preset(capsys):
    def parsed(*args):
        return harness.parse(sbn.Config, "", args, presets=sbn.PRESETS)

    published = {
        "data": "mnist",
        "binarize": "dynamic",
        "learning_rate": 1e-4,
        "num_steps": 1_000_000,
        "layers": (200,),
    }
    for args, changes in {
        ("--preset=published",): {},
        ("--preset", "published", "--num_steps", "200"): {"num_steps": 200},
        # The plain default, but given
        ("--num-steps=1500", "--preset=published"): {"num_steps": 1500},
        ("--preset=published", "--layers=32,32", "--data=omniglot"): {
            "layers": (32, 32),
            "data": "omniglot",
        },
    }.items():
        config = parsed(*args)
        assert {name: getattr(config, name) for name in published} == published | changes, args
        assert config.preset == "published"
    assert parsed() == parsed("--preset=none") == sbn.Config()
    with pytest.raises(SystemExit):
        parsed("--preset=publisht")
    assert "publisht" in capsys.readouterr().err
