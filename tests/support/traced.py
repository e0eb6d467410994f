"""Lists the operations of a traced function."""

import jax


def operations(jaxpr):
    """Yields (name, dtype of the result) of every operation, including inner programs."""
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, out.aval.dtype) for out in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from operations(inner)
