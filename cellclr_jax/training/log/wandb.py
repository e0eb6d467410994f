"""Logs to Weights & Biases if requested; the only module that imports wandb.

A failure is printed once and never stops the run.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from cellclr_jax.console import echo
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import read_json, write_json
from cellclr_jax.training.log.metrics_file import Names

IDENTITY = "wandb.json"
_CONFIG = "config.json"
# Time limits for a server that does not answer: the run starts and ends without it.
_SECONDS_TO_BEGIN = 120.0
_SECONDS_TO_END = 120.0


def check_installed() -> None:
    """Raises BadUse, which names the extra, if wandb is not installed."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name has no origin
        raise BadUse("--wandb needs an extra that is not installed: pip install -e '.[wandb]'")


class WandB:
    """A run on Weights & Biases, which a resumed run continues.

    WANDB_MODE=offline writes everything into <folder>/wandb, for `wandb sync`.

    Args:
      project: name of the project.
      workdir: work directory, with the run's config and, after the first call, its id.
      folder: folder of this machine for the files of wandb.
      names: tags and titles of the metrics.
    """

    def __init__(self, project: str, workdir: epath.Path, folder: Path, names: Names) -> None:
        self._run: Any = None
        self._names = names
        try:
            import wandb

            settings = wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                init_timeout=_SECONDS_TO_BEGIN,
                finish_timeout=_SECONDS_TO_END,
            )
            self._run = wandb.init(
                project=project,
                id=_identity(workdir, project),
                name=workdir.name or None,
                config=read_json(workdir / _CONFIG, "config"),
                dir=str(folder),
                resume="allow",
                settings=settings,
            )
            # A resumed run logs earlier steps again, which wandb's own step counter refuses.
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # must not end the training
            self._fail(error)
        else:
            echo(f"Weights & Biases: {self._run.url or folder / 'wandb'}")

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Adds the values of a row, each in its section."""
        self._log(step, {self._names.tag(name): value for name, value in row.items()})

    def text(self, step: int, name: str, message: str) -> None:
        """Sends a text as an alert."""
        self._attempt(lambda run: run.alert(title=name, text=message))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture [H, W, 3] uint8."""
        if self._run is not None:
            import wandb

            self._log(step, {name: wandb.Image(image)})

    def close(self) -> None:
        """Waits until everything is sent, or for two minutes."""
        self._attempt(lambda run: run.finish())

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.log({**values, "step": step}))

    def _attempt(self, action: Callable[[Any], object]) -> None:
        """Calls `action` with the run, unless an earlier call failed."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        echo(f"Weights & Biases failed: {reason}; the run continues without it")


def _identity(workdir: epath.Path, project: str) -> str:
    """Returns the id of the run of this work directory and project; a new one the first time."""
    path = workdir / IDENTITY
    with contextlib.suppress(BadData, LookupError):
        earlier = read_json(path, "run of Weights & Biases")
        if earlier["project"] == project and str(earlier["id"]).isalnum():
            return str(earlier["id"])
    identity = os.urandom(8).hex()
    write_json(path, {"project": project, "id": identity})
    return identity
