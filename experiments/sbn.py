"""Which gradient rule trains a sigmoid belief network best, and with how much gradient variance?

Binary latents in one or two layers (Mnih and Gregor 2014; settings of Dong et al. 2020). Every rule
starts from the same parameters. Variances are measured along ONE training path, that of the first
rule, with frozen parameters and a fixed batch; rules with learned control variates bring the
control that their own training had at that step. Expect on the 8 x 8 digits: antithetic and
leave-one-out rules a decade or more below plain REINFORCE, RELAX and REBAR with them.

    python -m experiments.sbn --rules=rloo,disarm,rebar --layers=32,32
    python -m experiments.sbn --preset=published --layers=200,200 --hidden=200 --num_steps=100_000

Seen at the default settings: test bounds (K = 100) from -20.07 (ARMS, 4 draws) and -20.17 (REBAR)
to -20.52 (RLOO) and -20.81 (REINFORCE with a running mean), variances a decade apart, in about two
minutes on two cores.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from experiments import data, figures, harness
from experiments.harness import Outcome
from experiments.sbn_rules import RULES, estimator, evaluations
from experiments.vae_training import binarized, score

CHECKPOINTS = 6  # where variances are measured
RECORD_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    # Names in RULES
    rules: tuple[str, ...] = (
        "rloo",
        "reinforce",
        "nvil",
        "disarm",
        "arms",
        "rebar",
        "relax",
        "double_cv",
    )
    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    data_dir: str | None = (
        None  # folder with the files, downloaded there if missing; None: the user's cache folder
    )
    # At 1/2; one Bernoulli draw; a new draw at every visit
    binarize: Literal["threshold", "static", "dynamic"] = "threshold"
    # Binary latents per stochastic layer, next to the data first; one or two layers
    layers: tuple[int, ...] = (50,)
    hidden: int = 0  # width of two tanh layers in every conditional ("nonlinear"); 0: linear
    batch_size: int = 50
    num_steps: int = 1500  # per rule
    learning_rate: float = 3e-3  # of Adam, for theta and phi
    control_rate: float = 1e-2  # of Adam, for learned baselines and control variates
    num_draws: int = 256  # gradients per variance
    evidence_samples: int = 100  # K of the test multi-sample bound
    max_scored: int = 2000  # most test images that are scored; 0: all
    seed: int = 0
    # The defaults of Dong et al. 2020; any setting given beside it wins
    preset: Literal["none", "published"] = "none"
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "published": {
        "data": "mnist",
        "binarize": "dynamic",
        "layers": (200,),
        "batch_size": 50,
        "num_steps": 1_000_000,
        "learning_rate": 1e-4,
        "control_rate": 1e-3,
    },
}


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      train_x: [N, P]
      test_x: [M, P]
    """

    train_x: jax.Array
    test_x: jax.Array
    model: vj.Model
    guide: vj.Guide
    estimators: dict[str, vj.Estimator]


class Trained(NamedTuple):
    """One rule's run.

    Attributes:
      step: [T]
      curve: [T] ELBO of training minibatches, nats per image
      path: (params, estimator state) at every checkpoint, the initial ones first
      microseconds: per step, median of chunks, compilation left out
    """

    step: np.ndarray
    curve: np.ndarray
    path: list[tuple[vj.Params, Any]]
    microseconds: float


def build(config: Config) -> Job:
    """Data, model, guide, and an estimator for every rule."""
    unknown = [name for name in config.rules if name not in RULES]
    if unknown or not config.rules:
        raise ValueError(f"--rules={','.join(config.rules)}: choose from {', '.join(RULES)}.")
    images = data.load(config.data, config.data_dir)
    fixed = data.threshold if config.binarize == "threshold" else data.sampled(config.seed)
    train_x = jnp.asarray(images.train_x if config.binarize == "dynamic" else fixed(images.train_x))
    test_x = jnp.asarray(fixed(images.test_x[: config.max_scored or None]))
    num_pixels, mean = train_x.shape[1], jnp.asarray(images.train_x.mean(axis=0))
    model = vj.models.sigmoid_belief_net(num_pixels, config.layers, hidden=config.hidden)
    guide = vj.models.recognition_net(num_pixels, config.layers, hidden=config.hidden, mean=mean)
    made = {name: estimator(model, guide, RULES[name], train_x) for name in config.rules}
    dynamic = config.binarize == "dynamic"
    return Job(
        train_x,
        test_x,
        model,
        guide,
        {name: binarized(est) if dynamic else est for name, est in made.items()},
    )


