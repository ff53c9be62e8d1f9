"""How well does a variational autoencoder describe held-out images, with an encoder or with one
phi_i per image?

A standard normal latent, a decoder network, a diagonal normal q (Kingma and Welling 2014; Rezende
et al. 2014). Expect on the 8 x 8 digits, default settings, 360 held-out images: test ELBO about
-17.8 nats per image, log-evidence about -16.9.

python -m experiments.vae --guide=per_datapoint --objective=iwae --rule=doubly_reparameterized
--num_samples=10
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from experiments import data, figures, harness, vae_training
from experiments.harness import Outcome
from vijax.models import Mlp, bernoulli_pixels, normal_pixels, vae


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    data_dir: str | None = (
        None  # folder with the files, downloaded there if missing; None: the user's cache folder
    )
    # At 1/2; one Bernoulli draw; a new draw at every visit
    binarize: Literal["threshold", "static", "dynamic"] = "threshold"
    # An encoder, or a table of phi_i, one row per image
    guide: Literal["amortized", "per_datapoint"] = "amortized"
    # Of binarized pixels, or mean and log-variance per pixel
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    objective: Literal["elbo", "iwae", "renyi"] = "elbo"
    alpha: float = 0.5  # order of the Renyi bound
    # Score uses leave-one-out baselines
    rule: Literal["pathwise", "doubly_reparameterized", "score"] = "pathwise"
    # K per image and step; None: 1 where that is enough (elbo without score), else 5
    num_samples: int | None = None
    latent_dim: int = 10  # D
    widths: tuple[int, ...] = (128, 128)  # hidden layers of the encoder; of the decoder in reverse
    # Least standard deviation of a gaussian pixel; None: the spacing of the grey values
    min_scale: float | None = None
    batch_size: int = 64
    epochs: int = 300
    learning_rate: float = 1e-3  # of Adam, at the start; falls to 0 along a cosine
    row_learning_rate: float = 0.03  # the same for the rows phi_i of --guide=per_datapoint
    # Steps that fit phi_i of test images, theta frozen, --guide=per_datapoint only
    test_steps: int = 1000
    evidence_samples: int = 1000  # K of the test log-evidence
    max_scored: int = 2000  # most images of either split that are scored; 0: all
    seed: int = 0
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      train_x: [N, P] as the likelihood takes them; grey if they are binarized afresh at every visit
      scored_train: [M, P] the first M of them, binarized once
      scored_test: [M', P]
    """

    images: data.Dataset
    train_x: jax.Array
    scored_train: jax.Array
    scored_test: jax.Array
    likelihood: Any
    decoder: Mlp
    model: vj.Model
    objective: Any
    rule: vj.Rule
    num_samples: int


def build(config: Config) -> Job:
    """Data, model, objective and rule. Refuses settings that would answer another question than
    they seem to ask.
    """
    check(config)
    images = data.load(config.data, config.data_dir)
    gaussian, most = config.likelihood == "gaussian", config.max_scored or None
    fixed = data.threshold if config.binarize == "threshold" else data.sampled(config.seed)
    observe = (lambda x: x) if gaussian else fixed
    train_x = images.train_x if config.binarize == "dynamic" else observe(images.train_x)
    likelihood = (
        normal_pixels(min_scale=config.min_scale or images.grey_step)
        if gaussian
        else bernoulli_pixels()
    )
    decoder = Mlp(config.widths[::-1], images.train_x.shape[1] * likelihood.outputs_per_pixel)
    objectives = {
        "elbo": vj.objectives.elbo,
        "iwae": vj.objectives.iwae,
        "renyi": vj.objectives.renyi(config.alpha),
    }
    rules = {
        "pathwise": vj.rules.pathwise,
        "doubly_reparameterized": vj.rules.doubly_reparameterized,
        "score": vj.rules.score,
    }
    one_is_enough = config.objective == "elbo" and config.rule != "score"
    return Job(
        images,
        jnp.asarray(train_x),
        jnp.asarray(observe(images.train_x[:most])),
        jnp.asarray(observe(images.test_x[:most])),
        likelihood,
        decoder,
        vae(decoder, config.latent_dim, likelihood),
        objectives[config.objective],
        rules[config.rule](),
        config.num_samples or (1 if one_is_enough else 5),
    )


