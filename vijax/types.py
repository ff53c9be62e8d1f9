"""The types that everyone passes to everyone: NamedTuples of arrays or of pure functions. Nothing
here computes.

Shapes use N data, B batch, K samples per datum, D latent dimension, P observed dimension; densities
are in nats. Models, families and rules speak of ONE datum and ONE sample; `vmap` happens in
`vijax.estimators` and above.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array
Scalar = jax.Array
PyTree = Any


class Params(NamedTuple):
    """Everything that is learned. `()` where there is nothing.

    Attributes:
      theta: the model's parameters
      phi: variational parameters as stored: one set, a table with one row per datum, or encoder
        weights
      control: learned control variates and baselines
    """

    theta: PyTree
    phi: PyTree
    control: PyTree


class Batch(NamedTuple):
    """Data and the rows of the data set they are: `Batch(x, jnp.arange(N))` is the whole of it.

    Attributes:
      x: leaves [B, ...]
      index: [B] rows in the data set; a datum's noise is keyed by its row, so it follows the datum
    """

    x: PyTree
    index: Array


class Sample(NamedTuple):
    """What a rule hands to an integrand: one draw from q.

    Attributes:
      z: the latent
      log_q: [] log q(z), with the dependence on q's parameters that the rule wants
      key: fresh randomness for anything nested inside the integrand
    """

    z: PyTree
    log_q: Scalar
    key: Key


LogDensity = Scalar | Mapping[str, Scalar]
"""One number, or named terms whose sum it is."""

Integrand = Callable[[Sample], Any]
"""`integrand(sample) -> []`, or `([], aux)`. Usually `log_joint(sample.z) - sample.log_q`; for a
plain expectation E_q[f], `f(sample.z)`. It must be affine in `sample.log_q` with a constant slope
(-1, 0, ...).
"""

Objective = Callable[[Array], Scalar]
"""A symmetric function of the log-weights, `log_w [K] -> []`, in nats. It goes up."""


class Family(NamedTuple):
    """A parametric family q(z; lam) for one latent. Capabilities that a family lacks are None.

    Build one with `families.family(...)`, which fills the gaps from `sample` and `log_prob`.

    Attributes:
      name: with its sizes, such as "diag_normal(3)": equal names mean equal families
      init: -> lam
      sample: (key, lam) -> z
      log_prob: (lam, z) -> []
      noise: (key, K) -> leaves [K, ...], whatever lam is
      transport: (lam, noise of one sample) -> (z, log q(z))
      reparameterized: bool, or a dict of them per block: is `transport` differentiable in lam?
      fixed_support: False if the support moves with lam
      entropy: lam -> [] nats, exact
      kl: (lam, lam2) -> [] nats, KL(q(lam) || q(lam2)), exact
      support: () -> every value of z, leaves [S, ...], if they are finitely many
      support_size: S
      bernoulli_logits: lam -> logits [D], if z is in {0, 1}^D, independent
      categorical_logits: lam -> logits [..., C], if z is one-hot over its last axis
      blocks: the named parts of a product or chain
      block_lam: (block, lam, z of the blocks before it) -> the block's lam
      ordered: must the blocks be drawn in the order of `blocks`, because later ones depend on
        earlier ones?
      inverse: (lam, z) -> the noise that `transport` takes to z
      num_uniforms: U, how many uniform numbers make the noise of one sample
      from_uniform: u [U] in (0, 1) -> the noise of one sample, by inverse CDFs
      normal_moments: lam -> mean [D], covariance [D, D], if normal
      gamma_parameters: lam -> shape [D], rate [D], if gamma
      weak_derivative: (key, lam, a draw z)
    """

    name: str
    init: Callable[[Key], PyTree]
    sample: Callable[[Key, PyTree], PyTree]
    log_prob: Callable[[PyTree, PyTree], Scalar]
    noise: Callable[[Key, int], PyTree]
    transport: Callable[[PyTree, PyTree], tuple[PyTree, Scalar]]
    reparameterized: PyTree
    fixed_support: bool
    entropy: Callable[[PyTree], Scalar] | None
    kl: Callable[[PyTree, PyTree], Scalar] | None
    support: Callable[[], PyTree] | None
    support_size: int | None
    bernoulli_logits: Callable[[PyTree], Array] | None
    categorical_logits: Callable[[PyTree], Array] | None
    blocks: Mapping[str, "Family"] | None
    block_lam: Callable[[str, PyTree, PyTree], PyTree] | None
    ordered: bool
    inverse: Callable[[PyTree, PyTree], PyTree] | None = None
    num_uniforms: int | None = None
    from_uniform: Callable[[Array], PyTree] | None = None
    normal_moments: Callable[[PyTree], tuple[Array, Array]] | None = None
    gamma_parameters: Callable[[PyTree], tuple[Array, Array]] | None = None
    weak_derivative: "Callable[[Key, PyTree, PyTree], WeakDerivative] | None" = None


class WeakDerivative(NamedTuple):
    """dE_q[f]/dlam = E[scale (f(plus) - f(minus))], one pair of points per number in lam: trees
    like lam.

    Attributes:
      plus: leaves [*shape of lam's leaf, *shape of z], given as {"leaf of lam": z}
      scale: leaves of lam's shapes
    """

    plus: PyTree
    minus: PyTree
    scale: PyTree


class Prior(NamedTuple):
    """The prior of a latent as a member of a family: what closed-form KL needs.

    Attributes:
      locate: (theta) -> lam for a global latent; (theta, w) -> lam for a local one
    """

    family: Family
    locate: Callable[..., PyTree]


class Model(NamedTuple):
    """A probabilistic model p(w) prod_i p(z_i, x_i | w). Build one with `models.latent_model`,
    `bayes_model` or `model`.

    Attributes:
      init: -> theta
      log_prior: (theta, w) -> [] log p(w | theta)
      log_local: (theta, w, z, x) -> [] log p(z, x | w, theta)
      latents: which of "w" (global) and "z" (local, one per datum) there are
      simulate: (key, theta, num_data) -> (latents, x), x leaves [num_data, ...]
      log_evidence: (theta, x) -> [], exact: per datum if only "z", else of all data
      posterior: (theta, x) -> exact lam, per datum if only "z", else of all data
    """

    init: Callable[[Key], PyTree]
    log_prior: Callable[[PyTree, PyTree], LogDensity]
    log_local: Callable[[PyTree, PyTree, PyTree, PyTree], LogDensity]
    latents: tuple[str, ...]
    prior_w: Prior | None = None
    prior_z: Prior | None = None
    simulate: Callable[..., Any] | None = None
    log_evidence: Callable[..., Scalar] | None = None
    posterior: Callable[..., PyTree] | None = None


class Guide(NamedTuple):
    """Where q's parameters come from. `()` and None where a latent is absent.

    Attributes:
      init: -> phi
      family_w: q(w), global
      family_z: q(z_i | x_i), local
      locate_w: phi -> lam of w
      locate_z: (phi with tables replaced by their row i, x_i) -> lam of z_i
      tables: phi -> bool per leaf: does it have one row per datum?
      num_data: rows of the tables
    """

    init: Callable[[Key], PyTree]
    family_w: Family | None
    family_z: Family | None
    locate_w: Callable[[PyTree], PyTree]
    locate_z: Callable[[PyTree, PyTree], PyTree]
    tables: Callable[[PyTree], PyTree]
    num_data: int | None


class Requirements(NamedTuple):
    """What a rule needs, checked when an estimator is built, and what it promises.

    Attributes:
      reparameterized: a differentiable sampler for every block
      bernoulli: independent Bernoulli z with logits; with `categorical`, one or the other
      categorical: one-hot categorical z with logits
      nonlinear_objective: for the ELBO its gradient would vanish or be another's
      normal: a normal z with known moments
      gamma: independent gamma z
      independent_blocks: a product of named blocks
      draws: does num_samples mean anything to it?
      samplewise: its derivative is the chain rule through each sample: may sit inside a non-linear
        objective
      differentiates_z: takes the integrand's derivative in z, at relaxed values where z is discrete
      unbiased: for the gradient of E[objective(log_w)] in q's parameters: the rule's own claim,
        tested by cases
      evaluations: of the integrand, per datum; K samples, D dimensions, C classes, S support points
      advice: what to write instead, completing an error message
    """

    reparameterized: bool = False
    bernoulli: bool = False
    categorical: bool = False
    finite_support: bool = False
    linear_objective: bool = False
    nonlinear_objective: bool = False
    entropy: bool = False
    kl: bool = False
    normal: bool = False
    gamma: bool = False
    weak_derivative: bool = False
    independent_blocks: bool = False
    min_samples: int = 1
    draws: bool = True
    samplewise: bool = False
    differentiates_z: bool = False
    unbiased: bool = True
    evaluations: str = "K"
    paper: str = ""
    advice: str = ""


class Aux(NamedTuple):
    """What a surrogate returns beside its value; `Aux((), rules.mean_aux(aux))` from a rule that
    keeps nothing.

    Attributes:
      stats: statistics for the rule's own `update`
      inner: the integrand's own aux, averaged over the samples
    """

    stats: PyTree
    inner: PyTree


class Surrogate(Protocol):
    """A scalar whose value estimates the objective (nats, goes up) and whose derivative is the
    gradient estimator.
    """

    def __call__(
        self,
        key: Key,
        family: Family,
        lam: PyTree,
        integrand: Integrand,
        *,
        objective: Objective,
        num_samples: Any,
        control: PyTree = (),
        state: PyTree = (),
        x: PyTree = None,
        prior: PyTree = None,
    ) -> tuple[Scalar, Aux]:
        """Differentiate the result with respect to anything upstream: lam, theta, outer latents,
        `control`.

        Args:
          key: consumed.
          family, lam: q and its parameters for one datum.
          integrand: see `Integrand`.
          objective: log_w [K] -> [].
          num_samples: K.
          control, state: from `Rule.init`, `Rule.init_state`.
          x: the datum, for input-dependent baselines.
          prior: lam of the prior, for closed-form KL.
        """
        ...


class Rule(NamedTuple):
    """How one expectation is differentiated.

    Attributes:
      check: (family, objective, num_samples, prior) raises ValueError if silently wrong
      init: -> control
      init_state: -> state
      update: (state, stats) -> state, after the state was used
    """

    name: str
    requires: Requirements
    surrogate: Surrogate
    check: Callable[..., None]
    init: Callable[[Key], PyTree]
    init_state: Callable[[], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]


class Estimate(NamedTuple):
    """One stochastic estimate. `loss` is minus the bound on the whole data set, in nats; loss and
    grads go down.
    """

    loss: Scalar
    grads: Params
    aux: PyTree


class LamSpace(NamedTuple):
    """An estimator seen from q's parameters: what `lab.in_lam` makes one of.

    Attributes:
      locate: phi -> lam: leaves [B, ...] of local latents, lam of a global one, {"w", "z"}
      estimate: for such params
    """

    locate: Callable[[Params, Batch], Params]
    estimate: Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]]


class Estimator(NamedTuple):
    """Two pure functions, `init` and `estimate`, are all that fit, lab and checkpoints see.

    `estimate_rows` is `estimate` for params in which every table holds only the batch's rows [B,
    ...]; its cost does not depend on N. `tables` says which leaves those are.

    Attributes:
      init: -> state (running means; () if there are none)
      tables: -> bool per leaf
    """

    init_params: Callable[[Key], Params]
    init: Callable[[Key, Params], PyTree]
    estimate: Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]]
    estimate_rows: Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]]
    tables: Callable[[Params], Params]
    num_data: int
    lam_space: LamSpace | None = None
