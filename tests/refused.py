"""Combinations that must be refused when an estimator is built: {what: ((model, guide), rules,
objective, num_samples, what the message says)}.
"""

import jax
import jax.numpy as jnp

import vijax as vj
from vijax import baselines, families, guides, models, supports
from vijax.families import Density, Reparameterized, traits_of
from vijax.objectives import elbo, iwae, renyi
from vijax.rules import (
    closed_form_entropy,
    closed_form_kl,
    doubly_reparameterized,
    enumerated,
    pathwise,
    score,
)

PATH, DREG, SCORE, ENUM = pathwise(), doubly_reparameterized(), score(), enumerated()


def moving_support():
    """Uniform on [0, exp(lam)]: a sampler with a derivative, but a support that moves."""
    return families.family(
        "uniform",
        init=lambda key: {"log_width": jnp.zeros(())},
        sample=lambda key, lam: jnp.exp(lam["log_width"]) * jax.random.uniform(key),
        log_prob=lambda lam, z: -lam["log_width"],
        support=supports.moving(),
        traits=[Reparameterized()],
    )


def no_extras(family: vj.Family) -> vj.Family:
    return family._replace(traits=traits_of(Reparameterized(), Density()))


def local(family, prior=None):
    zero = lambda theta, z, x: jnp.zeros(())  # noqa: E731
    terms = {"log_joint": zero} if prior is None else {"log_lik": zero, "prior": prior}
    return models.latent_model(lambda key: (), **terms), guides.per_datapoint(family, 3)


def both(w, z):
    model = models.hierarchical_model(
        lambda theta, w: jnp.zeros(()), lambda theta, w, z, x: jnp.zeros(())
    )
    return model, guides.hierarchical(w=guides.shared(w), z=guides.per_datapoint(z, 3))


