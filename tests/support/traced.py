"""What a traced function consists of."""

import jax


def operations(jaxpr):
    """(name, dtype of the result) of every operation, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, out.aval.dtype) for out in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from operations(inner)
