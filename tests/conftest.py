"""Settings that every test shares: four virtual devices, quick compilation, no silent broadcasting,
a float64 fixture.
"""

import os

# Read when the first device is asked for, hence before jax is imported. Compiling is most of the
# suite: cheap passes alone are less than half of its time.
FLAGS = (
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def enable_x64():
    """A context manager in which new arrays are float64, under the name that the installed JAX has
    for it.
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64 as experimental_enable_x64

    return experimental_enable_x64()


@pytest.fixture
def x64():
    """The test runs in float64."""
    with enable_x64():
        yield
