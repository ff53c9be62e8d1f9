"""Differentiate through the sampler: z = T(noise, lam)."""

from vijax.families import Reparameterized
from vijax.noise import IID, Noise
from vijax.rules.base import draw, evaluate, no_aux, rule
from vijax.types import Aux, Integrand, Key, Q, Requirements, Rule, Scalar, Setting


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

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        log_w, aux = evaluate(integrand, draw(key, q, setting.num_samples, noise))
        return setting.objective.value(log_w), no_aux(aux)

    return rule(
        "pathwise()" if noise is IID else f"pathwise(noise={noise.name})",
        Requirements(
            needs=(Reparameterized,),
            samplewise=True,
            twice=True,
            affine=False,
            in_z=True,
            unbiased=noise.unbiased,
            paper="Kingma and Welling 2014; Rezende et al. 2014",
            advice=(
                "Write score() or, for few states, enumerated() for that block, as in "
                'rules={"c": score(), "z": pathwise()}.'
            ),
        ),
        surrogate,
        noise=noise,
    )