def check(config: Config) -> None:
    """Raises ValueError for combinations without a meaning."""
    if config.binarize == "dynamic" and config.guide == "per_datapoint":
        raise ValueError(
            "--binarize=dynamic shows a new draw of an image at every visit, but a row phi_i "
            "belongs to one observed x_i: q "
            "could not follow it. Use --binarize=static (one draw) or threshold, or "
            "--guide=amortized."
        )
    if config.binarize == "dynamic" and config.likelihood == "gaussian":
        raise ValueError(
            "--likelihood=gaussian models grey values: there is nothing to binarize. Leave "
            "--binarize out."
        )
    if config.epochs < 1 or config.batch_size < 1:
        raise ValueError(
            f"--epochs={config.epochs} --batch_size={config.batch_size}: both must be at least 1."
        )


def run(config: Config) -> Outcome:
    """Train, infer the test images' latents, score both splits. Pure: a function of the settings
    (and of the clock).
    """
    job = build(config)
    train_key, test_key, score_key = jax.random.split(jax.random.key(config.seed), 3)
    held_out = vae_training.held_out_fitter(config, job)
    trained = vae_training.train(train_key, config, job, held_out)
    guide, params = vae_training.infer_test(test_key, config, held_out, trained)
    few = vae_training.CURVE_SAMPLES  # enough for an ELBO, whose noise averages out over the images
    train = vae_training.score(
        score_key, job.model, trained.guide, trained.params, job.scored_train, few, "score train"
    )
    test = vae_training.score(
        score_key, job.model, guide, params, job.scored_test, config.evidence_samples, "score test"
    )

    @jax.jit
    @jax.vmap
    def decode(z: jax.Array) -> jax.Array:
        return job.likelihood.mean(job.decoder.apply(params.theta, z)).reshape(
            job.images.image_shape
        )

    latent = vae_training.posterior_means(guide, params, job.scored_test)  # [M', D]
    shown = one_per_class(job.images.test_label[: len(latent)])
    prior = np.random.default_rng(config.seed).standard_normal((100, config.latent_dim), np.float32)
    arrays: dict[str, Any] = {
        "epoch": trained.epoch,
        "train_curve": trained.train_curve,
        "test_curve": trained.test_curve,
        "train_elbo": train.elbo,
        "test_elbo": test.elbo,
        "test_log_evidence": test.log_evidence,
        "test_standard_error": test.standard_error,
        "latent": latent,
        "label": job.images.test_label[: len(latent)],
        "original": job.scored_test[shown].reshape(-1, *job.images.image_shape),
        "reconstruction": decode(latent[shown]),
        "prior_means": decode(prior),
    }
    metrics = vae_training.summarize(train, test) | {
        "num_train": len(job.train_x),
        "num_samples": job.num_samples,
        "evidence_samples": config.evidence_samples,
        "compile_seconds": trained.compile_seconds,
        "compilations": trained.compilations,
        "seconds_per_epoch": trained.seconds_per_epoch,
        "training_seconds": trained.seconds,
        "epochs_run": float(trained.epoch[-1]),
        "interrupted": trained.interrupted,
    }
    return Outcome(metrics, {name: np.asarray(value) for name, value in arrays.items()})


def one_per_class(label: np.ndarray) -> np.ndarray:
    """[<= 10] rows: the first of each of the first ten classes, or simply the first ten if there
    are fewer classes.
    """
    rows = np.unique(label, return_index=True)[1][:10]
    return rows if len(rows) == 10 else np.arange(min(10, len(label)))


