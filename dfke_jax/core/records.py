"""Frozen records that are pytrees: what a method or an attack is written as."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static_field(**options: Any) -> Any:
    """A field of a `record` that is no array: settings, a module, a number of samples.

    Its value is part of the compiled program's key: it must be hashable, and equal by value, or
    every new record compiles again.

    Args:
      **options: of `dataclasses.field`, such as ``default``.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    eq_default=False,
    field_specifiers=(static_field, dataclasses.field),
)
def record(cls: type[T]) -> type[T]:
    """Makes a class a frozen record that JAX takes apart: fields are given by keyword, methods see
    them as ``self.x``.

    Fields are children of the pytree (arrays, classifiers, `jax.tree_util.Partial`s, other records,
    None) and travel into compiled programs as arguments; those declared by `static_field` decide
    which program it is. A record may inherit from another, whose fields come first.

    JAX builds records of tracers and of placeholders, so that nothing may be checked in
    ``__post_init__``: check what is given in the function that makes the record. Records are
    compared by identity, since arrays have no truth value.
    """
    return jax.tree_util.register_dataclass(
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    )


__all__ = ["record", "static_field"]
