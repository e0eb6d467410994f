"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020), and metrics of a representation.

The matrix of similarities is never held as a whole: rows are compared with a block of columns at a
time, and the backward pass computes the block again. All functions are pure, compute in float32
whatever the input's dtype, and take the global minibatch; with a mesh, each device computes the
similarities of its rows.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cellclr_jax.objectives.objective import Metric, Metrics, Objective, Outputs

# On TPU the default matrix product rounds its inputs to bfloat16, which costs three digits of a
# logit at a low temperature.
_EXACT = jax.lax.Precision.HIGHEST
# Columns of a block: a multiple of a TPU's 128 lanes, wide enough for an efficient matrix product.
# On a CPU 512 to 2,048 take the same time.
_BLOCK = 1024
# Initial value of a row's largest similarity, below every cosine.
_BELOW = -2.0
# Similarities closer than this count as a tie: the rounding error of a product of unit rows.
_TIE = 16 * float(jnp.finfo(jnp.float32).eps)
# Collapse: accuracy below so many times that of guessing, and uniformity above this, which is
# log exp(-2 d²) for d² = 0.05, i.e. projections about 13 degrees from each other.
_CHANCES, _ONE_POINT = 2.0, -0.1


@dataclass(frozen=True)
class NTXent(Objective):
    """SimCLR: the two views of a cell attract each other, all other cells repel.

    Attributes:
      temperature: divides the cosine similarities.
      loss_block_size: columns that a row is compared with at a time; 0 for the default.
    """

    temperature: float = 0.1
    loss_block_size: int = 0

    title: ClassVar[str] = "NT-Xent"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "contrastive_accuracy",
            "share of views whose nearest other view is of the same cell",
            better="higher",
            console="acc {:.1%}",
        ),
        Metric(
            "alignment",
            "mean squared distance of a cell's two projections, 0 to 4",
            better="lower",
        ),
        Metric(
            "uniformity",
            "log of the mean Gaussian of distances between cells; 0: identical projections",
            better="lower",
        ),
    )
    advice: ClassVar[str] = (
        "try a lower --config.optimizer.learning_rate, a longer --config.schedule.warmup_epochs, "
        "a higher --config.temperature or --config.model.head.norm=batch"
    )

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def loss(self, outputs: Outputs, mesh: Mesh | None) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Computes NT-Xent of two views; see `contrast`."""
        first, second = outputs.student
        value, metrics = contrast(
            first, second, self.temperature, block_size=self.loss_block_size or None, mesh=mesh
        )
        return value, (None, metrics)

    def sign_of_collapse(self, metrics: Mapping[str, float], minibatch_size: int) -> str:
        """Detects identical projections by an accuracy like guessing and a uniformity near 0.

        One sign is not enough: a working encoder without batch normalisation starts with a
        uniformity of -0.04, one with batch normalisation starts with the accuracy of guessing.
        """
        if not {"contrastive_accuracy", "uniformity"} <= metrics.keys():
            return ""
        accuracy, uniformity = metrics["contrastive_accuracy"], metrics["uniformity"]
        if accuracy > _CHANCES / (2 * minibatch_size - 1) or uniformity <= _ONE_POINT:
            return ""
        return (
            f"contrastive accuracy {accuracy:.2%} is no better than guessing and uniformity is "
            f"{uniformity:.3f}: all cells have nearly the same projection"
        )


def normalize_rows(x: jax.Array) -> jax.Array:
    """Scales each row to unit length.

    Args:
      x: [..., D] of any float dtype.

    Returns:
      [..., D] float32; a zero row stays zero, with a zero gradient.
    """
    x = x.astype(jnp.float32)
    # Division by the largest entry keeps squares of rows between 1e-37 and 8e37 from overflow and
    # underflow. The direction, and hence the gradient, does not depend on that factor.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(largest == 0, 1.0, largest)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(largest == 0, 0.0, x / jnp.sqrt(jnp.where(largest == 0, 1.0, squared)))


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float | jax.Array,
    *,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Each of the 2B rows has one positive, its other view, and 2B - 2 negatives; a row is never
    compared with itself. Memory grows with B × block_size, not with B², in the backward pass too.
    Only first-order reverse-mode derivatives exist, by both projections and by the temperature; the
    latter loses digits if all rows have nearly the same direction.

    Args:
      z1: [B, D] projections of the first views, any float dtype.
      z2: [B, D] projections of the second views; row i of both is a positive pair.
      temperature: > 0, divides the cosine similarities; a number or a traced scalar.
      block_size: columns that a row is compared with at a time, rounded down to whole cells (two
        columns each); None takes a default for CPU, GPU and TPU.
      mesh: of one axis; its devices share the rows, and B is a multiple of their number. None
        computes on the device that holds the rows.

    Returns:
      The mean over the 2B rows, a float32 scalar; its gradients have the dtype of the projections.

    Raises:
      ValueError: the shapes differ, temperature or block_size is not positive, or the mesh has
        several axes or does not divide the rows.

    Example:
      >>> float(nt_xent(jnp.eye(2), jnp.eye(2), 0.5))  # log(1 + 2 / e²)
      0.23954...
    """
    return contrast(z1, z2, temperature, block_size=block_size, mesh=mesh)[0]