def report(outcome: Outcome) -> str:
    """The final report: nats per image; every figure beside what its error means."""
    metrics = outcome.metrics
    m = metrics
    head = (
        f"VAE, {m['num_train']} training images, K = {m['num_samples']} per step, "
        f"{m['epochs_run']:.0f} epochs"
    )
    own = (
        f"K = {m['evidence_samples']} importance samples, their error +- "
        f"{m['test_log_evidence_sampling_se']:.3f}"
    )
    rows = (
        ("train ELBO", "train_elbo", f"{m['train_scored']} images"),
        ("test ELBO", "test_elbo", f"{m['test_scored']} images"),
        ("test log-evidence", "test_log_evidence", own),
        ("gap", "gap", "log-evidence minus ELBO, about KL(q || posterior)"),
    )
    lines = [head + (", interrupted" if m["interrupted"] else ""), f"{'':20}nats per image"]
    for label, name, note in rows:
        lines.append(f"  {label:18}{m[name]:10.3f} +- {m[name + '_images_se']:.3f}   {note}")
    lines.append(
        "  +-: standard error of the mean over images, for another sample of as many. The "
        "importance samples' error is"
    )
    lines.append(
        "  for these images and this model; their log mean weight is a lower bound in expectation."
    )
    if m["share_uncertain"] > 0.05:
        lines.append(
            f"  Careful: {m['share_uncertain']:.1%} of the images have a sampling error above 0.5 "
            f"nats: too low."
        )
    lines.append(
        f"  {m['compile_seconds']:.2f} s to compile ({m['compilations']} programs), "
        f"{m['seconds_per_epoch']:.4f} s per epoch, {m['training_seconds']:.1f} s to train with "
        f"the learning curve"
    )
    return "\n".join(lines)


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    _, _, arrays = harness.read(folder)
    unit = "ELBO, nats per image"
    written = []

    figure, axes = figures.new()
    figures.learning_curve(
        axes, arrays["epoch"], arrays["train_curve"], arrays["test_curve"], unit=unit
    )
    written.append(figures.save(figure, folder, "learning_curve"))

    pairs = np.concatenate([arrays["original"], arrays["reconstruction"]])
    figure, axes = figures.new(6.4, 1.6)
    figures.image_grid(axes, pairs, columns=len(arrays["original"]))
    figures.row_labels(axes, ["test image", "mean of p(x | z)"], pairs.shape[1])
    written.append(figures.save(figure, folder, "reconstructions"))

    figure, axes = figures.new(4.4, 4.6)
    figures.image_grid(axes, arrays["prior_means"], columns=10)
    axes.set_title("mean of p(x | z) at 100 draws z of the prior")
    written.append(figures.save(figure, folder, "prior_samples"))

    points, names = figures.plane(arrays["latent"])
    figure, axes = figures.new(5.6, 4.4)
    classes = np.unique(arrays["label"])
    renumbered = np.searchsorted(classes, arrays["label"])
    figures.latent_map(axes, points, renumbered, [str(c) for c in classes], axis_names=names)
    axes.set_title(f"posterior means of {len(points)} test images")
    written.append(figures.save(figure, folder, "latent_map"))

    figure, axes = figures.new()
    figures.histogram(axes, arrays["train_elbo"], arrays["test_elbo"], unit=unit)
    written.append(figures.save(figure, folder, "elbo_histogram"))
    return written


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: narrow networks, few epochs, few samples."""
    small: dict[str, Any] = {"epochs": 10, "widths": (32,), "test_steps": 50, "max_scored": 128}
    small["evidence_samples"] = vae_training.CURVE_SAMPLES  # one program less to compile
    return dataclasses.replace(config, **small)


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    return harness.execute(
        "vae", smoke_settings(config) if config.smoke else config, run, report, plot
    )


if __name__ == "__main__":
    main()
