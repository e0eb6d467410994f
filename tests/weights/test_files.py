"""Files of weights are read without running code in them; unreadable ones give one clear line."""

import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
from support.weight_samples import ENDINGS, SMALL, convert, entries_of, refusal, same, write

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.weights import files
from cellclr_jax.weights.import_export import export_weights


def test_wrapped_entries_and_other_floats_are_read(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    entries = entries_of(SMALL)
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    tensors = {f"module.{n}": torch.from_numpy(np.array(a)) for n, a in entries.items()}
    floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    for i, name in enumerate(floats):
        tensors[name] = tensors[name].to(kinds[i % len(kinds)])
    tensors["module.fc.weight"] = torch.zeros(3, 8)
    want = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    for wrapper in ("state_dict", "model", "model_state_dict"):
        torch.save({wrapper: tensors, "epoch": 3}, tmp_path / f"{wrapper}.pth")
        found = files.read_entries(tmp_path / f"{wrapper}.pth")
        assert found.keys() == want.keys()
        assert all(
            found[n].dtype == np.float32 and np.array_equal(found[n], want[n]) for n in floats
        )
    convert(tmp_path / "model.pth", tmp_path / "run")
    assert "left out: fc.weight" in capsys.readouterr().err


def test_floats_of_both_formats_are_read_equally(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    kinds = {"half": torch.float16, "brain": torch.bfloat16, "double": torch.float64}
    tensors = {n: torch.linspace(-3, 70000, 24).reshape(2, 12).to(k) for n, k in kinds.items()}
    tensors["count"] = torch.arange(5)
    safetensors_torch.save_file(tensors, tmp_path / "kinds.safetensors")
    torch.save(tensors, tmp_path / "kinds.pth")
    one, other = (files.read_entries(tmp_path / f"kinds{e}") for e in ENDINGS)
    for name in kinds:
        np.testing.assert_array_equal(one[name], tensors[name].float().numpy())
    assert same(one, other)
    assert one["count"].dtype == np.int64


def test_a_number_too_large_for_float32_is_named(tmp_path):
    entries = {n: a.astype(np.float64) for n, a in entries_of(SMALL).items() if "num" not in n}
    entries["l1.bias"][2] = 1e300
    source = write(tmp_path / "large.safetensors", entries)
    message = refusal(BadData, convert, source, tmp_path / "run")
    assert message.startswith(f"{source}: ")
    assert message.endswith("not finite: l1.bias")
    assert not (tmp_path / "run").exists()


def test_a_file_that_needs_too_much_memory_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    shared = torch.zeros(2**20, dtype=torch.float16)
    bombs = {
        "shared": {str(number): shared for number in range(100)},
        "vast": {"a": torch.zeros(1).expand(2**20, 2**20)},
        "meta": {"a": torch.empty(2**50, device="meta")},
    }
    for name, content in bombs.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert "in memory" in refusal(BadData, files.read_entries, tmp_path / f"{name}.pth")
    torch.save({"a": torch.zeros(10**7)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "in memory" in refusal(BadData, files.read_entries, tmp_path / "packed.pth")


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    assert refusal(BadUse, files.read_entries, tmp_path).endswith("no file")
    assert refusal(BadUse, files.read_entries, tmp_path / "a").endswith("no such file")


def test_objects_that_are_no_tensors_are_named(tmp_path):
    source = write(tmp_path / "odd.pth", {**entries_of(SMALL), "epoch": 3, "name": "x"})
    assert "no plain tensors: epoch (int), name (str)" in refusal(
        BadData, convert, source, tmp_path / "run"
    )
    several = write(tmp_path / "several.pth", {"model": {}, "state_dict": {}})
    assert "several state dicts" in refusal(BadData, files.read_entries, several)
    wrapper = {}
    wrapper["model"] = {"state_dict": wrapper}
    pytest.importorskip("torch").save(wrapper, tmp_path / "round.pth")
    assert "no plain tensors" in refusal(BadData, files.read_entries, tmp_path / "round.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["nested", "sparse", "complex", "axes"])
def test_tensors_without_a_numpy_type_are_refused(kind, tmp_path):
    torch = pytest.importorskip("torch")
    odd = {
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)]),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.zeros(3, dtype=torch.complex64),
        "axes": lambda: torch.zeros([1] * 70),
    }[kind]()
    source = write(tmp_path / "odd.pth", {**entries_of(SMALL), "l1.bias": odd})
    refusal(BadData, convert, source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_does_not_run(form, wrapped, tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    evil = {"state_dict": {"conv1.weight": Evil(marker)}} if wrapped else Evil(marker)
    source = tmp_path / "evil.pth"
    if form == "bare":
        source.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, source, _use_new_zipfile_serialization=form == "zip")
    assert "model.state_dict()" in refusal(BadData, convert, source, tmp_path / "run")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # the code works


def framed(header, content=bytes(16)):
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content


def entry(kind, shape):
    return framed({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, 16]}})


FOREIGN = {
    "empty.safetensors": b"",
    "page.safetensors": b"<!DOCTYPE html><html>",
    "huge.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "beyond.safetensors": entry("F32", [400]),
    "shape.safetensors": entry("F32", [2**40, 2**40]),
    "axes.safetensors": entry("F32", [1] * 80 + [4]),
    "type.safetensors": entry("F8_E4M3", [16]),
    "empty.pth": b"",
    "page.pth": b"\n<!DOCTYPE html><html>",
    "text.pth": b"these are no weights",
    "junk.pth": b"\x80\x02" + bytes(range(200)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_file_is_refused_in_one_line(name, tmp_path):
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    (tmp_path / name).write_bytes(FOREIGN[name])
    message = refusal(BadData, convert, tmp_path / name, tmp_path / "run")
    assert message.startswith(f"{tmp_path / name} ")
    assert "expected" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_cut_off_is_refused(ending, kept, tmp_path):
    source = write(tmp_path / f"cut{ending}", entries_of(SMALL))
    content = source.read_bytes()
    source.write_bytes(content[: int(kept * len(content))])
    assert "cut off" in refusal(BadData, convert, source, tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_whole_models_are_not_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    torch.save(model, tmp_path / "model.pth")
    torch.jit.script(model).save(tmp_path / "script.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, words in (
        ("model.pth", "torch.nn.modules.linear.Linear"),
        ("script.pth", "never"),
        ("list.pth", "holds a list"),
    ):
        assert words in refusal(BadData, convert, tmp_path / name, tmp_path / "run")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    source = write(tmp_path / "small.safetensors", entries_of(SMALL))
    workdir = convert(source, tmp_path / "made")
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04")
    for name in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for given, instead in ((tmp_path / "zip.pth", ".safetensors file"), (source, ".pth file")):
        message = refusal(BadUse, convert, given, tmp_path / "run")
        assert "pip install 'cellclr_jax[convert]'" in message
        assert instead in message
    for ending in ENDINGS:
        message = refusal(
            BadUse, export_weights, workdir, "last", tmp_path / f"o{ending}", layout=None
        )
        assert "pip install" in message