NORMAL, BITS = families.diag_normal(2), families.bernoulli(3)
BLOCKS = families.product(c=families.categorical(3), z=NORMAL)
PRIOR_BITS = vj.Prior(BITS, lambda theta: {"logits": jnp.zeros(3)})
PRIOR_FULL = models.isotropic_normal_prior(families.full_normal(2))
PRIOR_NORMAL = vj.Prior(NORMAL, lambda theta: {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
COUNTABLE = families.family(
    "poisson",
    init=lambda key: {"log_rate": jnp.zeros(())},
    sample=lambda key, lam: jax.random.poisson(key, jnp.exp(lam["log_rate"])).astype(float),
    log_prob=lambda lam, z: vj.densities.poisson(z, lam["log_rate"]),
    support=supports.counts(),
)

REFUSED = {
    "pathwise on bits": (
        local(BITS),
        PATH,
        elbo,
        1,
        r"pathwise\(\) on bernoulli\(3\).*zero gradient.*Write score\(\)",
    ),
    "pathwise on a discrete block": (
        local(BLOCKS),
        PATH,
        elbo,
        1,
        r"no differentiable sampler.*\(blocks 'c'\).*score\(\)",
    ),
    "pathwise for a discrete block": (
        local(BLOCKS),
        {"c": PATH, "z": PATH},
        elbo,
        1,
        r"pathwise\(\) on categorical\(3\)",
    ),
    "DReG on bits": (
        local(BITS),
        DREG,
        iwae,
        2,
        r"doubly_reparameterized\(\) on bernoulli\(3\).*zero gradient",
    ),
    "sticking-the-landing on bits": (
        local(BITS),
        DREG,
        elbo,
        1,
        r"no differentiable sampler.*Write score\(\)",
    ),
    "leave-one-out alone": (
        local(NORMAL),
        SCORE,
        elbo,
        1,
        r"num_samples=1, but it needs at least 2.*moving_average",
    ),
    "VIMCO alone": (local(BITS), SCORE, iwae, 1, r"num_samples=1, but it needs at least 2"),
    "moving support": (
        local(moving_support()),
        score(baselines.none()),
        elbo,
        1,
        r"support moving\(\) moves .*boundary",
    ),
    "moving support, path": (
        local(moving_support()),
        PATH,
        elbo,
        1,
        r"moves with its parameters.*transform inside the log-joint",
    ),
    "KL without a stated prior": (
        local(NORMAL),
        closed_form_kl(PATH),
        elbo,
        1,
        r"no prior is stated .*Give the model one",
    ),
    "KL to another family": (
        local(NORMAL, PRIOR_FULL),
        closed_form_kl(PATH),
        elbo,
        1,
        r"the prior is full_normal\(2\), another",
    ),
    "KL to a prior on other values": (
        local(NORMAL, PRIOR_BITS),
        closed_form_kl(PATH),
        elbo,
        1,
        r"lives on real\(2\), .*prior bernoulli\(3\) on binary\(3\)",
    ),
    "KL of a family without one": (
        local(no_extras(NORMAL), PRIOR_NORMAL),
        closed_form_kl(PATH),
        elbo,
        1,
        r"no closed-form KL",
    ),
    "KL inside IWAE": (
        local(NORMAL, PRIOR_NORMAL),
        closed_form_kl(PATH),
        iwae,
        2,
        r"not linear in the log-weights",
    ),
    "entropy inside IWAE": (
        local(NORMAL),
        closed_form_entropy(DREG),
        iwae,
        2,
        r"gradient of another bound",
    ),
    "entropy of a family without one": (
        local(no_extras(NORMAL)),
        closed_form_entropy(PATH),
        elbo,
        1,
        r"closed-form entropy",
    ),
    "the inner rule's own needs": (
        local(BITS),
        closed_form_entropy(PATH),
        elbo,
        1,
        r"pathwise\(\) on bernoulli\(3\)",
    ),
    "enumeration of the reals": (
        local(NORMAL),
        ENUM,
        elbo,
        1,
        r"infinitely many points.*Write score\(\)",
    ),
    "enumeration of the integers": (
        local(COUNTABLE),
        ENUM,
        elbo,
        1,
        r"its support has infinitely many",
    ),
    "enumeration of too many": (
        local(families.bernoulli(17)),
        ENUM,
        elbo,
        1,
        r"more than the 65536 that can be summed",
    ),
    "enumeration of IWAE": (local(BITS), ENUM, iwae, 2, r"not linear in the log-weights"),
    "score inside IWAE": (
        local(BLOCKS),
        {"z": PATH, "c": SCORE},
        iwae,
        2,
        r"for 'c' sits inside a non-linear .*first",
    ),
    "STL inside IWAE": (
        local(BLOCKS),
        {"c": SCORE, "z": DREG},
        iwae,
        2,
        r"doubly_reparameterized\(\) for 'z' sits inside",
    ),
    "enumeration inside Renyi": (
        local(BLOCKS),
        {"z": DREG, "c": ENUM},
        renyi(0.5),
        2,
        r"enumerated\(\) for 'c' sits inside",
    ),
    "score under a global IWAE": (
        both(NORMAL, BITS),
        {"w": DREG, "z": SCORE},
        iwae,
        {"w": 2, "z": 2},
        r"for 'z' sits inside a non-linear objective",
    ),
    "a missing block": (
        local(BLOCKS),
        {"c": SCORE},
        elbo,
        2,
        r"rules has entries \['c'\].*blocks \['c', 'z'\]",
    ),
    "a wrong block": (local(BLOCKS), {"c": SCORE, "y": PATH}, elbo, 2, r"\['c', 'y'\]"),
    "blocks of none": (
        local(NORMAL),
        {"a": PATH},
        elbo,
        1,
        r"diag_normal\(2\) has no named blocks",
    ),
    "a wrong level": (
        both(NORMAL, BITS),
        {"w": PATH, "x": ENUM},
        elbo,
        1,
        r"rules has entries \['w', 'x'\].*\['w', 'z'\]",
    ),
    "an objective for one level": (
        both(NORMAL, NORMAL),
        PATH,
        {"w": elbo},
        1,
        r"objective has entries \['w'\]",
    ),
    "samples for one level": (
        both(NORMAL, NORMAL),
        PATH,
        elbo,
        {"w": 2},
        r"num_samples has entries \['w'\]",
    ),
    "a name for an objective": (
        local(NORMAL),
        PATH,
        "elbo",
        1,
        r"objective='elbo': give a function",
    ),
    "no samples": (local(NORMAL), PATH, elbo, 0, r"num_samples=0, but K is an int of at least 1"),
    "half a sample": (local(NORMAL), PATH, elbo, 1.5, r"num_samples=1.5, but K is an int"),
}
