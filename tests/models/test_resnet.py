"""ResNets start as published, statistics in float32; the rest is in `test_torch_embeddings`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support import traced

from cellclr_jax.models import make_model

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
SIDE = 32


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_kernels_start_as_published_and_blocks_as_the_identity(name):
    model = make_model(name)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    last = "bn2" if name == "resnet18" else "bn3"
    for path, leaf in flatten_dict(variables["params"]["encoder"]).items():
        if path[-1] == "scale":
            assert np.all(leaf == (0 if path[-2] == last else 1)), path
        elif path[-1] == "kernel":
            fan_out = leaf.shape[0] * leaf.shape[1] * leaf.shape[3]
            np.testing.assert_allclose(np.var(leaf) * fan_out, 2, rtol=0.1, err_msg=str(path))


def test_statistics_of_a_bfloat16_network_are_float32():
    """Sums over pixels are: covariances of the products, means, and the embedding itself."""
    model = make_model("resnet50", dtype="bfloat16")
    images = jnp.zeros((2, SIDE, SIDE, 3))
    variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    step = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, images
    )
    found = list(traced.operations(step.jaxpr))
    sums = {dtype for name, dtype in found if name in ("reduce_sum", "rsqrt", "sqrt")}
    assert sums == {jnp.dtype(jnp.float32)}
    products = [dtype for name, dtype in found if name == "dot_general"]
    # A bottleneck's last product is bfloat16; its mean, covariance and spread are not.
    blocks = sum(DEPTHS["resnet50"]) + 1
    assert products.count(jnp.dtype(jnp.float32)) >= 3 * blocks
