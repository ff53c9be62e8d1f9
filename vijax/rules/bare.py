"""The bare door: one expectation of one's own, differentiated by a rule, under jax.grad."""

from vijax.objectives import as_objective, elbo
from vijax.rules.integrands import check_integrand
from vijax.types import Aux, Family, Integrand, Key, Objective, PyTree, Q, Rule, Scalar, Setting


def expect(
    key: Key,
    family: Family,
    lam: PyTree,
    integrand: Integrand,
    *,
    rule: Rule,
    objective: Objective = elbo,
    num_samples: int = 1,
    control: PyTree = (),
    state: PyTree = (),
    x: PyTree = None,
    prior: PyTree = None,
) -> tuple[Scalar, Aux]:
    """E[objective of K values of the integrand under q(z; lam)], estimated: differentiate the value
    with respect to anything that lam or the integrand is made of.

    No model, guide or estimator is in sight; use it inside `jax.grad`, `vmap`, `scan`, `jit`.

    Args:
      key: consumed.
      family: q.
      lam: its parameters for one datum; `vmap` for a batch.
      integrand: `Sample(z, log_q, key) -> []` in nats: `log_joint(s.z) - s.log_q` for a bound,
        `f(s.z)` for a plain expectation. Affine in `s.log_q` with one slope everywhere, unless the
        rule takes any.
      rule: how the gradient is estimated, such as `rules.score()`.
      objective: an `Objective`, or a function log_w [K] -> [].
      num_samples: K; for rules per block also a mapping.
      control: from `rule.init(key)`, if the rule learns something.
      state: from `rule.init_state()`, if it remembers something; afterwards
        `state = rule.update(state, aux.stats)`.
      x: the datum, for input-dependent baselines.
      prior: lam of the prior in q's own family, for closed-form KL.

    Returns:
      (value [], Aux).

    Raises:
      ValueError: if this rule would be silently wrong here.
    """
    setting = Setting(
        objective=as_objective(objective, num_samples),
        num_samples=num_samples,
        control=control,
        state=state,
        x=x,
        prior=prior,
    )
    check_integrand(rule.name, rule.requires, family, integrand)
    return rule.surrogate(key, Q(family, lam), integrand, setting)
