"""Weights files of a few bytes that ask for much memory or time: one sentence, before anything is copied."""

import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from whatwhere import create_model
from whatwhere.base.limits import TENSOR_NAME_LETTERS, WEIGHTS_ENTRIES, WEIGHTS_NETWORKS
from whatwhere.networks import convert_weights, describe_weights
from whatwhere.networks.weights.files import read_state_dict

ONE = torch.zeros(1)


def packed(path):
    stored = io.BytesIO()
    torch.save({"w": torch.zeros(100_000)}, stored)
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in archive.infolist():
            smaller.writestr(entry.filename, archive.read(entry.filename))


FILES = {
    "expanded": lambda path: torch.save({"conv1.weight": ONE.expand(50_000, 50_000)}, path),
    "expanded in part": lambda path: torch.save({"a": {"w": ONE, "v": torch.zeros(9, 1).expand(9, 2)}}, path),
    "shared": lambda path: torch.save(dict.fromkeys(map(str, range(1_000)), torch.zeros(2**16)), path),
    "packed": packed,
    "tensors": lambda path: torch.save(dict.fromkeys(map(str, range(WEIGHTS_ENTRIES + 1)), ONE), path),
    "entries": lambda path: torch.save({"w": ONE, "more": dict.fromkeys(range(WEIGHTS_ENTRIES), 0)}, path),
    "dots": lambda path: torch.save({"a." * 5_000 + "w": ONE}, path),
    "digits": lambda path: torch.save({f"layer{'9' * TENSOR_NAME_LETTERS}.0.conv1.weight": ONE}, path),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_what_no_network_has_is_refused(write, tmp_path, refused):
    file = tmp_path / "w.pth"
    write(file)
    with refused():
        describe_weights(file)
    for read in (
        read_state_dict,
        lambda path: convert_weights(path, tmp_path / "out.safetensors"),
        lambda path: create_model("resnet18", pretrained=path),
    ):
        with pytest.raises(ValueError, match=r"^'.*w\.pth' (holds|is packed)"):
            read(file)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_tensors_of_a_safetensors_file_are_counted_before_they_are_read(tmp_path, refused):
    save_file({str(i): torch.zeros(1) for i in range(WEIGHTS_ENTRIES + 1)}, tmp_path / "w.safetensors")
    with refused():
        describe_weights(tmp_path / "w.safetensors")


def test_thousands_of_different_networks(tmp_path, refused):
    names = [f"p{i}.layer1.0.conv{j}.weight" for i in range(WEIGHTS_NETWORKS + 200) for j in (1, 2)]
    torch.save({name: torch.full((1,), float(i)) for i, name in enumerate(names)}, tmp_path / "w.pth")
    with refused():
        describe_weights(tmp_path / "w.pth")


def test_views_and_shared_tensors_are_read(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a": whole, "b": whole, "c": whole[1:], "d": whole.T, "e": torch.zeros(0, 3)}
    torch.save(state, tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert read.keys() == state.keys()
