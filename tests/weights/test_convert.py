"""Files of PyTorch become work directories and files again; a failure leaves no partial result."""

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file
from support.tiny_dataset import metadata, name_channels, random_images, write_dataset
from support.tiny_run import get_config
from support.weight_samples import (
    ENDINGS,
    NETWORKS,
    ROOT,
    SMALL,
    convert,
    entries_of,
    read,
    refusal,
    same,
    write,
)

from cellclr_jax import default_config
from cellclr_jax.encoder.embed_dataset import embed_run
from cellclr_jax.encoder.evaluate_run import evaluate_run
from cellclr_jax.encoder.load import make_objective, plain
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import TRAINING, locked
from cellclr_jax.profiling import report
from cellclr_jax.profiling.protocol import Options, Protocol
from cellclr_jax.profiling.report import figures
from cellclr_jax.run_folder import open_run, read_config, write_config
from cellclr_jax.training.checkpoints import Checkpoints
from cellclr_jax.weights.import_export import export_weights
from cellclr_jax.weights.torch_names import to_variables


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file, and the work directory converted from it."""
    folder = tmp_path_factory.mktemp("small")
    source = write(folder / "small.safetensors", entries_of(SMALL))
    return source, convert(source, folder / "run")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of a ResNet with a head, the work directory converted from it, printed messages."""
    folder = tmp_path_factory.mktemp("resnet")
    source = write(folder / "given.safetensors", entries_of(NETWORKS["resnet_head"]))
    with contextlib.redirect_stderr(io.StringIO()) as message:
        workdir = convert(source, folder / "run")
    return source, workdir, message.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with a dataset of plates, wells and compounds."""
    folder = tmp_path_factory.mktemp("data")
    name_channels(write_dataset(folder, random_images(), columns=metadata()))
    return folder


def without_counters(entries):
    return {name: array for name, array in entries.items() if "num_batches" not in name}


@pytest.mark.parametrize("ending", ENDINGS)
def test_import_and_export_are_inverse_bit_for_bit(ending, tmp_path):
    network, entries = NETWORKS["cnn"], entries_of(NETWORKS["cnn"])
    workdir = convert(write(tmp_path / f"given{ending}", entries), tmp_path / "run")
    export_weights(workdir, "last", tmp_path / f"back{ending}", layout=None)
    assert same(read(tmp_path / f"back{ending}"), entries)
    config = read_config(epath.Path(workdir)).model
    assert (config.encoder, config.head.depth) == ("cnn", 2)
    assert (config.head.hidden, config.head.width) == network.head
    assert (tuple(config.cnn.widths), config.cnn.norm) == (network.widths, network.norm)


def test_a_file_has_metadata_and_an_omitted_head_is_noted(resnet, tmp_path, capsys):
    _, workdir, message = resnet
    assert "--config=configs/simclr_paper.py:resnet18" in message
    export_weights(workdir, "last", tmp_path / "all.safetensors", layout="published")
    assert same(load_file(tmp_path / "all.safetensors"), entries_of(NETWORKS["resnet_head"]))
    export_weights(workdir, "0", tmp_path / "back.safetensors", layout=None)
    assert "the head is left out" in capsys.readouterr().err
    with safe_open(tmp_path / "back.safetensors", "np") as file:
        message = file.metadata()
    assert message == {"format": "pt", "layout": "torchvision", "encoder": "resnet18"}
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == entries_of(NETWORKS["resnet"]).keys()


def test_the_same_conversion_is_left_and_another_refused(small, tmp_path, capsys):
    source, workdir = small
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    convert(source, workdir)
    assert "already" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before
    config = default_config.get_config()
    config.image_size = 48
    config.model.encoder, config.model.cnn.widths, config.model.cnn.norm = "cnn", (8, 8), "batch"
    assert "image_size" in refusal(BadUse, convert, source, workdir, config)
    other = write(tmp_path / "other.safetensors", entries_of(NETWORKS["cnn_batch"]))
    assert "converted from" in refusal(BadUse, convert, other, workdir)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "other files" in refusal(BadUse, convert, other, tmp_path / "run")


def test_a_config_that_names_another_encoder_is_refused(small, tmp_path):
    config = default_config.get_config()
    message = refusal(BadUse, convert, small[0], tmp_path / "run", config)
    assert "config.model.encoder is resnet50, that of the file cnn" in message
    config.model.encoder = "cnn"
    assert "(8, 8)" in refusal(BadUse, convert, small[0], tmp_path / "run", config)
    config.model.cnn.widths, config.model.cnn.norm, config.image_size = (8, 8), "batch", 48
    config.init.workdir, config.init.head = "/elsewhere", True
    convert(small[0], tmp_path / "run", config)
    written = read_config(epath.Path(tmp_path / "run"))
    assert written.image_size == 48
    assert (written.init.workdir, written.init.head) == ("", False)  # starts from these weights


@pytest.fixture
def small_files_only():
    """Limits files to 4 KB: writing a larger one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore's
def test_a_failed_import_leaves_no_partial_result(small, tmp_path, small_files_only):
    message = refusal(BadData, convert, small[0], tmp_path / "run")
    assert message.startswith(f"{tmp_path / 'run'} could not be written: ")
    assert "once that is fixed, run the same command again" in message
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_export_leaves_no_partial_file(ending, small, tmp_path, small_files_only):
    if ending == ".pth":
        pytest.importorskip("torch")
    output = tmp_path / f"out{ending}"
    message = refusal(BadData, export_weights, small[1], "last", output, layout=None)
    assert message.startswith(f"{output} could not be written: File too large;")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved", [False, True])
