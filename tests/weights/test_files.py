"""Files of weights are read without running what they hold; what is none is told in one line."""

import json
import os
import pickle
import struct
import sys

import numpy as np
import pytest
from support.weight_samples import ENDINGS, SMALL, convert, entries_of, refusal, same, write

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.weights import files
from cellclr_jax.weights.import_export import export_weights


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file and the work directory that it became."""
    folder = tmp_path_factory.mktemp("small")
    source = write(folder / "small.safetensors", entries_of(SMALL))
    return source, convert(source, folder / "run")


def test_wrapped_entries_and_other_floats_are_taken(tmp_path, capsys):
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


def test_floats_of_safetensors_are_read_as_those_of_pytorch(tmp_path):
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
    told = refusal(BadData, convert, source, tmp_path / "run")
    assert told.startswith(f"{source}: ")
    assert told.endswith("not finite: l1.bias")
    assert not (tmp_path / "run").exists()


def test_a_negative_variance_is_named(tmp_path):
    entries = dict(entries_of(SMALL))
    entries["features.1.running_var"] = -entries["features.1.running_var"]
    told = refusal(BadData, convert, write(tmp_path / "a.safetensors", entries), tmp_path / "run")
    assert told.endswith("negative: features.1.running_var")


def test_few_bytes_that_are_many_entries_are_told(tmp_path):
    torch = pytest.importorskip("torch")
    shared = torch.zeros(2**20, dtype=torch.float16)
    torch.save({str(number): shared for number in range(100)}, tmp_path / "bomb.pth")
    told = refusal(BadData, files.read_entries, tmp_path / "bomb.pth")
    assert "its 100 entries share 2,097,152 bytes, and would be 419,430,400" in told


def test_a_name_of_countless_prefixes_is_told(tmp_path):
    entries = {"module." * 10**5 + "a": np.zeros(1, np.float32)}
    told = refusal(BadData, convert, write(tmp_path / "a.safetensors", entries), tmp_path / "run")
    assert "wrapped in more than 8 modules: module.module." in told


def test_a_folder_is_no_file(tmp_path):
    assert refusal(BadUse, files.read_entries, tmp_path).endswith("no file")
    assert refusal(BadUse, files.read_entries, tmp_path / "a").endswith("no such file")


def test_what_is_no_tensor_is_named(tmp_path):
    source = write(tmp_path / "odd.pth", {**entries_of(SMALL), "epoch": 3, "name": "x"})
    assert "no plain tensors: epoch (int), name (str)" in refusal(
        BadData, convert, source, tmp_path / "run"
    )
    several = write(tmp_path / "several.pth", {"model": {}, "state_dict": {}})
    assert "several state dicts" in refusal(BadData, files.read_entries, several)


def nested_in_itself():
    wrapper = {}
    wrapper["model"] = {"state_dict": wrapper}
    return wrapper


def test_what_wraps_itself_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(nested_in_itself(), tmp_path / "round.pth")
    told = refusal(BadData, files.read_entries, tmp_path / "round.pth")
    assert "wrapped too deep" in told


ODD_TENSORS = {
    "vast": (lambda torch: torch.zeros(1).expand(2**20, 2**20), "4,398,046,511,104 bytes, of "),
    "meta": (lambda torch: torch.empty(2**50, device="meta"), "without numbers"),
    "negative": (
        lambda torch: torch.zeros(3, dtype=torch.complex64).conj().imag,
        "a view of the negative",
    ),
    "nested": (lambda torch: torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)]), "nested"),
    "sparse": (lambda torch: torch.eye(3).to_sparse(), "sparse_coo"),
    "complex": (lambda torch: torch.zeros(3, dtype=torch.complex64), "complex64"),
    "bits": (lambda torch: torch.zeros(3, dtype=torch.uint8).view(torch.bits8), "bits8"),
    "axes": (lambda torch: torch.zeros([1] * 70), "of 70 axes"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_not_plain_are_named(kind, tmp_path):
    make, told = ODD_TENSORS[kind]
    odd = make(pytest.importorskip("torch"))
    source = write(tmp_path / "odd.pth", {**entries_of(SMALL), "l1.bias": odd})
    assert f"no plain tensors: l1.bias ({told}" in refusal(
        BadData, convert, source, tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_pickle_that_would_run_does_not(form, wrapped, tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    evil = {"state_dict": {"conv1.weight": Evil(marker)}} if wrapped else Evil(marker)
    source = tmp_path / "evil.pth"
    if form == "bare":
        source.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, source, _use_new_zipfile_serialization=form == "zip")
    told = refusal(BadData, convert, source, tmp_path / "run")
    assert "model.state_dict()" in told
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # it would have


def lying(header):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(16)


HOSTILE = {
    "empty.pth": (b"", "is empty"),
    "page.pth": (b"\n<!DOCTYPE html><html>", "a web page"),
    "marked.pth": (b"\xef\xbb\xbf\n<html>", "a web page"),
    "wide.pth": ("\ufeff<html>".encode("utf-16-le"), "a web page"),
    "page.safetensors": (b"\xef\xbb\xbf<!DOCTYPE html><html>", "a web page"),
    "axes.safetensors": (
        lying({"a": {"dtype": "F32", "shape": [1] * 80 + [4], "data_offsets": [0, 16]}}),
        "has a shape that no array has",
    ),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "text.pth": (b"these are no weights", "neither a zip archive nor a pickle"),
    "empty.safetensors": (b"", "is empty"),
    "short.safetensors": (b"\x08\x00", "no safetensors file"),
    "huge.safetensors": (struct.pack("<Q", 2**60) + b"{}", "no safetensors file"),
    "words.safetensors": (lying(b"no json at all"), "no safetensors file"),
    "beyond.safetensors": (
        lying({"a": {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}}),
        "no safetensors file",
    ),
    "shape.safetensors": (
        lying({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}),
        "no safetensors file",
    ),
    "type.safetensors": (
        lying({"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}),
        "of the type F8_E4M3",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_file_of_weights_is_told(name, tmp_path):
    content, told = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    assert told in refusal(BadData, convert, tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_header_as_long_as_a_web_page_begins_is_read(tmp_path):
    source = write(tmp_path / "given.safetensors", entries_of(SMALL))
    content = source.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    (wanted,) = struct.unpack("<Q", b" <" + bytes(6))
    header = content[8 : 8 + length].ljust(wanted)
    source.write_bytes(b" <" + bytes(6) + header + content[8 + length :])
    assert same(files.read_entries(source), entries_of(SMALL))


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_cut_off_is_told(ending, kept, tmp_path):
    source = write(tmp_path / f"cut{ending}", entries_of(SMALL))
    content = source.read_bytes()
    source.write_bytes(content[: int(kept * len(content))])
    assert "cut off" in refusal(BadData, convert, source, tmp_path / "run")


def test_a_pickle_of_something_else_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "junk.pth").write_bytes(b"\x80\x02" + bytes(range(200)))
    assert "was expected" in refusal(BadData, convert, tmp_path / "junk.pth", tmp_path / "run")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refusal(BadData, convert, tmp_path / "list.pth", tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_whole_models_are_not_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    torch.save(model, tmp_path / "model.pth")
    torch.jit.script(model).save(tmp_path / "script.pth")
    for name, told in (("model.pth", "torch.nn.modules.linear.Linear"), ("script.pth", "never")):
        assert told in refusal(BadData, convert, tmp_path / name, tmp_path / "run")


def test_a_library_that_is_missing_is_told(tmp_path, small, monkeypatch):
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04")
    for name in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for source, instead in ((tmp_path / "zip.pth", ".safetensors file"), (small[0], ".pth file")):
        told = refusal(BadUse, convert, source, tmp_path / "run")
        assert "pip install 'cellclr_jax[convert]'" in told
        assert instead in told
    for ending in ENDINGS:
        told = refusal(
            BadUse, export_weights, small[1], "last", tmp_path / f"o{ending}", layout=None
        )
        assert "pip install" in told
