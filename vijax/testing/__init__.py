"""Property checks in one call each, for a family, rule, model or estimator of one's own; this
library's own tests are made of them.

`check_family`, `check_rule`, `check_model` and `check_estimator` raise AssertionError: what does
not hold, by how many standard errors, and what it usually means. They compile small programs and
take seconds to a minute, on any device, and need no test framework.
"""

from vijax.testing import grids
from vijax.testing.averages import (
    Average,
    assert_agree,
    assert_close,
    assert_partition,
    assert_same_bits,
    assert_unbiased,
    average,
    exactly,
    in_float,
)
from vijax.testing.estimators import check_calls, check_estimator, check_gradient
from vijax.testing.families import check_family
from vijax.testing.measured import gradient_draws, single_calls
from vijax.testing.models import check_model
from vijax.testing.rules import check_rule
from vijax.testing.toys import TOYS, Toy

__all__ = [
    "TOYS",
    "Average",
    "Toy",
    "assert_agree",
    "assert_close",
    "assert_partition",
    "assert_same_bits",
    "assert_unbiased",
    "average",
    "check_calls",
    "check_estimator",
    "check_family",
    "check_gradient",
    "check_model",
    "check_rule",
    "exactly",
    "gradient_draws",
    "grids",
    "in_float",
    "single_calls",
]
