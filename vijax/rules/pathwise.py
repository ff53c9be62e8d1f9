"""Differentiate through the sampler: z = T(noise, lam)."""

from vijax.noise import IID, Noise
from vijax.rules.base import draw, evaluate, no_aux, rule
from vijax.types import Requirements, Rule


def pathwise(*, noise: Noise = IID) -> Rule:
    """Reparameterization ("total") gradient. Kingma and Welling 2014; Rezende et al. 2014; for IWAE
    Burda et al. 2016.

    Args:
      noise: how the K samples are drawn together, see `vijax.noise`. Samples that depend on each
        other have, for a non-linear objective, a bound of their own, and that is what is ascended.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     a differentiable sampler for every block.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass.
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        log_w, aux = evaluate(integrand, draw(key, family, lam, num_samples, noise))
        return objective(log_w), no_aux(aux)

    advice = (
        "Write score() or, for few states, enumerated() for that block, as in "
        'rules={"c": score(), "z": pathwise()}.'
    )
    return rule(
        "pathwise()" if noise is IID else f"pathwise(noise={noise.name})",
        Requirements(
            paper="Kingma and Welling 2014; Rezende et al. 2014",
            differentiates_z=True,
            reparameterized=True,
            samplewise=True,
            unbiased=noise.unbiased,
            advice=advice,
        ),
        surrogate,
        noise=noise,
    )