def steps_per_chunk(config: Config) -> int:
    """A multiple of RECORD_EVERY; CHECKPOINTS - 1 chunks make a run."""
    return max(1, config.num_steps // (CHECKPOINTS - 1) // RECORD_EVERY) * RECORD_EVERY


def train(key: jax.Array, config: Config, job: Job, name: str, bar: Any) -> Trained:
    """One rule from the common starting point; theta, phi and the minibatches are the same function
    of the seed for all.
    """
    est, every = job.estimators[name], steps_per_chunk(config)
    init_key, fit_key = jax.random.split(key)
    common = next(iter(job.estimators.values())).init_params(init_key)
    params = est.init_params(init_key)._replace(theta=common.theta, phi=common.phi)
    path, seconds, mark = [(params, est.init(init_key, params))], [], time.perf_counter()

    def watch(seen: Any) -> None:
        nonlocal mark
        seconds.append((time.perf_counter() - mark) / every)
        path.append((seen.params, seen.state))
        bar.update(1)
        bar.set_postfix_str(
            f"{name}: ELBO {-seen.history.loss[-1] / len(job.train_x):.2f} nats/image"
        )
        mark = time.perf_counter()

    optimizer = optax.partition(
        {"model": optax.adam(config.learning_rate), "control": optax.adam(config.control_rate)},
        vj.Params("model", "model", "control"),
    )
    result = vj.fit(
        fit_key,
        est,
        optimizer,
        params,
        job.train_x,
        num_steps=every * (CHECKPOINTS - 1),
        batch_size=config.batch_size,
        record_every=RECORD_EVERY,
        chunk_size=every,
        callbacks=[watch],
    )
    curve = -result.history.loss / len(job.train_x)
    return Trained(result.history.step, curve, path, 1e6 * float(np.median(seconds[1:] or seconds)))


def variances(
    key: jax.Array, config: Config, job: Job, runs: dict[str, Trained], bar: Any
) -> dict[str, np.ndarray]:
    """[CHECKPOINTS] variance of phi's gradient for every rule, averaged over its elements, along
    the first rule's path.

    Of the gradient of the ELBO in nats per image, estimated from one fixed minibatch.
    """
    reference = runs[config.rules[0]].path
    batch = vj.Batch(job.train_x[: config.batch_size], jnp.arange(config.batch_size))
    measured = {}
    for name, est in job.estimators.items():
        row = []
        for (place, _), (own, state) in zip(reference, runs[name].path, strict=True):
            params = place._replace(control=own.control)
            report = vj.lab.gradient_report(
                key, est, params, state, batch, num_draws=config.num_draws
            )
            leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(report.variance.phi)]
            row.append(float(np.concatenate(leaves).mean()) / len(job.train_x) ** 2)
            bar.update(1)
        measured[name] = np.asarray(row)
    return measured


