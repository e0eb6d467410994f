"""Weights from PyTorch and back.

A state dict of torchvision's or timm's ResNet-18, 50 or 101, or a checkpoint of the published code
(ResNet or CNN, with its head), becomes a work directory that `eval` and `embed` read, and that
--config.init.workdir=DIR lets a training run begin with:
  python -m cellclr_jax.convert --input=FILE --workdir=DIR [--config=FILE --config.name=value …]
The config is that of the work directory, images are normalised as it says: those of the published
code need --config=configs/simclr_paper.py:resnet50 (or :cnn, :resnet18, :resnet101).

A checkpoint of a work directory becomes a state dict of the encoder, with or without its head:
  python -m cellclr_jax.convert --workdir=DIR [--step=last|best|N]
                                --output=FILE.pth|FILE.safetensors [--layout=torchvision|published]

Files of torch.save need PyTorch, pip install 'cellclr_jax[convert]'; nothing but tensors is loaded.
"""

from pathlib import Path

from absl import flags

from cellclr_jax import cli, default_config
from cellclr_jax.errors import BadUse

FLAGS = flags.FLAGS

cli.define_config()
flags.DEFINE_string("input", None, "A state dict or checkpoint: .pth, .pt, .safetensors.")
flags.DEFINE_string("workdir", None, "Made of --input, or of which --output is made.")
flags.DEFINE_string("output", None, "The state dict to write: .pth, .pt, .safetensors.")
flags.DEFINE_string("step", "last", "Which checkpoint of --workdir: last, best or a number.")
flags.DEFINE_enum(
    "layout",
    None,
    ["torchvision", "published"],
    "Names in --output: torchvision, only the encoder; or published, features.* and the head's l1 "
    "and l2, by default for a CNN whose head has these two layers.",
)
_ONLY_WITH = {"input": ("config",), "output": ("step", "layout")}


def main() -> None:
    """Converts in the direction that the flags say."""
    given = [name for name in _ONLY_WITH if FLAGS[name].value]
    if len(given) != 1:
        raise BadUse("one of --input and --output was expected (see --help)")
    if not FLAGS.workdir:
        raise BadUse("--workdir=DIR was expected (see --help)")
    for name in (name for kind, names in _ONLY_WITH.items() if kind != given[0] for name in names):
        if FLAGS[name].present:
            raise BadUse(f"--{name} says nothing with --{given[0]}")
    if FLAGS.output:
        _export()
    else:
        _import()


def _import() -> None:
    named = FLAGS["config"].present
    config = cli.read_config() if named else default_config.get_config()
    from cellclr_jax.weights.import_export import import_weights

    import_weights(Path(FLAGS.input), FLAGS.workdir, config, named=bool(named))


def _export() -> None:
    from cellclr_jax.weights.import_export import export_weights

    export_weights(FLAGS.workdir, FLAGS.step, Path(FLAGS.output), layout=FLAGS.layout)


if __name__ == "__main__":
    cli.run(main, __doc__)
