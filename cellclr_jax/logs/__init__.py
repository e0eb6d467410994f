"""What a run tells: console, `metrics.jsonl`, TensorBoard and, on request, Weights & Biases.

Each has a room of its own, and `RunLog` is the door to all of them.
"""

from cellclr_jax.data.progress import say
from cellclr_jax.logs.place import is_local
from cellclr_jax.logs.rows import METRICS
from cellclr_jax.logs.run_log import RunLog
from cellclr_jax.logs.tensorboard import TENSORBOARD

__all__ = ["METRICS", "TENSORBOARD", "RunLog", "is_local", "say"]
