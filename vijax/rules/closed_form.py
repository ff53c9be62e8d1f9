"""Replace a Monte Carlo term of the ELBO by its closed form, around any rule for what is left."""

from vijax.rules.base import check_requirements, rule
from vijax.types import Rule, Sample


def closed_form_entropy(inner: Rule) -> Rule:
    """ELBO = E_q[log p(x, z)] + H(q) with the exact entropy; `inner` differentiates the
    expectation. Kucukelbir et al. 2017.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a linear objective; `family.entropy`; what `inner` requires.
    State, cost:  those of `inner`.
    """

    def surrogate(key, family, lam, integrand, **settings):
        minus_entropy = -family.entropy(lam)
        return inner.surrogate(
            key, family, lam, lambda s: integrand(s._replace(log_q=minus_entropy)), **settings
        )

    return _wrap(inner, "closed_form_entropy", surrogate, entropy=True)


def closed_form_kl(inner: Rule) -> Rule:
    """ELBO = E_q[log p(x | z)] - KL(q || prior) with the exact divergence. Kingma and Welling 2014,
    appendix B.

    The estimator passes the model's prior; used bare, pass its parameters (of q's own family) as
    `prior=`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a linear objective; `family.kl`; a prior stated by the model, in q's own family;
                  what `inner` requires.
    State, cost:  those of `inner`.
    """

    def surrogate(key, family, lam, integrand, *, prior, **settings):
        kl = family.kl(lam, prior)

        def likelihood(sample: Sample):
            # log_joint - (log prior + KL) leaves log p(x | z) - KL.
            return integrand(sample._replace(log_q=family.log_prob(prior, sample.z) + kl))

        return inner.surrogate(key, family, lam, likelihood, prior=None, **settings)

    return _wrap(inner, "closed_form_kl", surrogate, kl=True)


def _wrap(inner: Rule, name: str, surrogate, **needs: bool) -> Rule:
    full_name = f"{name}({inner.name})"
    advice = f"Write {inner.name} without {name}."
    requires = inner.requires._replace(
        linear_objective=True, samplewise=False, advice=advice, **needs
    )

    def check(family, objective, num_samples, prior):
        inner.check(family, objective, num_samples, prior)
        check_requirements(full_name, requires, family, objective, num_samples, prior)

    return rule(
        full_name,
        requires,
        surrogate,
        check=check,
        init=inner.init,
        init_state=inner.init_state,
        update=inner.update,
    )
