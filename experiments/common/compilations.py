"""How often JAX compiles, and how thoroughly."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


@dataclasses.dataclass
class Compilations:
    """What JAX compiled while a `compilations()` block was open."""

    count: int = 0
    seconds: float = 0.0
    open: bool = True


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts XLA compilations inside the block, and their seconds (without tracing)."""
    seen = Compilations()

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if seen.open and event == "/jax/core/compile/backend_compile_duration":
            seen.count += 1
            seen.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seen
    finally:
        seen.open = False  # not every JAX can take a listener back


@contextmanager
def cheaply(*, when: bool = True) -> Iterator[None]:
    """Inside, XLA leaves expensive passes out: for runs that compile longer than they compute."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, when or before)
    try:
        yield
    finally:
        jax.config.update(name, before)