def contrast(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float | jax.Array,
    *,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes NT-Xent and, from the same similarities, metrics of the representation.

    Arguments and errors are those of `nt_xent`.

    Returns:
      (loss, metrics): the loss of `nt_xent`, and float32 scalars without gradient:
      `contrastive_accuracy`, the share of the 2B rows with their other view as the most similar
      row, a tie with a negative being wrong; `alignment`, the mean squared distance of positive
      pairs on the unit sphere, in [0, 4]; `uniformity`, the logarithm of the mean Gaussian
      potential exp(-2 d²) of all pairs of distinct first views, in [-8, 0], 0 if they are identical
      or there is only one (both of Wang & Isola 2020, arXiv 2005.10242).
    """
    if z1.ndim != 2 or z1.shape != z2.shape or z1.size == 0:
        raise ValueError(f"expected two arrays of one shape [B, D], got {z1.shape} and {z2.shape}")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"expected a mesh of one axis, got {mesh.axis_names}")
    if mesh is not None and z1.shape[0] % mesh.size:
        raise ValueError(f"{z1.shape[0]} rows do not divide among {mesh.size} devices")
    cells = max(1, (_BLOCK if block_size is None else block_size) // 2)
    mesh = None if mesh is None or mesh.size == 1 else mesh
    return _contrast(z1, z2, jnp.asarray(temperature, jnp.float32), cells, mesh)


@functools.partial(jax.jit, static_argnames=("cells", "mesh"))
def _contrast(
    z1: jax.Array, z2: jax.Array, temperature: jax.Array, cells: int, mesh: Mesh | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes `contrast` in blocks of at most `cells` cells."""
    u = normalize_rows(jnp.stack([z1, z2], axis=1))
    loss, hardest, potential = _nt_xent(u, temperature, cells, mesh)
    first, second = u[:, 0], u[:, 1]
    difference = first - second
    positive = jnp.sum(first * second, axis=1, keepdims=True)
    pairs = float(u.shape[0] * (u.shape[0] - 1))  # may exceed int32
    metrics = {
        "contrastive_accuracy": jnp.mean((positive - hardest > _TIE).astype(jnp.float32)),
        "alignment": jnp.mean(jnp.sum(difference * difference, axis=1)),
        "uniformity": jnp.log(jnp.sum(potential) / pairs) if pairs else jnp.zeros(()),
    }
    return loss, jax.lax.stop_gradient(metrics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _nt_xent(
    u: jax.Array, temperature: jax.Array, cells: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the loss of unit rows u [B, 2, D].

    Also returns the largest similarities and the potentials, which have no gradient.
    """
    return _nt_xent_forward(u, temperature, cells, mesh)[0]


def _nt_xent_forward(
    u: jax.Array, temperature: jax.Array, cells: int, mesh: Mesh | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    rows, whole = _specs(mesh)
    search = _on_each_device(_search, mesh, cells, (rows, whole), (whole, rows, rows, rows))
    blocks, hardest, total, potential = search(u, temperature)
    positive = jnp.sum(u[:, 0] * u[:, 1], axis=1, keepdims=True)
    # The logarithm of (sum over negatives / positive): a small loss keeps its digits, which a
    # difference of two large logits would lose.
    excess = (hardest - positive) / temperature + jnp.log(total)
    loss = jnp.mean(jax.nn.softplus(excess))
    level = positive + temperature * jax.nn.softplus(excess)
    return (loss, hardest, potential), (u, temperature, blocks, level, jax.nn.sigmoid(excess))


def _nt_xent_backward(
    cells: int, mesh: Mesh | None, residuals: Any, cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    u, temperature, blocks, level, missing = residuals
    rows, whole = _specs(mesh)
    pull = _on_each_device(_pull, mesh, cells, (rows, whole, whole, rows), rows)
    from_negatives = pull(u, temperature, blocks, level)
    # The similarity of a positive pair is in the losses of both of its rows.
    from_positive = jnp.sum(missing, axis=1)[:, None, None] * u[:, ::-1]
    factor = cotangents[0] / (2 * u.shape[0] * temperature)
    gradient = factor * (from_negatives - from_positive)
    # Logits are u·u / temperature: scaling all rows by s is dividing the temperature by s².
    return gradient, -0.5 * jnp.sum(u * gradient) / temperature


_nt_xent.defvjp(_nt_xent_forward, _nt_xent_backward)


def _specs(mesh: Mesh | None) -> tuple[PartitionSpec, PartitionSpec]:
    """Layouts of an array divided by rows, and of one that every device holds as a whole."""
    return PartitionSpec(None if mesh is None else mesh.axis_names[0]), PartitionSpec()


def _on_each_device(
    function: Callable[..., Any], mesh: Mesh | None, cells: int, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Applies `_search` or `_pull` on each device to its rows."""
    if mesh is None:
        return functools.partial(function, cells=cells, axis=None)
    function = functools.partial(function, cells=cells, axis=mesh.axis_names[0])
    # Gathered arrays are equal on all devices, which the checker (check_vma) does not recognise.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _search(
    u: jax.Array, temperature: jax.Array, *, cells: int, axis: str | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Compares a device's rows with all rows, a block at a time.

    Args:
      u: [b, 2, D] unit rows of the device's cells.
      temperature: scalar.
      cells: most cells of a block.
      axis: of the mesh, or None.

    Returns:
      All rows in blocks (see `_in_blocks`); for each row of the device the largest similarity to a
      negative [b, 2] and Σ exp((similarity - largest) / temperature) over negatives [b, 2]; for
      each first view the sum of the Gaussian potentials with all other first views [b].
    """
    everyone = _gather(u, axis)
    blocks, starts = _in_blocks(everyone, cells)
    queries, numbers = _queries(u, axis)
    half, width = u.shape[0], blocks.shape[1] // 2

    def step(found: Any, block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        hardest, total, potential = found
        similarity = _negatives(queries, numbers, *block, everyone.shape[0])
        harder = jnp.maximum(hardest, jnp.max(similarity, axis=1))
        terms = jnp.exp((similarity - harder[:, None]) / temperature)
        total = total * jnp.exp((hardest - harder) / temperature) + jnp.sum(terms, axis=1)
        # The exponent -2 d² of first views, by d² = 2 - 2 similarity, at most 0 despite rounding.
        closeness = 4.0 * jnp.minimum(similarity[:half, :width] - 1.0, 0.0)
        return (harder, total, potential + jnp.sum(jnp.exp(closeness), axis=1)), None

    nothing = jnp.zeros(2 * half, jnp.float32)
    (hardest, total, potential), _ = jax.lax.scan(
        step, (nothing + _BELOW, nothing, nothing[:half]), (blocks, starts)
    )
    return blocks, hardest.reshape(2, half).T, total.reshape(2, half).T, potential


def _pull(
    u: jax.Array,
    temperature: jax.Array,
    blocks: jax.Array,
    level: jax.Array,
    *,
    cells: int,
    axis: str | None,
) -> jax.Array:
    """Computes the negatives' part of the gradient by a device's rows, [b, 2, D].

    The similarity of two rows is in the losses of both. Its two derivatives follow from the rows'
    levels, temperature × log-sum-exp. All levels are gathered, so that no gradient has to be sent.
    """
    everyone = _gather(level, axis)
    levels, starts = _in_blocks(everyone, cells)
    queries, numbers = _queries(u, axis)
    query_level = level.T.reshape(-1, 1)

    def step(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        keys, start, key_level = block
        similarity = _negatives(queries, numbers, keys, start, everyone.shape[0])
        as_query = jnp.exp((similarity - query_level) / temperature)
        as_key = jnp.exp((similarity - key_level[None, :]) / temperature)
        return total + _product(as_query + as_key, keys), None

    total, _ = jax.lax.scan(step, jnp.zeros_like(queries), (blocks, starts, levels))
    return total.reshape(2, *u.shape[::2]).swapaxes(0, 1)


def _gather(rows: jax.Array, axis: str | None) -> jax.Array:
    """Concatenates the rows of all devices, in order."""
    return rows if axis is None else jax.lax.all_gather(rows, axis, tiled=True)


def _in_blocks(rows: jax.Array, cells: int) -> tuple[jax.Array, jax.Array]:
    """Divides [B, 2, ...] into n blocks of c cells, as few as possible with c ≤ `cells`.

    Returns:
      [n, 2c, ...]: in each block the first views, then the second views, the last block padded with
      zeros; [n] the number of each block's first cell.
    """
    count = -(-rows.shape[0] // cells)
    cells = -(-rows.shape[0] // count)
    missing = count * cells - rows.shape[0]
    padded = jnp.pad(rows, ((0, missing),) + ((0, 0),) * (rows.ndim - 1))
    blocks = padded.reshape(count, cells, *rows.shape[1:]).swapaxes(1, 2)
    return blocks.reshape(count, 2 * cells, *rows.shape[2:]), jnp.arange(count) * cells


def _queries(u: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns a device's rows [2b, D], first views before second ones, and their cells [2b]."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * u.shape[0]
    numbers = first + jnp.tile(jnp.arange(u.shape[0]), 2)
    return u.swapaxes(0, 1).reshape(numbers.shape[0], -1), numbers


def _negatives(
    queries: jax.Array, numbers: jax.Array, keys: jax.Array, start: jax.Array, size: int
) -> jax.Array:
    """Similarities [2b, 2c] of rows with a block's; -inf for views of the same cell and padding."""
    column = start + jnp.tile(jnp.arange(keys.shape[0] // 2), 2)
    negative = (numbers[:, None] != column[None, :]) & (column < size)[None, :]
    return jnp.where(negative, _product(queries, keys.T), -jnp.inf)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_EXACT, preferred_element_type=jnp.float32)
