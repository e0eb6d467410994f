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
    try:
        # Its parser explains itself at length and ends the process.
        with contextlib.redirect_stderr(io.StringIO()) as told:
            return PipelineOptions(list(flags))
    except SystemExit as error:
        reason = told.getvalue().strip().rpartition("error: ")[2]
        raise BadUse(f"--beam_option={','.join(flags)}: {reason}") from error


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

    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise BadUse(f"--beam_runner={runner}: {error}") from error
    # Reshuffled: the items would otherwise be fused with their source and stay on one machine.
    _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)
    # What fails is told once, below, and not by each of its workers.
    logging.disable(logging.CRITICAL)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        raise _cause(error, runner) from error
    finally:
        logging.disable(logging.NOTSET)
    yield from map(work, items)


def _cause(error: Exception, runner: str) -> BaseException:
    """What went wrong, out of the wrappings of a runner."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    # An end that was asked for, a full disk, bad data: as they would be without a cluster.
    if not isinstance(cause, Exception) or isinstance(cause, OSError | BadData | BadUse):
        return cause
    reason = str(error).partition(" [while running")[0]
    return BadData(f"--beam_runner={runner}: the pipeline failed ({reason})")
