"""Weights & Biases, where a run asks for it; the only file that imports wandb.

Whatever fails there is said once and never stops the run.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from cellclr_jax.console import say
from cellclr_jax.errors import BadUse
from cellclr_jax.training.log import metrics_file

IDENTITY = "wandb.json"
_CONFIG = "config.json"
# For a server that does not answer: the run begins without it, and ends without it.
_SECONDS_TO_BEGIN = 30.0
_SECONDS_TO_END = 60.0


def check_installed() -> None:
    """Checks that the library is there.

    Raises:
      BadUse: it is not; the message names the extra.
    """
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise BadUse("--wandb needs an extra that is not installed: pip install -e '.[wandb]'")


class WandB:
    """A run on Weights & Biases; goes on with the same one after a kill.

    Where the server cannot be reached or no one is logged in, everything goes into <folder>/wandb,
    for `wandb sync`.

    Args:
      project: its name.
      workdir: of the run; holds its config, and the run's id from the first call on.
      folder: of this machine, for wandb's own files.
    """

    def __init__(self, project: str, workdir: epath.Path, folder: Path) -> None:
        self._run: Any = None
        self._folder = folder
        arguments = {
            "project": project,
            "id": _identity(workdir, project),
            "name": workdir.name or None,
            "config": _config(workdir),
            "dir": str(folder),
            "resume": "allow",
        }
        try:
            self._run = _begin(arguments)
        except Exception as error:  # as everywhere below: the training is worth more
            say(f"Weights & Biases failed: {_line(error)}; the run goes on without it")
            return
        sync = f"written for `wandb sync {Path(self._run.dir).parent}`"
        say(f"Weights & Biases: {sync if self._run.offline else self._run.url}")

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a row's numbers, each in its section."""
        self._log(step, {metrics_file.tag(name): value for name, value in row.items()})

    def text(self, step: int, name: str, message: str) -> None:
        """Sends a text as an alert."""
        self._attempt(lambda run: run.alert(title=name, text=message))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture [H, W, 3] uint8."""
        if self._run is not None:
            import wandb

            self._log(step, {name: wandb.Image(image)})

    def flush(self) -> None:
        """Does nothing: a process of wandb's own sends what it gets."""

    def close(self) -> None:
        """Waits, not for ever, until everything is sent."""
        self._attempt(lambda run: run.finish())

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.log({**values, "step": step}))

    def _attempt(self, action: Callable[[Any], object]) -> None:
        """Does something with the run; after a failure, nothing any more."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            say(
                f"Weights & Biases failed: {_line(error)}; nothing more is sent, what was written "
                f"lies in {self._folder / 'wandb'}"
            )
            self._run = None


def _begin(arguments: Mapping[str, Any]) -> Any:
    """A run, without the server where that does not answer."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        init_timeout=_SECONDS_TO_BEGIN,
        finish_timeout=_SECONDS_TO_END,
    )
    try:
        run = wandb.init(**arguments, settings=settings)
    except Exception as error:  # of many kinds: no one is logged in, no network, a server's answer
        say(f"Weights & Biases: {_line(error)}")
        wandb.teardown()  # what was begun still holds the run's id
        run = wandb.init(**arguments, settings=settings, mode="offline")
    # A run that was killed goes on from an earlier step, which their own counter would refuse.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _identity(workdir: epath.Path, project: str) -> str:
    """The run's id: of an earlier call in this work directory and project, or a new one."""
    path = workdir / IDENTITY
    try:
        known = json.loads(path.read_text())
        if known["project"] == project and str(known["id"]).isalnum():
            return str(known["id"])
    except (OSError, ValueError, TypeError, LookupError):
        pass
    identity = os.urandom(8).hex()
    path.write_text(json.dumps({"project": project, "id": identity}) + "\n")
    return identity


def _config(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / _CONFIG
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
