"""The types that an inference problem and an inference method are made of; nothing here computes.

Models and guides say what is inferred with what; estimators and algorithms say how.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from vijax.types import (
    Array,
    Batch,
    Family,
    Integrand,
    Key,
    LogDensity,
    Params,
    PyTree,
    Scalar,
    Traits,
)


class Prior(NamedTuple):
    """The prior of a latent as a member of a family. Closed-form KL needs it, and the model's
    log-joint is made of it, so that the two cannot contradict each other.

    Attributes:
      locate: theta -> lam of a global latent, or of a model's only one; (theta, w) -> lam of a
        local latent below a global one.
      log_prob: the same density in a quicker form, if there is one: the arguments of `locate`, then
        the latent -> [] nats. None: the family's.
    """

    family: Family
    locate: Callable[..., PyTree]
    log_prob: Callable[..., Scalar] | None = None


class Model(NamedTuple):
    """A probabilistic model p(w) prod_i p(z_i, x_i | w). Build one with `models.latent_model`,
    `models.bayes_model` or `models.hierarchical_model`.

    Attributes:
      init: key -> theta.
      log_prior: (theta, w) -> [] log p(w | theta).
      log_local: (theta, w, z, x) -> [] log p(z, x | w, theta).
      latents: which of "w" (global) and "z" (local, one per datum) there are.
      priors: {latent: Prior}, of those that are stated as families.
      simulate: (key, theta, num_data) -> (latents, x), x leaves [num_data, ...].
      log_evidence: (theta, x) -> [] exact: per datum if only "z", else of all data.
      posterior: (theta, x) -> exact lam, per datum if only "z", else of all data.
      check: x, concrete, leaves [B, ...] -> None, or ValueError where the model has no meaning for
        such data (grey values from 0 to 255 as bits).
      traits: what else it can do; the types are in `vijax.models.traits`.
    """

    init: Callable[[Key], PyTree]
    log_prior: Callable[[PyTree, PyTree], LogDensity]
    log_local: Callable[[PyTree, PyTree, PyTree, PyTree], LogDensity]
    latents: tuple[str, ...]
    priors: Mapping[str, Prior]
    simulate: Callable[..., Any] | None = None
    log_evidence: Callable[..., Scalar] | None = None
    posterior: Callable[..., PyTree] | None = None
    check: Callable[[PyTree], None] | None = None
    traits: Traits = Traits()


class Guide(NamedTuple):
    """Where q's parameters come from. phi is a dict with an entry per latent, as `families` is.

    Rows are gathered, refined and keyed by datum in one place, `guides.over_data`.

    Attributes:
      init: key -> phi.
      families: {"w": q(w)}, {"z": q(z_i | x_i)}, or both.
      global_lam: phi -> lam of w.
      at: (phi with every table replaced by its row i, x_i) -> lam of z_i.
      refine: (key, lam of z_i, integrand at that datum) -> lam: how q's parameters are improved
        before they are used; the identity but for `semi_amortized`.
      is_table: phi -> bool per leaf: has it one row per datum?
      num_data: rows of the tables; None without any.
    """

    init: Callable[[Key], PyTree]
    families: Mapping[str, Family]
    global_lam: Callable[[PyTree], PyTree]
    at: Callable[[PyTree, PyTree], PyTree]
    refine: Callable[[Key, PyTree, Integrand], PyTree]
    is_table: Callable[[PyTree], PyTree]
    num_data: int | None


class Estimate(NamedTuple):
    """One stochastic estimate.

    Attributes:
      loss: minus the bound on the whole data set, in nats; loss and grads go down.
      grads: of the loss, like params.
      aux: statistics of the rules.
    """

    loss: Scalar
    grads: Params
    aux: PyTree


class Estimator(NamedTuple):
    """Pure functions; `init` and `estimate` are all that an algorithm or the lab calls.

    There is ONE `estimate`. Its `params.phi` may also be given as `rows.Rows` (tables that hold the
    batch's rows alone, so that a step costs O(B)) or `rows.Lam` (q's own parameters in place of
    phi); the gradient has the same form. Replacing `estimate` therefore replaces every view.

    Attributes:
      init_params: key -> params.
      init: (key, params) -> state (running means; () if there are none).
      estimate: (key, params, state, batch) -> (Estimate, state).
      is_table: params -> bool per leaf.
      num_data: N.
      locate: (params, batch) -> params with phi as `rows.Lam`; None if nobody knows.
      check: `Model.check`, for whoever sees the data before they are traced.
    """

    init_params: Callable[[Key], Params]
    init: Callable[[Key, Params], PyTree]
    estimate: Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]]
    is_table: Callable[[Params], Params]
    num_data: int
    locate: Callable[[Params, Batch], Params] | None = None
    check: Callable[[PyTree], None] | None = None


class Info(NamedTuple):
    """What a step of an algorithm tells.

    Attributes:
      loss: [] nats, goes down.
      finite: [] bool: is everything that the step left finite?
    """

    loss: Scalar
    finite: Array


class Step(Protocol):
    """One step of an algorithm."""

    def __call__(
        self, key: Key, state: PyTree, batch: Batch, *, recorded: bool = True
    ) -> tuple[PyTree, Info]:
        """The state after a step with this key and batch, the rows of which are different ones.

        Args:
          recorded: will the loss be looked at? If not, it need not be computed, nor be finite.
        """
        ...


class Algorithm(NamedTuple):
    """How the state of an inference moves: all that `vijax.fit` knows.

    Attributes:
      name: with the settings that a state of it depends on: a run resumes under the same name.
      init: (key, params) -> state.
      step: (key, state, batch, *, recorded=True) -> (state, Info(loss, finite)), see `Step`.
      params: state -> Params, ready for use.
      num_data: N, the size of the whole data set.
      guarded: does a step that is not finite return the state that it was given? Then `fit` lets it
        work in place; otherwise the former state is kept until the new one is known to be good.
      inspect: (key, state, batch) -> tree to search for the culprit after a step that was not
        finite, such as the gradient; None: the state that the step made.
      check: `Model.check`; `fit` calls it on the data before they are traced.
    """

    name: str
    init: Callable[[Key, Params], PyTree]
    step: Step
    params: Callable[[PyTree], Params]
    num_data: int
    guarded: bool = False
    inspect: Callable[[Key, PyTree, Batch], PyTree] | None = None
    check: Callable[[PyTree], None] | None = None


class Draws(NamedTuple):
    """Draws from a fitted q with their log-weights.

    Attributes:
      w: leaves [S, ...], None without a global latent.
      z: leaves [S, B, ...], None without a local one.
      log_w: log p - log q in nats: [S, B] with local latents alone, else [S].
    """

    w: PyTree
    z: PyTree
    log_w: Array
