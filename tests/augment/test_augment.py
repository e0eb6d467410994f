"""Operations equal NumPy or SciPy, are the identity at strength 0 and keep their range."""

import functools
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.published_chain import crop

from cellclr_jax import augment
from cellclr_jax.augment import resampling

CHAIN = {
    "random_resized_crop": {},
    "flip_horizontal": {},
    "elastic": {},
    "jitter_channels": {},
    "gaussian_blur": {},
}


def image(side=24, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(side, side, channels)).astype(np.float32)


def draws(operation, picture, count=64, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(partial(operation, picture)))(keys))


def naive_resize(picture, top, left, height, width, size):
    """A box cut out, then resampled by antialiased linear interpolation in float64."""
    box = picture[top : top + height, left : left + width]
    out = np.zeros((size, size, picture.shape[2]))

    def weights(index, source):
        scale = source / size
        center = (index + 0.5) * scale - 0.5
        w = np.maximum(0, 1 - np.abs(center - np.arange(source)) / max(scale, 1))
        return w / w.sum()

    for i in range(size):
        for j in range(size):
            out[i, j] = np.einsum("h,w,hwc->c", weights(i, height), weights(j, width), box)
    return out


@pytest.mark.parametrize("size", [8, 31])
def test_center_crop_equals_a_loop(size):
    picture = image()
    got = augment.center_crop(picture, jax.random.key(0), fraction=(0.5, 0.5), size=size)
    np.testing.assert_allclose(got, naive_resize(picture, 6, 6, 12, 12, size), atol=1e-5)


def test_resize_equals_a_loop_and_keeps_an_image_of_the_same_size():
    picture = image()
    want = naive_resize(picture, 0, 0, 24, 24, 10)
    np.testing.assert_allclose(augment.resize(picture, 10), want, atol=1e-5)
    assert augment.resize(picture, 24) is picture


