"""Initial values of ResNets, and float32 statistics; results are in `test_torch_embeddings`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support import traced

from cellclr_jax.models import make_model
from cellclr_jax.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS = sum((3, 4, 6, 3))  # of ResNet-50
SIDE = 32


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_kernels_start_as_published_and_blocks_as_the_identity(block, last):
    model = ResNet(block, (2, 1, 0, 0))
    images = jnp.zeros((1, SIDE, SIDE, 3))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    for path, leaf in flatten_dict(variables["params"]).items():
        if path[-1] == "scale":
            assert np.all(leaf == (0 if path[-2] == last else 1)), path
        elif path[-1] == "kernel":
            fan_out = leaf.shape[0] * leaf.shape[1] * leaf.shape[3]
            np.testing.assert_allclose(np.var(leaf) * fan_out, 2, rtol=0.1, err_msg=str(path))


def test_statistics_of_a_bfloat16_network_are_float32():
    """These are sums over pixels: covariances of products, means, and the embedding."""
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
    assert products.count(jnp.dtype(jnp.float32)) >= 3 * (BLOCKS + 1)
