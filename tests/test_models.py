"""Encoders have torchvision's layout and evaluate each image on its own, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cellclr_jax.models.contrastive import make_model
from cellclr_jax.models.pooling import max_pool_2x2

# Parameters of torchvision's models without the classification layer (published totals less fc).
TORCHVISION = {
    "resnet18": (11_689_512 - 513_000, 512),
    "resnet50": (25_557_032 - 2_049_000, 2048),
    "resnet101": (44_549_160 - 2_049_000, 2048),
}


def init(model, size=32, channels=3):
    images = jnp.zeros((1, size, size, channels))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


@pytest.mark.parametrize("name", TORCHVISION)
def test_resnets_have_torchvisions_parameters(name):
    count, width = TORCHVISION[name]
    variables = init(make_model(name))
    encoder = flatten_dict(variables["params"]["encoder"], sep="/")
    assert sum(np.prod(leaf.shape) for leaf in encoder.values()) == count
    assert encoder["conv1/kernel"].shape == (7, 7, 3, 64)
    assert variables["params"]["head"]["l1"]["kernel"].shape == (width, width)


def test_bottleneck_shapes_follow_resnet_v1_5():
    encoder = init(make_model("resnet50"))["params"]["encoder"]
    block = encoder["layer2_0"]
    assert block["conv1"]["kernel"].shape == (1, 1, 256, 128)
    assert block["conv2"]["kernel"].shape == (3, 3, 128, 128)
    assert block["conv3"]["kernel"].shape == (1, 1, 128, 512)
    assert block["downsample_conv"]["kernel"].shape == (1, 1, 256, 512)
    assert "downsample_conv" not in encoder["layer2_1"]


def test_published_cnn_has_its_widths_and_biases():
    encoder = init(make_model("cnn"))["params"]["encoder"]
    assert [encoder[f"conv{i}"]["kernel"].shape[-1] for i in (1, 2, 3, 4)] == [16, 32, 64, 64]
    assert all("bias" in encoder[f"conv{i}"] for i in (1, 2, 3, 4))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"norm": "batch"}])
def test_an_image_is_embedded_alike_in_any_minibatch(channels, settings):
    model = make_model("cnn", encoder_settings=settings)
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, channels))
    variables = model.init(jax.random.key(0), images, train=True)
    together = model.apply(variables, images, method="embed")
    alone = model.apply(variables, images[2:3], method="embed")
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)


def test_batch_norm_uses_the_minibatch_in_training_alone():
    model = make_model("resnet18")
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    (h, z), updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert h.shape == (4, 512)
    assert z.shape == (4, 128)
    before = flatten_dict(variables["batch_stats"])
    after = flatten_dict(updated["batch_stats"])
    assert any(not np.array_equal(before[k], after[k]) for k in before)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    model = make_model("cnn", dtype="bfloat16", encoder_settings={"norm": "batch"})
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    h, z = model.apply(variables, images, train=False)
    assert h.dtype == z.dtype == jnp.float32
    exact = make_model("cnn", encoder_settings={"norm": "batch"})
    np.testing.assert_allclose(h, exact.apply(variables, images, train=False)[0], atol=0.05)


def test_head_depth_width_and_norm_are_settings():
    settings = {"depth": 3, "hidden": 40, "width": 8, "norm": "batch"}
    head = init(make_model("cnn", head_settings=settings))["params"]["head"]
    assert head["l1"]["kernel"].shape == (64, 40)
    assert head["l3"]["kernel"].shape == (40, 8)
    assert "bias" not in head["l1"]
    assert "bias" in head["l3"]
    assert "bn2" in head
    assert "head" not in init(make_model("cnn", head_settings={"depth": 0}))["params"]


@pytest.mark.parametrize("side", [6, 7])
def test_pooling_equals_a_loop(side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    got = max_pool_2x2(jnp.asarray(x))
    for i in range(side // 2):
        for j in range(side // 2):
            want = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
            np.testing.assert_array_equal(got[:, i, j], want)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet34", {}), ("cnn", {"dtype": "float64"}), ("cnn", {"head_settings": {"depht": 2}})],
)
def test_unknown_names_are_refused(name, settings):
    with pytest.raises(ValueError, match=r"resnet34|dtype|depht"):
        make_model(name, **settings)
