"""The types that everyone passes to everyone: NamedTuples of arrays or of pure functions.

Nothing here computes. Shapes use N data, B batch, K samples per datum, S draws, D latent dimension,
P observed dimension; densities are in nats. Models, families and rules speak of ONE datum and ONE
sample; `vmap` happens in `vijax.guides.over_data` and above. See also `vijax.inference`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

Array = jax.Array
Key = jax.Array
Scalar = jax.Array
PyTree = Any
T = TypeVar("T")


class Params(NamedTuple):
    """Everything that is learned. `()` where there is nothing.

    Attributes:
      theta: the model's parameters.
      phi: variational parameters as stored, `{"w": ...}` of a global latent, `{"z": ...}` of a
        local one, or both: one set, a table with one row per datum, or encoder weights.
      control: learned control variates and baselines, by latent as phi.
    """

    theta: PyTree
    phi: PyTree
    control: PyTree


class Batch(NamedTuple):
    """Data and the rows of the data set they are: `Batch(x, jnp.arange(N))` is the whole of it.

    Attributes:
      x: leaves [B, ...].
      index: [B] rows in the data set; a datum's noise is keyed by its row, so it follows the datum.
    """

    x: PyTree
    index: Array


class Sample(NamedTuple):
    """What a rule hands to an integrand: one draw from q.

    Attributes:
      z: the latent.
      log_q: [] log q(z), with the dependence on q's parameters that the rule wants.
      key: fresh randomness for anything nested inside the integrand.
    """

    z: PyTree
    log_q: Scalar
    key: Key


LogDensity = Scalar | Mapping[str, Scalar]
"""One number, or named terms whose sum it is."""

Integrand = Callable[[Sample], Any]
"""`integrand(sample) -> []`, or `([], aux)`. Usually `log_joint(sample.z) - sample.log_q`; for a
plain expectation E_q[f], `f(sample.z)`. For most rules it must be affine in `sample.log_q`, with
one slope (-1, 0, -0.5, ...) everywhere; `vijax.expect` looks.
"""


class Support(NamedTuple):
    """A set that a latent lives in; see `vijax.supports`. Equal records are equal sets.

    Attributes:
      name: "real", "positive", "simplex", ...
      shape: of one value.
      bounds: of an interval.
    """

    name: str
    shape: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()


class Traits(NamedTuple):
    """What a family can do beyond drawing and its density: records, each keyed by its own type.

    Build with `families.traits_of(Entropy(...), Kl(...))`; the types are in
    `vijax.families.traits`.

    Attributes:
      items: (type, record) pairs.
    """

    items: tuple[tuple[type, Any], ...] = ()

    def get(self, kind: type[T]) -> T | None:
        """The record of that type, or None."""
        return next((record for key, record in self.items if key is kind), None)


class Family(NamedTuple):
    """A parametric family q(z; lam) for one latent. Build one with `families.family(...)`.

    Attributes:
      name: with its sizes, such as "diag_normal(3)": equal names mean equal families.
      init: key -> lam.
      noise: (key, K) -> leaves [K, ...], whatever lam is.
      transport: (lam, noise of one sample) -> (z, log q(z)).
      log_prob: (lam, z) -> [] at any z of the support.
      support: tree of `Support` like z.
      traits: what else it can do.
    """

    name: str
    init: Callable[[Key], PyTree]
    noise: Callable[[Key, int], PyTree]
    transport: Callable[[PyTree, PyTree], tuple[PyTree, Scalar]]
    log_prob: Callable[[PyTree, PyTree], Scalar]
    support: PyTree
    traits: Traits = Traits()


class Q(NamedTuple):
    """A distribution: a family at its parameters for one datum."""

    family: Family
    lam: PyTree


class Objective(NamedTuple):
    """A symmetric function of the K log-weights, in nats. It goes up.

    A bare function `log_w [K] -> []` is taken wherever one is asked for, see
    `objectives.as_objective`.

    Attributes:
      name: as a user would write it.
      value: log_w [K] -> [].
      linear: is it the mean, so that expectations may be moved inside it?
      min_samples: the least K that it is defined for.
      moves_theta: may the model's parameters ascend it? Not so for bounds from above.
      smooth: is its derivative free of jumps, unlike a maximum's? None: `vijax.roughness` looks.
    """

    name: str
    value: Callable[[Array], Scalar]
    linear: bool = False
    min_samples: int = 1
    moves_theta: bool = True
    smooth: bool | None = None


class Setting(NamedTuple):
    """What every surrogate is given beside q and the integrand.

    Attributes:
      num_samples: K, or for rules per block a mapping.
      control: from `Rule.init`.
      state: from `Rule.init_state`.
      x: the datum, for input-dependent baselines.
      prior: lam of the prior, for closed-form KL.
    """

    objective: Objective
    num_samples: Any = 1
    control: PyTree = ()
    state: PyTree = ()
    x: PyTree = None
    prior: PyTree = None


class Aux(NamedTuple):
    """What a surrogate returns beside its value; `rules.no_aux(aux)` from one that keeps nothing.

    Attributes:
      stats: statistics for the rule's own `update`.
      inner: the integrand's own aux, averaged over the samples.
    """

    stats: PyTree
    inner: PyTree


class Surrogate(Protocol):
    """A scalar whose value estimates the objective (nats, goes up), its derivative in anything
    upstream (lam, theta, outer latents, control) the gradient.
    """

    def __call__(
        self, key: Key, q: Q, integrand: Integrand, setting: Setting
    ) -> tuple[Scalar, Aux]:
        """The key is consumed; q's lam is that of one datum."""
        ...


class Requirements(NamedTuple):
    """What a rule needs, checked when an estimator is built, and what it promises.

    Attributes:
      needs: traits that the family must have; their types say what is missing.
      any_of: traits of which it must have at least one.
      linear: True: for linear objectives (the ELBO) alone; False: for others alone; None: for any.
      draws: does num_samples mean anything to it?
      samplewise: is its derivative the chain rule through each sample, so that it may sit inside a
        non-linear objective?
      twice: may its derivative be differentiated again? Not where something is stopped.
      affine: does it need an integrand that is affine in log q, with one slope everywhere?
      in_z: does it differentiate the integrand in z, losing any step there? A bool, or by block.
      smooth: does it need an objective whose derivative has no jumps?
      unbiased: for the gradient of E[objective(log_w)] in q's parameters; a claim, tested by cases.
      evaluations: of the integrand, per datum; K samples, D dimensions, C classes, S support
        points, P parameters.
      paper: the source.
      advice: what to write instead, completing an error message.
    """

    needs: tuple[type, ...] = ()
    any_of: tuple[type, ...] = ()
    linear: bool | None = None
    min_samples: int = 1
    draws: bool = True
    samplewise: bool = False
    twice: bool = False
    affine: bool = True
    in_z: Any = False
    smooth: bool = False
    unbiased: bool = True
    evaluations: str = "K"
    paper: str = ""
    advice: str = ""


class Rule(NamedTuple):
    """How one expectation is differentiated. Build one with `rules.rule`.

    Attributes:
      check: (family, objective, num_samples, prior family) raises ValueError if silently wrong.
      init: key -> control.
      init_state: () -> state.
      update: (state, stats) -> state, after the state was used.
    """

    name: str
    requires: Requirements
    surrogate: Surrogate
    check: Callable[[Family, Objective, Any, Family | None], None]
    init: Callable[[Key], PyTree]
    init_state: Callable[[], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]
