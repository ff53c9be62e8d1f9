"""The working parts of `experiments.gradient_variance`: the training path, the reference, the
points, the sweep over K.
"""

from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from tqdm.auto import tqdm

import vijax as vj
from experiments.gradient_variance.estimators import Estimators, build, unbiased
from experiments.gradient_variance.job import Job
from vijax import lab, objectives, rows
from vijax.types import Key, PyTree

if TYPE_CHECKING:
    from experiments.gradient_variance.__main__ import Config

CHECKPOINTS = 4


class Measured(NamedTuple):
    """One point of the path."""

    comparison: lab.Comparison
    reference: lab.Reference | None


def training_path(key: Key, config: "Config", job: Job) -> dict[int, vj.Params]:
    """Step -> theta and phi: CHECKPOINTS points of one run, the last is where the leaderboard is
    measured.
    """
    problem = job.problem
    if not config.train_steps:
        return {0: problem.params}
    params = problem.params._replace(control=job.trainer.init_params(key).control)
    every = max(1, config.train_steps // (CHECKPOINTS - 1))
    path, batch = {0: params}, problem.batch
    whole = bool(np.array_equal(batch.index, np.arange(problem.num_data)))
    result = vj.fit(
        key,
        vj.descent(job.trainer, optax.adam(config.learning_rate)),
        params,
        batch.x if whole else repeat(batch),
        num_steps=every * (CHECKPOINTS - 1),
        chunk_size=every,
        record_every=every,
        callbacks=[lambda seen: path.update({seen.step: seen.params})],
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return path


def view(job: Job, params: vj.Params) -> vj.Params:
    """The same place; of a table only the rows that the batch sees, because a gradient of all of
    them would cost O(N), for zeros. Estimators made by hand may want the whole table.
    """
    # Without weak types, which initial parameters may have: one program serves all points
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), params)
    guide, batch = job.problem.guide, job.problem.batch
    every = [*job.estimators.values(), *([] if job.judge is None else [job.judge])]
    if len(batch.index) == job.problem.num_data or any(one.locate is None for one in every):
        return params
    return params._replace(phi=_rows_of(guide, params.phi, batch))


def _rows_of(guide: vj.Guide, phi: PyTree, batch: vj.Batch) -> rows.Rows:
    return rows.Rows(rows.gather(guide.is_table(phi), phi, batch.index))


def learn(
    key: Key, config: "Config", job: Job, estimators: Estimators, params: vj.Params
) -> dict[str, lab.Learned]:
    """What every estimator learns or remembers at these parameters."""
    batch, steps = job.problem.batch, config.control_steps
    return {
        name: lab.learn(key, one, params, batch, num_steps=steps)
        for name, one in estimators.items()
    }


def reference(
    key: Key, config: "Config", job: Job, params: vj.Params, place: vj.Params
) -> lab.Reference | None:
    """The exact gradient if it is known; else measured by the judge in 10 times the draws; None
    without a judge.

    Args:
      params: as stored, which an exact gradient takes.
      place: the same as `view` sees it.
    """
    problem = job.problem
    if problem.exact is not None and config.objective == "elbo":
        exact = problem.exact(params._replace(control=()))
        if exact is not None and isinstance(place.phi, rows.Rows):
            return lab.Reference(
                exact._replace(phi=_rows_of(problem.guide, exact.phi, problem.batch))
            )
        if exact is not None:
            return lab.Reference(exact)
    if job.judge is None:
        return None
    learned = learn(key, config, job, {"judge": job.judge}, place)["judge"]
    report = lab.gradient_report(
        key,
        job.judge,
        place._replace(control=learned.control),
        learned.state,
        problem.batch,
        num_draws=10 * config.num_draws,
    )
    return lab.Reference(report.mean, report.mean_error)


def points(
    key: Key, config: "Config", job: Job, path: Mapping[int, vj.Params]
) -> Iterator[tuple[int, Measured]]:
    """Every point of the path, the last one, which makes the leaderboard, first; times are taken
    there, and stand for all.
    """
    judge_key, learn_key, time_key, draw_key = jax.random.split(key, 4)
    times = None
    for step in (max(path), *(step for step in path if step != max(path))):
        place = view(job, path[step])
        learned = learn(learn_key, config, job, job.estimators, place)
        known = reference(judge_key, config, job, path[step], place)
        if times is None and config.rounds:
            own = {name: place._replace(control=one.control) for name, one in learned.items()}
            states = {name: one.state for name, one in learned.items()}
            batch, made = job.problem.batch, job.estimators
            times = lab.timing(time_key, made, own, states, batch, rounds=config.rounds)
        compared = lab.compare(
            jax.random.fold_in(draw_key, step),
            job.estimators,
            place,
            job.problem.batch,
            num_draws=config.num_draws,
            learned=learned,
            reference=known,
            unbiased=job.unbiased,
            rounds=0,
            times=times,
            at=float(step),
        )
        yield step, Measured(compared, known)


def kind(known: lab.Reference | None) -> str:
    """What the bias was looked for against."""
    if known is None:
        return "none, no estimator here says that it is unbiased"
    return "exact" if known.error is None else "measured"


def sweep(
    key: Key, config: "Config", job: Job, params: vj.Params, bar: tqdm
) -> dict[str, pd.DataFrame]:
    """Signal-to-noise ratio against K of the importance-weighted bound, for the first estimators
    that are legal there, and all of the author's own that are compared.
    """
    if not config.sweep or not config.sweep_estimators:
        return {}
    problem, most = job.problem, max(config.sweep)
    own = [name for name in job.estimators if name in problem.own(most, objectives.iwae)]
    given = config.estimators or problem.estimators
    names = [name for name in given if name not in ("all-legal", *own)] or list(job.estimators)
    legal, _ = build(names, problem, objectives.iwae, most)
    chosen = [*[name for name in legal if name not in own][: config.sweep_estimators], *own]
    if not chosen:
        return {}
    place = view(job, params)

    def at(num_samples: float) -> lab.Point:
        made, refused = build(chosen, problem, objectives.iwae, int(num_samples))
        if refused:
            raise ValueError(f"--sweep={num_samples:g}: {'; '.join(refused.values())}")
        bar.update(1)
        learned = learn(key, config, job, made, place)
        return lab.Point(made, place, problem.batch, learned=learned)

    claims = [name for name in unbiased(legal, problem) if name in chosen]
    result = lab.sweep(key, config.sweep, at, num_draws=config.num_draws, unbiased=claims)
    return {"sweep": lab.to_dataframe(result), "slopes": lab.to_dataframe(lab.slopes(result))}
