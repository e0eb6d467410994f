"""Runs a job of several processes that starts quickly and adds numbers until it is killed."""

import sys

from absl import flags

from cellclr_jax import cli

flags.DEFINE_bool("distributed", True, "The flag of the binaries.")
flags.DEFINE_integer("heartbeat", 45, "Seconds without a heartbeat that end the job.")


def main():
    """Adds the ranks of the processes and prints the sum, repeatedly."""
    import jax
    import numpy as np

    from cellclr_jax import devices

    devices.join_processes(flags.FLAGS.heartbeat)
    mesh = devices.make_mesh()
    rank = np.full(1, jax.process_index(), np.float32)
    add = jax.jit(lambda x: x.sum(), out_shardings=devices.replicated(mesh))
    while True:
        total = add(devices.to_global(mesh, {"rank": rank})["rank"])
        print(float(total), file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__)
