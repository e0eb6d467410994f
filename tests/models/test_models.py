"""Encoders have torchvision's parameters and embed an image independently of its minibatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cellclr_jax import devices
from cellclr_jax.models import make_model
from cellclr_jax.models.cpu_kernels import convolution, convolve, max_pool_2x2

# Parameters of torchvision's models without the classification layer (published totals less fc).
TORCHVISION = {
    "resnet18": (11_689_512 - 513_000, 512),
    "resnet50": (25_557_032 - 2_049_000, 2048),
    "resnet101": (44_549_160 - 2_049_000, 2048),
}


def init(model, size=32, channels=3):
    images = jnp.zeros((1, size, size, channels))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", pytest.param("resnet101", marks=pytest.mark.slow)],
)
def test_resnets_have_torchvisions_parameters(name):
    count, width = TORCHVISION[name]
    variables = init(make_model(name))
    encoder = flatten_dict(variables["params"]["encoder"], sep="/")
    assert sum(np.prod(leaf.shape) for leaf in encoder.values()) == count
    assert encoder["conv1/kernel"].shape == (7, 7, 3, 64)
    assert variables["params"]["head"]["l1"]["kernel"].shape == (width, width)


WIDTHS = (8, 64)
SIDE = 16


@pytest.mark.parametrize(("channels", "norm"), [(1, "none"), (5, "batch")])
def test_an_image_is_embedded_equally_in_any_minibatch(channels, norm):
    model = make_model("cnn", encoder_settings={"norm": norm, "widths": WIDTHS})
    images = drawn((6, SIDE, SIDE, channels))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(images)
    embed = jax.jit(lambda x: model.apply(variables, x, method="embed"))
    np.testing.assert_allclose(embed(images)[2:3], embed(images[2:3]), rtol=1e-5, atol=1e-6)


def test_batch_norm_uses_the_minibatch_only_in_training():
    model = make_model("cnn", encoder_settings={"norm": "batch", "widths": WIDTHS})
    images = drawn((4, SIDE, SIDE, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (h, z), updated = step(variables, images)
    assert h.shape == (4, 64)
    assert z.shape == (4, 128)
    before = flatten_dict(variables["batch_stats"])
    after = flatten_dict(updated["batch_stats"])
    assert any(not np.array_equal(before[k], after[k]) for k in before)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    settings = {"norm": "batch", "widths": WIDTHS}
    model = make_model("cnn", dtype="bfloat16", encoder_settings=settings)
    images = drawn((2, SIDE, SIDE, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    h, z = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert h.dtype == z.dtype == jnp.float32
    exact = make_model("cnn", encoder_settings=settings)
    wide = jax.jit(lambda v, x: exact.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(h, wide[0], atol=0.05)


def test_head_depth_width_and_norm_are_settings():
    settings = {"depth": 3, "hidden": 40, "width": 8, "norm": "batch"}
    head = init(make_model("cnn", head_settings=settings))["params"]["head"]
    assert head["l1"]["kernel"].shape == (64, 40)
    assert head["l3"]["kernel"].shape == (40, 8)
    assert "bias" not in head["l1"]
    assert "bias" in head["l3"]
    assert "bn2" in head
    assert "head" not in init(make_model("cnn", head_settings={"depth": 0}))["params"]


def by_xla(images, kernel, stride):
    around = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(around, around)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def drawn(shape, dtype="float32", seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def value_and_gradients(function, *arguments):
    """The value, and the gradients by the arguments for one random cotangent."""
    value, back = jax.vjp(function, *arguments)
    return value, *back(drawn(value.shape, value.dtype, seed=9))


# Images [H, W, C], features, size of the kernel, stride: each implementation.
SHAPES = [
    (9, 8, 3, 16, 3, 1),  # few channels and an even width: packed in pairs
    (8, 9, 1, 4, 3, 1),
    (3, 3, 32, 24, 3, 1),
    (1, 1, 8, 8, 3, 2),
    (9, 8, 5, 20, 3, 2),
    (17, 16, 3, 8, 7, 2),
    (9, 8, 6, 7, 1, 1),
    (9, 8, 6, 7, 1, 2),
]
# In bfloat16: packed, not packed, strided.
DTYPES = [(shape, "float32", 2e-5) for shape in SHAPES]
DTYPES += [(SHAPES[number], "bfloat16", 0.02) for number in (0, 2, 5)]


@pytest.mark.parametrize(("shape", "dtype", "tolerance"), DTYPES, ids=str)
def test_convolutions_and_gradients_equal_xlas(shape, dtype, tolerance):
    height, width, channels, features, size, stride = shape
    images = drawn((3, height, width, channels), dtype)
    kernel = drawn((size, size, channels, features), dtype, seed=1)
    # XLA's results in float32: its bfloat16 sums are not exact on all platforms.
    exact = [x.astype(jnp.float32) for x in (images, kernel)]
    got = jax.jit(lambda x, k: value_and_gradients(lambda *a: convolve(*a, stride), x, k))
    for have, want in zip(
        got(images, kernel),
        value_and_gradients(lambda *a: by_xla(*a, stride), *exact),
        strict=True,
    ):
        assert have.dtype == dtype
        have = np.asarray(have, np.float32)
        np.testing.assert_allclose(have, want, atol=tolerance * np.abs(want).max())


def test_a_convolution_equals_a_loop():
    images, kernel = drawn((2, 5, 6, 3)), drawn((3, 3, 3, 4), seed=1)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    got = convolution(4, 3, stride=2, dtype=jnp.float32, name="conv").apply(
        {"params": {"kernel": kernel}}, images
    )
    assert got.shape == (2, 3, 3, 4)
    for i, j in np.ndindex(3, 3):
        seen = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_allclose(got[:, i, j], np.tensordot(seen, kernel, 3), atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]], ids=str)
def test_gradients_of_convolutions_do_not_depend_on_devices(shape):
    height, width, channels, features, size, stride = shape
    images = drawn((8, height, width, channels))
    kernel = drawn((size, size, channels, features), seed=1)
    mesh = devices.make_mesh(4)
    rows, everywhere = devices.by_rows(mesh), devices.replicated(mesh)
    function = jax.jit(
        lambda x, k: value_and_gradients(lambda *a: convolve(*a, stride), x, k),
        in_shardings=(rows, everywhere),
        out_shardings=(rows, rows, everywhere),
    )
    compiled = function.lower(images, kernel).compile()
    assert "all-gather" not in compiled.as_text()
    for have, want in zip(
        compiled(jax.device_put(images, rows), jax.device_put(kernel, everywhere)),
        value_and_gradients(lambda *a: by_xla(*a, stride), images, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(have, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("shape", [(9, 8, 3, 16, 3, 1), (8, 8, 6, 7, 1, 1)], ids=str)
def test_accelerators_get_the_plain_convolution(shape):
    height, width, channels, features, size, stride = shape
    images = jax.ShapeDtypeStruct((4, height, width, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((size, size, channels, features), jnp.float32)

    def operations(function):
        both = jax.jit(lambda x, k: value_and_gradients(lambda *a: function(*a, stride), x, k))
        text = both.trace(images, kernel).lower(lowering_platforms=("tpu",)).as_text()
        names = ("convolution", "dot_general", "reshape", "optimization_barrier")
        return {name: text.count(f"stablehlo.{name}") for name in names}

    assert operations(convolve) == operations(by_xla)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 7)])
def test_pooling_equals_a_loop(height, width):
    # Whole numbers, so that maxima are often equal.
    x = np.asarray(jnp.round(drawn((2, height, width, 3))))
    got, back = jax.vjp(max_pool_2x2, jnp.asarray(x))
    assert got.shape == (2, height // 2, width // 2, 3)
    slope = np.asarray(drawn(got.shape, seed=1))
    want = np.zeros_like(x)
    for i, j in np.ndindex(got.shape[1:3]):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_array_equal(got[:, i, j], window.max(axis=(1, 2)))
        first = window.reshape(2, 4, 3).argmax(axis=1)
        for b, c in np.ndindex(2, 3):
            want[b, 2 * i + first[b, c] // 2, 2 * j + first[b, c] % 2, c] = slope[b, i, j, c]
    np.testing.assert_array_equal(back(jnp.asarray(slope))[0], want)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet34", {}), ("cnn", {"dtype": "float64"}), ("cnn", {"head_settings": {"depht": 2}})],
)
def test_unknown_names_are_refused(name, settings):
    with pytest.raises(ValueError, match=r"resnet34|dtype|depht"):
        make_model(name, **settings)
