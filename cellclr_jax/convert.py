"""Converts weights of PyTorch into a work directory, or a checkpoint into weights of PyTorch.

  python -m cellclr_jax.convert --input=FILE --workdir=DIR [--config=FILE --config.name=value …]

A state dict of torchvision's or timm's ResNet-18, 50 or 101, or a checkpoint of the published code
(ResNet or CNN, with its head), becomes a work directory that `eval` and `embed` read, and from
which training starts by --config.init.workdir=DIR. The work directory gets the given config, which
also decides how images are normalised: weights of the published code need
--config=configs/simclr_paper.py:resnet50 (or :cnn, :resnet18, :resnet101).

  python -m cellclr_jax.convert --workdir=DIR [--step=last|best|N]
                                --output=FILE.pth|FILE.safetensors [--layout=torchvision|published]

A checkpoint of a work directory becomes a state dict of the encoder, with or without its head.
.pth and .pt files need PyTorch: pip install 'cellclr_jax[convert]'; only tensors are loaded.
"""

from pathlib import Path

from absl import flags

from cellclr_jax import cli, default_config
from cellclr_jax.errors import BadUse

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "workdir",
    None,
    "Work directory that is created from --input, or read for --output; no default.",
)
flags.DEFINE_string(
    "input",
    None,
    "State dict or checkpoint of PyTorch, e.g. --input=resnet50-0676ba61.pth; .pth, .pt or "
    ".safetensors; no default.",
)
cli.define_config()
flags.DEFINE_string(
    "output",
    None,
    "State dict to write, e.g. --output=encoder.safetensors; .pth, .pt or .safetensors; no "
    "default.",
)
flags.DEFINE_string("step", "last", "Checkpoint of --workdir: last, best or a step number.")
flags.DEFINE_enum(
    "layout",
    None,
    ["torchvision", "published"],
    "Names of the arrays in --output: torchvision, of the encoder only; published, features.* and "
    "the head's l1 and l2. By default published for a CNN whose head has these two layers, else "
    "torchvision.",
)
_HELP = {
    "Both directions": ("workdir",),
    "From PyTorch": ("input", "config"),
    "To PyTorch": ("output", "step", "layout"),
}
_ONLY_WITH = {"input": ("config",), "output": ("step", "layout")}


def main() -> None:
    """Converts in the direction that the flags name."""
    directions = [name for name in _ONLY_WITH if FLAGS[name].value]
    if len(directions) != 1:
        raise BadUse("one of --input and --output was expected (see --help)")
    if not FLAGS.workdir:
        raise BadUse("--workdir=DIR was expected (see --help)")
    (direction,) = directions
    for name in _ONLY_WITH["output" if direction == "input" else "input"]:
        if FLAGS[name].present:
            raise BadUse(f"--{name} has no effect with --{direction}")
    if direction == "input":
        named = bool(FLAGS["config"].present)
        config = cli.read_config() if named else default_config.get_config()
        from cellclr_jax.weights.import_export import import_weights

        import_weights(Path(FLAGS.input), FLAGS.workdir, config, named=named)
    else:
        from cellclr_jax.weights.import_export import export_weights

        export_weights(FLAGS.workdir, FLAGS.step, Path(FLAGS.output), layout=FLAGS.layout)


if __name__ == "__main__":
    cli.run(main, __doc__, groups=_HELP)