def read_boxes(shape, count=600, **settings):
    """(top, left, height, width) of the boxes of random crops, as a ramp reveals them."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    ramp = np.stack([y, x], axis=-1)
    size = 2 * max(shape)  # enlarged: the outermost pixels are those of the box's corners
    out = draws(partial(augment.random_resized_crop, size=size, **settings), ramp, count)
    (top, left), (bottom, right) = out[:, 0, 0].T, out[:, -1, -1].T
    boxes = np.stack([top, left, bottom - top + 1, right - left + 1], axis=1)
    np.testing.assert_allclose(boxes, np.round(boxes), atol=1e-4)
    return np.round(boxes).astype(int)


def test_random_resized_crop_draws_boxes_as_torchvision():
    rng, shape = np.random.default_rng(0), (21, 32)
    got, want = read_boxes(shape), np.array([crop(rng, *shape) for _ in range(2000)])
    for values in (*zip(got.T, want.T, strict=True), [b[:, 3] / b[:, 2] for b in (got, want)]):
        assert scipy.stats.ks_2samp(*values).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(60, 9), (7, 40)])
def test_without_a_fitting_box_the_largest_centred_box_of_an_allowed_aspect_is_used(shape):
    areas = (1.0, 1.0)  # only a box with the aspect of the image fits
    want = crop(np.random.default_rng(0), *shape, areas=areas)
    assert (read_boxes(shape, count=3, area=areas) == want).all()


@pytest.mark.parametrize(("box", "size"), [((10, 5, 33, 47), 16), ((31, 60, 3, 1), 40)])
def test_a_box_is_resized_as_if_it_were_cut_out_first(box, size):
    picture = np.random.default_rng(0).normal(size=(64, 80, 2)).astype(np.float32)
    rows, columns = (resampling.Span(box[i], box[i + 2]) for i in (0, 1))
    got = resampling.resample_box(jnp.asarray(picture), rows, columns, size, size)
    np.testing.assert_allclose(got, naive_resize(picture, *box, size), atol=4e-5)


def test_rotate_quarter_gives_all_four_orientations():
    picture = image(8)
    out = draws(augment.rotate_quarter, picture, count=400)
    counts = [(out == np.rot90(picture, k)).all(axis=(1, 2, 3)).sum() for k in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_flips_mirror_half_of_the_images():
    picture = image(8)
    for operation, mirrored in (
        (augment.flip_horizontal, picture[:, ::-1]),
        (augment.flip_vertical, picture[::-1]),
    ):
        out = draws(operation, picture, count=400)
        flipped = (out == mirrored).all(axis=(1, 2, 3)).sum()
        kept = (out == picture).all(axis=(1, 2, 3)).sum()
        assert flipped + kept == 400
        assert 150 < flipped < 250


def test_rotate_equals_scipy():
    picture = np.asarray(scipy.ndimage.gaussian_filter(image(32, 2), (2, 2, 0)))
    key = jax.random.key(3)
    got = jax.jit(partial(augment.rotate, degrees=40.0))(picture, key)
    angle = jax.random.uniform(jax.random.split(key)[1], minval=-40.0, maxval=40.0)
    want = scipy.ndimage.rotate(
        picture, float(angle), reshape=False, order=1, mode="mirror", axes=(1, 0)
    )
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 9])
def test_gaussian_blur_equals_scipy(kernel):
    picture = image()
    got = augment.gaussian_blur(
        picture, jax.random.key(0), sigma=(1.3, 1.3), kernel=kernel, probability=1.0
    )
    taps = np.exp(-0.5 * ((np.arange(kernel) - kernel // 2) / 1.3) ** 2)
    want = picture.astype(np.float64)
    for axis in (0, 1):
        want = scipy.ndimage.correlate1d(want, taps / taps.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_shift_equals_numpys_interpolation(axis):
    picture = image(20)
    shift = np.random.default_rng(1).uniform(-3, 3, size=(20, 20)).astype(np.float32)
    got = resampling.shift_along(jnp.asarray(picture), jnp.asarray(shift), 3.0, axis=axis)
    lines, moves = (picture, shift) if axis == 1 else (picture.swapaxes(0, 1), shift.T)
    want = np.stack(
        [
            np.stack([np.interp(np.arange(20) + m, np.arange(20), row[:, c]) for c in range(3)], -1)
            for row, m in zip(lines, moves, strict=True)
        ]
    )
    np.testing.assert_allclose(got, want if axis == 1 else want.swapaxes(0, 1), atol=1e-5)


def test_a_shift_has_the_same_inputs_on_all_platforms():
    picture = jnp.asarray(image(8))
    padded, shift = jnp.pad(picture, ((0, 0), (2, 2), (0, 0))), jnp.sin(9 * picture)
    one, other = (
        way(picture, padded, shift) for way in (resampling._contiguous, resampling._at_once)
    )
    for have, want in zip(one, other, strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("elastic", {"displacement": -1.0}),
        ("elastic", {"smoothness": 0.0}),
        ("center_crop", {"fraction": (1.2, 1.2)}),
        ("center_crop", {"fraction": (0.8, 0.5)}),
        ("random_resized_crop", {"area": (0.0, 1.0)}),
        ("random_resized_crop", {"aspect": (-1.0, 1.0)}),
        ("add_noise", {"deviation": (-1.0, 0.1)}),
    ],
)
def test_invalid_settings_are_refused(name, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        augment.two_views(jax.random.key(0), jnp.ones((2, 16, 16, 3)), {name: settings})


def test_displacement_field_has_unit_variance_and_the_gaussians_correlation():
    fields = np.asarray(
        jax.vmap(lambda k: resampling.smooth_field(k, (48, 48), 5.0))(
            jax.random.split(jax.random.key(0), 800)
        )
    )
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.12)
    lag = (fields[:, :, :-5] * fields[:, :, 5:]).mean()
    assert lag == pytest.approx(np.exp(-(5**2) / (4 * 5**2)), abs=0.03)


def test_elastic_moves_pixels_by_the_stated_deviation():
    ramp = np.repeat(np.arange(64, dtype=np.float32)[None, :, None], 64, axis=0)
    out = draws(partial(augment.elastic, probability=1.0), ramp, count=200)
    moved = (out - ramp)[:, :, 16:48, 0]
    assert moved.std() == pytest.approx(0.8, rel=0.08)
    assert np.abs(moved).max() <= 3 * 0.8 + 1e-3


@pytest.mark.parametrize("operation", [augment.jitter_channels, augment.jitter_joint])
def test_jitter_is_affine_within_its_range(operation):
    picture = image()
    out = draws(partial(operation, probability=1.0, offset=0.3), picture, count=200)
    mean, new_mean = picture.mean((0, 1)), out.mean((1, 2))
    gain = out.std((1, 2)) / picture.std((0, 1))
    assert gain.min() >= 0.6 * 0.6 - 1e-3
    assert gain.max() <= 1.4 * 1.4 + 1e-3
    assert (new_mean / mean).std() > 0.1
    centred = (out - new_mean[:, None, None]) / gain[:, None, None]
    np.testing.assert_allclose(centred, np.broadcast_to(picture - mean, out.shape), atol=1e-4)
    shared = np.allclose(gain[:, 0], gain[:, 1], rtol=1e-3)
    assert shared == (operation is augment.jitter_joint)


def test_grayscale_and_drop_channel_replace_by_means():
    picture = image()
    gray = augment.grayscale(picture, jax.random.key(0), probability=1.0)
    np.testing.assert_allclose(gray, np.repeat(picture.mean(2, keepdims=True), 3, 2), atol=1e-6)
    out = draws(partial(augment.drop_channel, probability=1.0), picture, count=300)
    flat = np.ptp(out, axis=(1, 2)) < 1e-6
    assert (flat.sum(axis=1) == 1).all()
    assert flat.sum(axis=0).min() > 60
    np.testing.assert_allclose(out.mean((1, 2)), np.tile(picture.mean((0, 1)), (300, 1)), atol=1e-5)


def test_noise_has_the_drawn_deviation():
    out = draws(partial(augment.add_noise, deviation=(0.2, 0.2)), np.zeros((32, 32, 3)), count=50)
    assert out.std() == pytest.approx(0.2, rel=0.03)
    assert out.mean() == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize(
    ("operation", "off"),
    [
        (augment.random_resized_crop, {"area": (1.0, 1.0), "aspect": (1.0, 1.0)}),
        (augment.center_crop, {"fraction": (1.0, 1.0)}),
        (augment.flip_horizontal, {"probability": 0.0}),
        (augment.flip_vertical, {"probability": 0.0}),
        (augment.rotate_quarter, {"probability": 0.0}),
        (augment.rotate, {"degrees": 0.0}),
        (augment.rotate, {"probability": 0.0}),
        (augment.elastic, {"displacement": 0.0, "probability": 1.0}),
        (augment.elastic, {"probability": 0.0}),
        (augment.jitter_channels, {"brightness": 0.0, "contrast": 0.0, "probability": 1.0}),
        (augment.jitter_joint, {"offset": 0.5, "probability": 0.0}),
        (augment.grayscale, {"probability": 0.0}),
        (augment.gaussian_blur, {"sigma": (0.0, 0.0), "probability": 1.0}),
        (augment.gaussian_blur, {"probability": 0.0}),
        (augment.add_noise, {"deviation": (0.0, 0.0)}),
        (augment.drop_channel, {"probability": 0.0}),
    ],
)
@pytest.mark.parametrize("channels", [5])
def test_strength_zero_is_the_identity(operation, off, channels):
    picture = image(16, channels)
    out = draws(partial(operation, **off), picture, count=3)
    np.testing.assert_allclose(out, np.stack([picture] * 3), atol=2e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_views_keep_shape_and_range_for_any_channels(channels):
    images = jnp.stack([image(24, channels, s) for s in range(4)])
    config = {name: {} for name in CHAIN if name != "jitter_channels"}
    views = jax.jit(lambda k, x: augment.two_views(k, x, config))(jax.random.key(0), images)
    assert views.shape == (4, 2, 24, 24, channels)
    assert float(views.min()) >= -1e-5
    assert float(views.max()) <= 1 + 1e-5


def ramp(image, key, *, slope=0.5):
    """An operation that does not commute with others: brighter to the right and the bottom."""
    height, width, _ = image.shape
    return image * (1 + slope * jnp.arange(width)[None, :, None] / width) + slope * (
        jnp.arange(height)[:, None, None] / height
    )


@pytest.mark.parametrize(
    "order",
    [
        "center h v turn ramp",
        "h crop turn ramp v",
    ],
)
def test_operations_run_in_the_order_of_the_registry(order, monkeypatch):
    short = {"crop": "random_resized_crop", "h": "flip_horizontal", "v": "flip_vertical"}
    short |= {"center": "center_crop", "turn": "rotate_quarter", "ramp": "ramp"}
    known = {**augment.OPERATIONS, "ramp": ramp}
    names = list(dict.fromkeys(short[name] for name in order.split()))
    monkeypatch.setattr(augment, "OPERATIONS", {name: known[name] for name in names})
    picture, config = image(12), {name: {} for name in reversed(names)}

    def in_turn(key):
        view = picture
        for name in names:
            view = known[name](view, jax.random.fold_in(key, zlib.crc32(name.encode())))
        return view

    keys = jax.random.split(jax.random.key(0), 16)[:, None]
    pictures = jnp.repeat(picture[None], 16, axis=0)
    got = jax.jit(lambda k, x: augment.make_views(k, x, config))(keys, pictures)
    expected = jax.jit(jax.vmap(in_turn))(keys[:, 0])
    np.testing.assert_allclose(got[:, 0], expected, atol=1e-5)


def test_views_have_the_requested_size_with_and_without_a_crop():
    def shape(config):
        keys = jax.eval_shape(lambda: augment.view_keys(jax.random.key(0), 1, 3))
        view = functools.partial(augment.make_views, config=config, size=12)
        return jax.eval_shape(view, keys, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)).shape

    for config in ({}, {"flip_vertical": {}}, {"center_crop": {}}, {"random_resized_crop": {}}):
        assert shape(config) == (1, 3, 12, 12, 3)
    assert shape({"center_crop": {"size": 8}}) == (1, 3, 8, 8, 3)


def test_all_views_of_one_image_differ_on_every_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images = np.repeat(image(16)[None], 16, axis=0)
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    view = jax.jit(lambda k, x: augment.two_views(k, x, CHAIN))
    views = np.asarray(view(jax.random.key(0), sharded)).reshape(32, -1)
    assert len(np.unique(views.round(5), axis=0)) == 32


def test_adding_an_operation_changes_no_other():
    images = np.stack([image(16, seed=s) for s in range(8)])
    key = jax.random.key(0)
    flipped, both = (
        jax.jit(partial(augment.two_views, config=config))(key, images)
        for config in ({"flip_vertical": {}}, {"flip_vertical": {}, "drop_channel": {}})
    )
    same = (np.asarray(flipped) == np.asarray(both)).all(axis=(2, 3))
    assert same.mean() > 0.8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"flip_diagonal": {}}, "flip_diagonal"),
        ({"gaussian_blur": {"sgima": (0, 1)}}, "sgima"),
        ({"gaussian_blur": {"sgima": (0, 1), "probability": 0}}, "sgima"),
        ({"gaussian_blur": {"kernel": 8}}, "kernel"),
    ],
)
def test_unknown_operations_and_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        augment.two_views(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), config)


def test_an_operation_of_probability_zero_is_left_out():
    config = {"rotate_quarter": {"probability": 0}}
    oblong = jnp.zeros((2, 16, 20, 3))
    assert augment.two_views(jax.random.key(0), oblong, config).shape == (2, 2, 16, 20, 3)
    with pytest.raises(ValueError, match="square"):
        augment.two_views(jax.random.key(0), oblong, {"rotate_quarter": {}})
