"""Every gradient rule at its usual settings, and the tables that the rules' own metadata makes.

`python -m vijax.catalogue` prints the tables; the README holds a copy. A new rule is one line in
`GROUPS`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from vijax import baselines, path_weights, rules
from vijax.families import NormalMoments, Reparameterized, bernoulli, z_like
from vijax.objectives import iwae, thermodynamic
from vijax.types import Family, PyTree, Requirements, Rule, Scalar

Maker = Callable[[Family], Rule]
"""Family of the latent -> rule. Most ignore it; learned critics are built for its shapes."""

BETAS = (0.0, 0.3, 1.0)

GROUPS: Mapping[str, Mapping[str, Maker]] = {
    "Through the sampler": {
        "pathwise()": lambda family: rules.pathwise(),
        "doubly_reparameterized()": lambda family: rules.doubly_reparameterized(),
        "generalized_doubly_reparameterized()": lambda family: (
            rules.generalized_doubly_reparameterized()
        ),
        "fitted_score_term()": lambda family: rules.fitted_score_term(),
        "quadratic_control()": lambda family: rules.quadratic_control(),
        "quadratic_control(carrier=by_score)": lambda family: rules.quadratic_control(
            carrier=rules.by_score
        ),
        "lax(critic)": lambda family: rules.lax(_critic(family)),
        "generalized_reparameterization()": lambda family: rules.generalized_reparameterization(),
    },
    "Through log q": {
        "score()": lambda family: rules.score(),
        "score(none())": lambda family: rules.score(baselines.none()),
        "score(leave_one_out(iwae))": lambda family: rules.score(baselines.leave_one_out(iwae)),
        "score(moving_average())": lambda family: rules.score(baselines.moving_average()),
        "score(learned(network))": lambda family: rules.score(baselines.learned(_constant())),
        "score(ovis(0))": lambda family: rules.score(baselines.ovis(0.0)),
        "score(ovis(1))": lambda family: rules.score(baselines.ovis(1.0)),
        "score_per_block()": lambda family: rules.score_per_block(),
        "measure_valued()": lambda family: rules.measure_valued(),
    },
    "Coupled draws": {
        "arm()": lambda family: rules.arm(),
        "disarm()": lambda family: rules.disarm(),
        "arms(4)": lambda family: rules.arms(4),
        "arsm()": lambda family: rules.arsm(),
        "disarm_importance()": lambda family: rules.disarm_importance(),
        "disarm_stick_breaking()": lambda family: rules.disarm_stick_breaking(),
        "disarm_tree()": lambda family: rules.disarm_tree(),
    },
    "Enumeration and partial sums": {
        "enumerated()": lambda family: rules.enumerated(),
        "local_expectation()": lambda family: rules.local_expectation(),
        "local_expectation(num_sites=1)": lambda family: rules.local_expectation(num_sites=1),
        "sum_and_sample(1)": lambda family: rules.sum_and_sample(1),
        "sum_and_sample(1, stochastic=True)": lambda family: rules.sum_and_sample(
            1, stochastic=True
        ),
        "unordered_set()": lambda family: rules.unordered_set(),
        "importance_without_replacement()": lambda family: rules.importance_without_replacement(),
        "importance_without_replacement(normalized=True)": lambda family: (
            rules.importance_without_replacement(normalized=True)
        ),
    },
    "Control from a relaxation": {
        "muprop()": lambda family: rules.muprop(),
        "rebar()": lambda family: rules.rebar(),
        "relax(z=...)": lambda family: rules.relax(z=z_like(family)),
        "double_control_variates()": lambda family: rules.double_control_variates(),
        "rodeo()": lambda family: rules.rodeo(),
    },
    "Biased relaxations": {
        "gumbel_softmax(0.5)": lambda family: rules.gumbel_softmax(0.5),
        "straight_through()": lambda family: rules.straight_through(),
        "straight_through_gumbel(0.5)": lambda family: rules.straight_through_gumbel(0.5),
        "gumbel_rao(0.5)": lambda family: rules.gumbel_rao(0.5),
        "gapped_straight_through(1.0)": lambda family: rules.gapped_straight_through(1.0),
        "reinmax()": lambda family: rules.reinmax(),
    },
    "Many samples": {
        "wake()": lambda family: rules.wake(),
        "covariance(betas)": lambda family: rules.covariance(BETAS),
        "doubly_reparameterized(path_weights.sticking())": lambda family: (
            rules.doubly_reparameterized(path_weights.sticking())
        ),
        "doubly_reparameterized(path_weights.wake())": lambda family: rules.doubly_reparameterized(
            path_weights.wake()
        ),
        "doubly_reparameterized(path_weights.interpolated(0.5))": lambda family: (
            rules.doubly_reparameterized(path_weights.interpolated(0.5))
        ),
        "doubly_reparameterized(path_weights.tail_adaptive())": lambda family: (
            rules.doubly_reparameterized(path_weights.tail_adaptive())
        ),
    },
    "Around another rule": {
        "closed_form_entropy(score())": lambda family: rules.closed_form_entropy(rules.score()),
        "closed_form_kl(score())": lambda family: rules.closed_form_kl(rules.score()),
    },
}
"""Every rule by heading and by how it is written."""

CATALOGUE: Mapping[str, Maker] = {
    name: make for rules_of in GROUPS.values() for name, make in rules_of.items()
}
"""All of them, by how they are written."""

OBJECTIVE_OF = {"covariance(betas)": thermodynamic(BETAS)}
"""Rules that are for one objective only."""


def table() -> str:
    """The rules in Markdown, a table per heading: what latent, what objective, unbiased or not,
    evaluations, what is learned or kept, paper.
    """
    head = (
        "| rule | latent | objective | unbiased | evaluations | keeps | source |",
        "|---|---|---|---|---|---|---|",
    )
    parts = [
        "\n".join([f"### {heading}", "", *head, *(_row(*item) for item in makers.items())])
        for heading, makers in GROUPS.items()
    ]
    return "\n\n".join(parts)


def _row(name: str, make: Maker) -> str:
    rule = make(bernoulli(2))
    needs = rule.requires
    cells = (
        f"`{name}`",
        _latent(needs),
        "thermodynamic" if name in OBJECTIVE_OF else _objective(needs),
        "yes" if needs.unbiased else "**no**",
        needs.evaluations,
        _keeps(rule),
        needs.paper,
    )
    return f"| {' | '.join(cells)} |"


def _latent(needs: Requirements) -> str:
    """The labels of the traits that a rule asks for."""
    asked = dict.fromkeys((*needs.needs, *needs.any_of))
    if NormalMoments in asked:  # whose sampler is differentiable without saying so
        asked.pop(Reparameterized, None)
    labels = [getattr(kind, "label", "") for kind in asked]
    return ", ".join(label for label in labels if label) or "any"


def _objective(needs: Requirements) -> str:
    return {True: "ELBO", False: "not ELBO", None: "any"}[needs.linear]


def _keeps(rule: Rule) -> str:
    """What of the rule is learned (control) or remembered (running means), found by asking for its
    shapes.
    """
    control = jax.eval_shape(rule.init, jax.random.key(0))
    state = jax.eval_shape(rule.init_state)
    parts = ["control"] * bool(jax.tree.leaves(control)) + ["running means"] * bool(
        jax.tree.leaves(state)
    )
    return ", ".join(parts) or "-"


def _critic(
    family: Family,
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, PyTree], Scalar]]:
    """A linear critic of the latent, whatever its tree."""

    def init(key: jax.Array) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), z_like(family))

    def apply(weights: PyTree, z: PyTree) -> Scalar:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, z)), jnp.zeros(()))

    return init, apply


def _constant() -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, PyTree], Scalar]]:
    """A learned constant as a baseline network."""
    return lambda key: jnp.zeros(()), lambda control, x: control


if __name__ == "__main__":
    print(table())
