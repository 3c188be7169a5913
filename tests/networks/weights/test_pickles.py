"""Checkpoints of a few bytes whose pickle makes large objects: refused before they are made; real ones are read."""

import argparse
import collections
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from whatwhere.base.errors import UserError
from whatwhere.networks.weights.files import read_file
from whatwhere.networks.weights.pickles import check_pickles

HUGE = b"\x8a\x05" + (500_000_000).to_bytes(5, "little")


def named(value):
    """Return the pickle of {"w": value}."""
    return b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s."


def calls(function, shared, call):
    """Return the pickle of a list of what 20,000 calls make of one value."""
    return b"\x80\x02](c" + function + b"q\x01" + shared + b"q\x00" + call * 20_000 + b"e."


def copies(function, item=b"K\x01K\x02\x86"):
    return calls(function, b"](" + item * 20_000 + b"e", b"h\x01h\x00\x85R")


def states(function):
    pairs = b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(20_000))
    return calls(function, b"}(" + pairs + b"u", b"h\x01)Rh\x00b")


def rebuilt(function):
    arguments = b"(c" + function + b"ctorch\nTensor\n" + HUGE + b"\x85Nt"
    return named(b"ctorch._tensor\n_rebuild_from_type_v2\n" + arguments + b"R")


PICKLES = {
    "tensor": named(b"ctorch\nTensor\n" + HUGE + b"\x85R"),
    "new tensor": named(b"ctorch\nFloatTensor\n" + HUGE + b"\x85\x81"),
    "storage": named(b"ctorch.storage\nUntypedStorage\n" + HUGE + b"\x85R"),
    "bytearray": named(b"c__builtin__\nbytearray\n" + HUGE + b"\x85R"),
    "tensor by another call": rebuilt(b"torch\nTensor\n"),
    "a call by a call": rebuilt(b"torch._tensor\n_rebuild_from_type_v2\n"),
    "dicts": copies(b"collections\nOrderedDict\n"),
    "sets": copies(b"builtins\nset\n"),
    "sizes": copies(b"torch\nSize\n", item=b"K\x01"),
    "states": states(b"collections\nOrderedDict\n"),
    "namespaces": states(b"argparse\nNamespace\n"),
    "texts": calls(
        b"_codecs\nencode\n",
        b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"X\x06\x00\x00\x00latin1\x86",
        b"h\x01h\x00R",
    ),
    "slow text": named(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R"),
}


def zipped(content, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in {"data.pkl": content, "version": "3\n", "byteorder": "little"}.items():
            archive.writestr(f"a/{name}", record)


@pytest.mark.parametrize("write", [zipped, lambda content, path: path.write_bytes(content)], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_what_a_file_would_make_is_refused_before_it_is_made(content, write, tmp_path):
    write(content, tmp_path / "w.pth")
    with pytest.raises((UserError, pickle.UnpicklingError), match=r"^GLOBAL|than its size justifies"):
        check_pickles(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"^cannot read weights .*it holds code to run|holds more values"):
        read_file(tmp_path / "w.pth")


def test_a_storage_that_a_legacy_file_names_and_does_not_hold(tmp_path, refused):
    """torch.load makes it, and leaves its memory as it was."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + HUGE + b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + HUGE + b"\x85K\x01\x85\x89"
    content = named(tensor + b"ccollections\nOrderedDict\n)RtR")
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    around = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system, [])]
    (tmp_path / "w.pth").write_bytes(b"".join([*around[:3], content, around[3]]))
    assert torch.load(tmp_path / "w.pth", weights_only=True)["w"].numel() == 500_000_000
    with refused():
        read_file(tmp_path / "w.pth")


def plain_values():
    return {
        "w": torch.zeros(3),
        "namespace": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "bytes": "é".encode() * 50,
        "counter": collections.Counter("abca"),
        "ordered": collections.OrderedDict(a=1),
        "set": {1, 2},
        "complex": 1j,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "history": [0.5] * 20_000,
        "nested": [[(i, [i])] for i in range(2_000)],
        "one list": [[1] * 100] * 100,
        "generator": torch.get_rng_state(),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "meta": torch.empty(10**9, device="meta"),
    }


def with_an_optimizer():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {"state_dict": model.state_dict(), "parameters": dict(model.named_parameters()), **states}


def of_many_kinds():
    dtypes = [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
    tensors = {str(dtype): torch.zeros(3).to(dtype) for dtype in dtypes}
    parameter = nn.Parameter(torch.zeros(3))
    parameter.told = "a parameter with state"
    return {**tensors, "parameter": parameter, "view": torch.zeros(4, 4)[1:, ::2], "buffer": nn.Buffer(torch.zeros(2))}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", [plain_values, with_an_optimizer, of_many_kinds])
def test_what_torch_saves_and_loads_is_read(content, legacy, tmp_path):
    file = tmp_path / "w.pth"
    warnings.simplefilter("ignore")  # of torch, about sparse and quantized tensors
    torch.save(content(), file, _use_new_zipfile_serialization=not legacy)
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.load(file, weights_only=True)
    check_pickles(file)


def test_a_state_dict_that_python_2_wrote_is_read(tmp_path):
    """Its OrderedDict is made of a list of pairs."""
    pairs = b"".join(b"]q\x01(X\x01\x00\x00\x00" + bytes([97 + i]) + b"K\x01e" for i in range(20))
    zipped(b"\x80\x02ccollections\nOrderedDict\n](" + pairs + b"e\x85R.", tmp_path / "w.pth")
    check_pickles(tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth", weights_only=True) == {chr(97 + i): 1 for i in range(20)}
