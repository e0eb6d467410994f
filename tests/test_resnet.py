"""ResNets compute what their published layout says, beside the same written out plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced
from flax.traverse_util import flatten_dict, unflatten_dict

from cellclr_jax.models.contrastive import make_model

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
SIDE = 32


class Plainly:
    """A residual network of parameters by path, without anything that is made to be fast."""

    def __init__(self, params, statistics):
        self.params, self.statistics = params, statistics

    def conv(self, x, name, stride=1):
        kernel = self.params[f"{name}/kernel"]
        around = kernel.shape[0] // 2
        result = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(around, around)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        return np.asarray(result)

    def norm(self, x, name):
        if self.statistics is None:
            mean, variance = np.mean(x, axis=(0, 1, 2)), np.var(x, axis=(0, 1, 2))
        else:
            mean, variance = (self.statistics[f"{name}/{which}"] for which in ("mean", "var"))
        unit = (x - mean) / np.sqrt(variance + 1e-5)
        return unit * np.asarray(self.params[f"{name}/scale"]) + self.params[f"{name}/bias"]

    def block(self, x, name, stride, convolutions):
        y = x
        for number in range(1, convolutions + 1):
            # Of a basic block the first convolution has the stride, of a bottleneck the 3×3 one.
            here = stride if number == (1 if convolutions == 2 else 2) else 1
            y = self.norm(self.conv(y, f"{name}/conv{number}", here), f"{name}/bn{number}")
            y = np.maximum(y, 0) if number < convolutions else y
        if f"{name}/downsample_conv/kernel" in self.params:
            x = self.norm(self.conv(x, f"{name}/downsample_conv", stride), f"{name}/downsample_bn")
        return np.maximum(x + y, 0)

    def embed(self, images, depths, convolutions):
        x = np.maximum(self.norm(self.conv(images, "conv1", 2), "bn1"), 0)
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        size = x.shape[1] - 2
        shifts = [x[:, i : i + size : 2, j : j + size : 2] for i in range(3) for j in range(3)]
        x = np.max(shifts, axis=0)
        for stage, depth in enumerate(depths, 1):
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                x = self.block(x, f"layer{stage}_{i}", stride, convolutions)
        return np.mean(x, axis=(1, 2))


def drawn_variables(model, images):
    """Initial variables with scales, biases and statistics that are none of 0 and 1."""
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    rng = np.random.default_rng(0)
    flat = {
        path: leaf if path[-1] == "kernel" else rng.uniform(0.5, 1.5, leaf.shape).astype("f4")
        for path, leaf in flatten_dict(variables).items()
    }
    return unflatten_dict(flat)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", DEPTHS)
def test_embeddings_are_those_of_the_layout_written_out(name, train):
    model = make_model(name)
    images = jax.random.normal(jax.random.key(1), (4, SIDE, SIDE, 3))
    variables = drawn_variables(model, images)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"])[0][0])
    parts = [
        flatten_dict(variables[kind]["encoder"], sep="/") for kind in ("params", "batch_stats")
    ]
    plainly = Plainly(parts[0], None if train else parts[1])
    want = plainly.embed(np.asarray(images), DEPTHS[name], 2 if name == "resnet18" else 3)
    got = apply(variables, images)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize("name", DEPTHS)
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
