"""Different estimators for the model and for the guide."""

import jax

from vijax.inference import Estimate, Estimator
from vijax.types import Batch, Key, Params, PyTree


def split(*, theta: Estimator, phi: Estimator) -> Estimator:
    """Different estimators for model and guide: theta's gradient from one, phi's and its baselines'
    from the other.

    Both see the same key, hence the same samples where they draw the same way, and the compiler
    shares what they share. The loss reported is theta's. params.control and the state are dicts
    {"theta": ..., "phi": ...}.

    Raises:
      ValueError: if the two are for data sets of different size.
    """
    if theta.num_data != phi.num_data:
        raise ValueError(
            f"split: num_data differs, {theta.num_data} for theta and {phi.num_data} for phi."
        )

    def pick(params: Params, name: str) -> Params:
        return params._replace(control=params.control[name])

    def init_params(key: Key) -> Params:
        ours, theirs = theta.init_params(key), phi.init_params(key)
        return ours._replace(control={"theta": ours.control, "phi": theirs.control})

    def init(key: Key, params: Params) -> PyTree:
        return {
            "theta": theta.init(key, pick(params, "theta")),
            "phi": phi.init(key, pick(params, "phi")),
        }

    def estimate(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        ours, state_theta = theta.estimate(key, pick(params, "theta"), state["theta"], batch)
        theirs, state_phi = phi.estimate(key, pick(params, "phi"), state["phi"], batch)
        control = {"theta": ours.grads.control, "phi": theirs.grads.control}
        grads = Params(theta=ours.grads.theta, phi=theirs.grads.phi, control=control)
        aux = {"theta": ours.aux, "phi": theirs.aux}
        return Estimate(ours.loss, grads, aux), {"theta": state_theta, "phi": state_phi}

    def is_table(params: Params) -> Params:
        control = jax.tree.map(lambda leaf: False, params.control)
        return theta.is_table(pick(params, "theta"))._replace(control=control)

    def locate(params: Params, batch: Batch) -> Params:
        assert phi.locate is not None
        return params._replace(phi=phi.locate(pick(params, "phi"), batch).phi)

    return Estimator(
        init_params=jax.jit(init_params),
        init=init,
        estimate=estimate,
        is_table=is_table,
        num_data=theta.num_data,
        locate=None if phi.locate is None else locate,
        check=theta.check,
    )
