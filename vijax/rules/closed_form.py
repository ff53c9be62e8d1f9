"""Replace a Monte Carlo term of the ELBO by its closed form, around any rule for what is left."""

from collections.abc import Callable
from typing import Any

from vijax.families import Density, Entropy, Kl, need
from vijax.rules.base import rule
from vijax.types import (
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    Q,
    Rule,
    Sample,
    Scalar,
    Setting,
    Surrogate,
)


def closed_form_entropy(inner: Rule) -> Rule:
    """ELBO = E_q[log p(x, z)] + H(q) with the exact entropy; `inner` differentiates the
    expectation. Kucukelbir et al. 2017.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a linear objective; a family with the Entropy trait; what `inner` requires.
    State, cost:  those of `inner`.
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        minus_entropy = -need(q.family, Entropy).value(q.lam)

        def log_joint(sample: Sample):
            return integrand(sample._replace(log_q=minus_entropy))

        return inner.surrogate(key, q, log_joint, setting)

    return _wrap(inner, "closed_form_entropy", (Entropy,), surrogate)


def closed_form_kl(inner: Rule) -> Rule:
    """ELBO = E_q[log p(x | z)] - KL(q || prior) with the exact divergence. Kingma and Welling 2014,
    appendix B.

    The estimator passes the model's prior; used bare, pass its parameters (of q's own family) as
    `prior=`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a linear objective; a family with the Kl trait; a prior stated by the model, in
                  q's own family; what `inner` requires.
    State, cost:  those of `inner`.
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        prior, kl = setting.prior, need(q.family, Kl).value(q.lam, setting.prior)

        def likelihood(sample: Sample):
            # log_joint - (log prior + KL) leaves log p(x | z) - KL.
            return integrand(sample._replace(log_q=q.family.log_prob(prior, sample.z) + kl))

        return inner.surrogate(key, q, likelihood, setting._replace(prior=None))

    def check(family: Family, objective: Objective, num_samples: Any, prior: Family | None) -> None:
        if prior is None:
            raise ValueError(
                f"closed_form_kl on {family.name}: no prior is stated as a family, so "
                "KL(q || prior) is unknown. Give the model one, as in latent_model(init, "
                "log_lik=..., prior=models.isotropic_normal_prior(family)), or with the rule used "
                "bare prior=lam of the prior."
            )
        if prior.name != family.name:
            raise ValueError(
                f"closed_form_kl on {family.name}: the prior is {prior.name}, another family, so "
                f"KL(q || prior) has no closed form here. Write {inner.name} without it."
            )

    return _wrap(inner, "closed_form_kl", (Kl, Density), surrogate, check)


def _wrap(
    inner: Rule,
    name: str,
    traits: tuple[type, ...],
    surrogate: Surrogate,
    check: Callable[[Family, Objective, Any, Family | None], None] | None = None,
) -> Rule:
    return rule(
        f"{name}({inner.name})",
        inner.requires._replace(
            needs=(*inner.requires.needs, *traits),
            linear=True,
            samplewise=False,
            affine=True,
            advice=f"Write {inner.name} without {name}.",
        ),
        surrogate,
        check=check,
        around=inner,
        init=inner.init,
        init_state=inner.init_state,
        update=inner.update,
    )