def run(config: Config) -> Outcome:
    """Train with every rule, score each on the test images, measure variances along the first
    rule's path.
    """
    job = build(config)
    train_key, variance_key, score_key = jax.random.split(jax.random.key(config.seed), 3)
    with harness.progress_bar(len(config.rules) * (CHECKPOINTS - 1), "train", "chunk") as bar:
        runs = {name: train(train_key, config, job, name, bar) for name in config.rules}
    with harness.progress_bar(
        len(config.rules) * CHECKPOINTS, "gradient variances", "point"
    ) as bar:
        measured = variances(variance_key, config, job, runs, bar)
    metrics: dict[str, Any] = {
        "num_train": len(job.train_x),
        "num_test": len(job.test_x),
        "rules": {},
    }
    arrays: dict[str, np.ndarray] = {"checkpoint": np.arange(CHECKPOINTS) * steps_per_chunk(config)}
    for name, trained in runs.items():
        evidence = score(
            score_key,
            job.model,
            job.guide,
            trained.path[-1][0],
            job.test_x,
            config.evidence_samples,
            f"score {name}",
        )
        arrays |= {
            f"step_{name}": trained.step,
            f"curve_{name}": trained.curve,
            f"variance_{name}": measured[name],
        }
        metrics["rules"][name] = {
            "train_elbo": float(np.mean(trained.curve[-max(1, len(trained.curve) // 10) :])),
            "test_elbo": float(np.mean(evidence.elbo)),
            "test_bound": float(np.mean(evidence.log_evidence)),
            "test_bound_images_se": float(
                np.std(evidence.log_evidence, ddof=1) / len(evidence.log_evidence) ** 0.5
            ),
            "evaluations_per_step": evaluations(RULES[name], config.layers[0]),
            "microseconds_per_step": trained.microseconds,
            "log10_variance_median": float(np.median(np.log10(np.maximum(measured[name], 1e-30)))),
        }
    return Outcome(metrics, arrays)


def report(outcome: Outcome) -> str:
    """The table, best test bound first."""
    metrics = outcome.metrics
    lines = [
        f"sigmoid belief net, {metrics['num_train']} training and {metrics['num_test']} test "
        f"images, nats per image",
        f"  {'rule':16s} {'train ELBO':>10s} {'test ELBO':>9s} {'test bound':>15s} "
        f"{'log10 var':>9s} {'us/step':>8s}  cost",
    ]
    for name, m in sorted(metrics["rules"].items(), key=lambda item: -item[1]["test_bound"]):
        bound = f"{m['test_bound']:8.2f} +- {m['test_bound_images_se']:.2f}"
        numbers = (
            f"{m['train_elbo']:10.2f} {m['test_elbo']:9.2f} {bound:>15s} "
            f"{m['log10_variance_median']:9.2f}"
        )
        lines.append(
            f"  {name:16s} {numbers} {m['microseconds_per_step']:8.0f}  {m['evaluations_per_step']}"
        )
    return "\n".join(lines)


def plot(folder: Path) -> list[Path]:
    """Both figures of a results folder, from the folder alone: one line per rule."""
    config, metrics, arrays = harness.read(folder)
    names, written = list(metrics["rules"]), []
    figure, axes = figures.new(6.4, 4.0)
    figures.lines(axes, {n: (arrays[f"step_{n}"], smooth(arrays[f"curve_{n}"])) for n in names})
    low = min(float(np.quantile(arrays[f"curve_{n}"], 0.15)) for n in names)
    axes.set(xlabel="step", ylabel="train ELBO, nats per image", ylim=(low, None))
    written.append(figures.save(figure, folder, "train_elbo"))

    figure, axes = figures.new(6.4, 4.0)
    figures.lines(
        axes, {n: (arrays["checkpoint"], arrays[f"variance_{n}"]) for n in names}, marker="o"
    )
    axes.set(
        xlabel=f"step of the {config['rules'][0]} run",
        ylabel="variance of phi's gradient",
        yscale="log",
    )
    written.append(figures.save(figure, folder, "gradient_variance"))
    return written


def smooth(curve: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean over `width` records, shorter at the ends."""
    kernel = np.ones(min(width, len(curve)))
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones_like(curve), kernel, "same")


def resolve(config: Config) -> Config:
    """The settings behind --smoke."""
    if config.smoke:
        config = dataclasses.replace(
            config,
            layers=(8,) * len(config.layers),
            num_steps=50,
            num_draws=32,
            evidence_samples=10,
            max_scored=64,
        )
    return config


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args, presets=PRESETS)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    return harness.execute("sbn", resolve(config), run, report, plot)


if __name__ == "__main__":
    main()
