"""Runs the pieces of a build on a cluster, by Apache Beam."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cellclr_jax.cli import BadData, BadUse

Item = TypeVar("Item")
Result = TypeVar("Result")


def pipeline_options(flags: Sequence[str]) -> Any:
    """Beam's options from flags such as `--project=p`.

    Raises:
      BadUse: Apache Beam is not installed.
    """
    # While it is loaded, Beam warns of every cloud service whose client is not installed.
    logging.disable(logging.WARNING)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise BadUse(
            f"--beam_runner needs Apache Beam ({error}): pip install 'cellclr_jax[beam]'"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return PipelineOptions(list(flags))


def map_on_beam(
    work: Callable[[Item], Result], items: Sequence[Item], *, runner: str, options: Any
) -> Iterator[Result]:
    """`map` on a cluster, whose machines see the same folders under the same paths.

    Args:
      work: a function that leaves its result in a file and finds it there the next time; it can be
        pickled, as can its items.
      items: what to work on.
      runner: of Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, …
      options: `pipeline_options`.

    Yields:
      One result an item, in their order, when all of them are there.

    Raises:
      BadUse: an unknown runner.
      BadData: the pipeline failed.
    """
    import apache_beam as beam

    # Its parser explains wrong options at length and ends the process; and what fails is told once,
    # below, not by each of its workers.
    logging.disable(logging.CRITICAL)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            pipeline = beam.Pipeline(runner=runner, options=options)
            # Reshuffled: the items would otherwise stay with their source, on one machine.
            _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)
            running = pipeline.run()
        running.wait_until_finish()
    except SystemExit as error:
        reason = told.getvalue().strip().rpartition("error: ")[2]
        raise BadUse(f"--beam_option: {reason}") from error
    except Exception as error:
        # In front of what the runner says of its own steps.
        reason = str(error).partition(" [while running")[0]
        if "runner" in reason and isinstance(error, ValueError | ImportError | AttributeError):
            raise BadUse(f"--beam_runner={runner}: {reason}") from error
        raise BadData(f"--beam_runner={runner}: the pipeline failed ({reason})") from error
    finally:
        logging.disable(logging.NOTSET)
    yield from map(work, items)
