"""An estimator seen from q's own parameters."""

from vijax.inference import Estimator
from vijax.shapes import check_batch
from vijax.types import Batch, Params


def in_lam(estimator: Estimator, params: Params, batch: Batch) -> Params:
    """The same parameters with q's own in the place of phi, as `rows.Lam`: where the estimator's
    gradient is per datum, leaves [B, ...], and free of an encoder's weights.

    Measure it there: `lab.gradient_report(key, est, vj.in_lam(est, params, batch), state, batch)`.

    Raises:
      ValueError: if the estimator does not know where q's parameters are.
    """
    check_batch(batch)
    if estimator.locate is None:
        raise ValueError(
            "in_lam: this estimator does not say where q's parameters are; those that "
            "vijax.estimator builds do."
        )
    return estimator.locate(params, batch)