def test_remains_of_a_killed_conversion_are_removed(moved, small, tmp_path, monkeypatch):
    """Killed while saving, and after the checkpoints are moved but before the config is."""
    source, _ = small
    run = tmp_path / "run"
    owner, name = (Path, "replace") if moved else (Checkpoints, "close")
    original = getattr(owner, name)

    def crash(*arguments):
        original(*arguments)
        if not moved or arguments[0].name == "checkpoints":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        # A killed process removes nothing.
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            convert(source, run)
    left = {"checkpoints"} if moved else set()
    assert {path.name for path in run.iterdir()} == {".training", ".unfinished", *left}
    convert(source, run)
    assert {path.name for path in run.iterdir()} == {".training", "checkpoints", "config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_one_conversion_at_a_time(small, tmp_path):
    source, _ = small
    with locked(tmp_path / "run", TRAINING, "busy"):
        message = refusal(BadUse, convert, source, tmp_path / "run")
    assert message.startswith(
        f"{tmp_path / 'run'}: another process is training in it, or converting"
    )


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("out.bin", None, "a name in .pth"),
        ("none/out.pth", None, "no such folder"),
        ("there.safetensors", None, "exists"),
    ],
)
def test_an_invalid_output_is_refused(name, layout, message, small, tmp_path):
    (tmp_path / "there.safetensors").write_text("mine")
    assert message in refusal(
        BadUse, export_weights, small[1], "last", tmp_path / name, layout=layout
    )
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize(("objective", "norm"), [("vicreg", "none"), ("nt_xent", "batch")])
def test_a_head_without_published_names_is_left_out(objective, norm, tmp_path, capsys):
    config = get_config()
    config.objective, config.model.head.norm, config.vicreg.width = objective, norm, 8
    write_config(config, epath.Path(tmp_path))
    head = make_objective(config).head(plain(config.model.head), np.float32)
    encoder = entries_of(replace(SMALL, head=None))
    state = to_variables(without_counters(encoder), replace(SMALL, head=None))
    for kind, tree in head.init(jax.random.key(0), np.zeros((2, 8)), train=False).items():
        state[kind]["head"] = tree
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, jax.tree.map(jax.numpy.asarray, state), {"channels": list("abc")})
    output = tmp_path / "out.safetensors"
    message = refusal(BadUse, export_weights, tmp_path, "last", output, layout="published")
    assert f"(objective {objective}) differs: use --layout=torchvision" in message
    export_weights(tmp_path, "last", output, layout=None)
    assert same(load_file(output), encoder)
    assert "the head is left out\n" in capsys.readouterr().err


def test_an_encoder_without_names_in_pytorch_is_refused(tmp_path):
    config = get_config()
    config.model.encoder = "vit"
    write_config(config, epath.Path(tmp_path))
    output = tmp_path / "out.safetensors"
    assert "one of cnn, resnet18, resnet50, resnet101 was expected" in refusal(
        BadUse, export_weights, tmp_path, "last", output, layout=None
    )


def test_evaluation_and_embedding_name_the_origin_of_weights(
    small, data, tmp_path, capsys, monkeypatch
):
    source, config = small[0], default_config.get_config()
    config.update(image_size=8, dataset="single_cells/all")
    config.model.encoder, config.model.cnn.widths, config.model.cnn.norm = "cnn", (8, 8), "batch"
    convert(source, tmp_path / "run", config)
    capsys.readouterr()
    message = f"weights converted from {source}"
    monkeypatch.setattr(figures, "draw", lambda *args: iter(()))
    monkeypatch.setattr(report, "render_report", lambda *args, **kwargs: "not drawn")
    protocol, options = Protocol(corrections=("none",)), Options(measures=())
    evaluate_run(tmp_path / "run", data_dir=data, protocol=protocol, options=options)
    assert f"note: {message}" in capsys.readouterr().err
    scores = json.loads((tmp_path / "run" / "eval" / "0" / "metrics.json").read_text())
    assert scores["run"]["trained_on"] == message
    embed_run(tmp_path / "run", out=tmp_path / "out", data_dir=data)
    assert f"note: {message}" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "embedding.json").read_text())
    assert record["settings"]["trained_on"] == message


def test_other_channels_than_those_of_the_weights_are_refused(tmp_path, data):
    source = write(tmp_path / "five.safetensors", entries_of(NETWORKS["cnn"]))
    config = default_config.get_config()
    config.model.encoder, config.dataset = "cnn", "single_cells/all"
    workdir = convert(source, tmp_path / "run", config)
    message = refusal(BadUse, embed_run, workdir, out=tmp_path / "out", data_dir=data)
    assert "for images of 5 channels" in message


def test_a_converted_work_directory_is_not_trained_in(small, data):
    source, workdir = small
    message = refusal(BadUse, open_run, workdir, get_config())
    assert "--config.init.workdir" in message
    assert str(source) in message
    assert not open_run(data, get_config()).resumes  # which holds none


def test_the_weights_of_a_run_are_written(tmp_path):
    config = get_config()
    config.model.head.norm = "none"
    write_config(config, epath.Path(tmp_path))
    variables = to_variables(without_counters(entries_of(SMALL)), SMALL)
    state = {"step": np.int32(7), **variables, "opt_state": np.zeros(3)}
    progress = {"dataset": "d", "channels": ["dna", "tubulin", "actin"]}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, jax.tree.map(jax.numpy.asarray, state), progress, validation_loss=1.0)
    export_weights(tmp_path, "best", tmp_path / "out.safetensors", layout="published")
    assert same(load_file(tmp_path / "out.safetensors"), entries_of(SMALL))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "one of --input and --output"),
        (("--input=a.pth", "--workdir=w", "--layout=published"), "--layout has no effect"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    failed = subprocess.run(
        [sys.executable, "-m", "cellclr_jax.convert", *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
