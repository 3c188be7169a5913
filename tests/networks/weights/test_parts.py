"""Networks inside files: in whatever mapping and below whatever module, with what other programs leave beside them."""

import pytest
import timm
import torch
import torchvision

from named_networks import create_network
from whatwhere import create_model
from whatwhere.networks import convert_weights, describe_weights
from whatwhere.networks.weights.files import find_weights, read_file

NAME = "cbam_resnext11_8x8d"


@pytest.fixture(scope="module")
def state():
    return create_model(NAME, num_classes=4, seed=0).state_dict()


@pytest.fixture(scope="module")
def other():
    return create_model(NAME, num_classes=4, seed=1).state_dict()


def below(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


PREFIXES = (
    "model.", "network.", "backbone.", "encoder.", "student.", "ema.", "module.", "_orig_mod.", "net.", "module.model.",
    "_orig_mod.module.", "backbone.0.body.", "a.b.c.d.e.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_modules_around_a_network(prefix, state, tmp_path):
    torch.save(below(prefix, state), tmp_path / "a.pth")
    model = create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth", seed=2)
    assert equal(model.state_dict(), state)
    found = describe_weights(tmp_path / "a.pth")
    assert (found.prefix, found.network.name, found.around, found.fit.groups) == (prefix, NAME, {}, [])


ENTRIES = (
    "model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "params_ema", "ema_state_dict",
    "best", "checkpoint.model", "trainer.model.weights",
)  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_any_entries_around_a_network(entry, state, tmp_path):
    content = below("module.", state)
    for name in reversed(entry.split(".")):
        content = {name: content, "epoch": 3}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    torch.save({**content, "optimizer": optimizer, "history": {"loss": torch.zeros(9)}}, tmp_path / "a.pth")
    assert equal(create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict(), state)
    found = describe_weights(tmp_path / "a.pth")
    assert (found.wrapper, found.prefix) == (entry, "module.")
    inside = {f"{entry.rpartition('.')[0]}.epoch".strip("."): "3"}
    assert (
        found.around.items() >= {**inside, "epoch": "3", "optimizer": "a dict of 2", "history": "a dict of 1"}.items()
    )


def test_what_stands_beside_a_network_is_left_out_and_said(state, tmp_path, whatwhere):
    beside = {"criterion.weight": torch.ones(4), "head.a.weight": torch.ones(1), "head.b.weight": torch.ones(1)}
    content = {"state_dict": {**below("model.", state), **beside}, "pytorch-lightning_version": "2.5.0"}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(
        UserWarning,
        match=r"^left out of the weights from '.*a\.pth': criterion\.weight \(a tensor of shape \(4,\)\), "
        r"head\.\* \(2 tensors\)$",
    ):
        model = create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")
    assert equal(model.state_dict(), state)
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.left_out == {
        "pytorch-lightning_version": "'2.5.0'",
        "criterion.weight": "a tensor of shape (4,)",
        "head.*": "2 tensors",
    }
    status, out, _ = whatwhere("weights", "show", tmp_path / "a.pth")
    assert status == 0
    assert "left out: head.*" in out


def test_a_part_is_loaded_whole_or_not_at_all(state, tmp_path, refused):
    lacking = {key: value for key, value in state.items() if not key.endswith("bn3.bias")}
    torch.save({**below("model.", lacking), "criterion.weight": torch.ones(4)}, tmp_path / "a.pth")
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    with (
        pytest.warns(UserWarning, match=r"left out of .*: criterion\.weight"),
        refused(),
    ):
        create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")
    # names beside the network's own, in the same module, are no other part
    torch.save(below("model.", {**state, "head.weight": torch.ones(4)}), tmp_path / "a.pth")
    with refused():
        create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")


def floats(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def parameters(state):
    return {key: value for key, value in floats(state).items() if "running" not in key}


@pytest.mark.parametrize(
    ("write", "taken"),
    [
        (lambda a, b: {**below("model.", b), **below("ema.", a)}, "ema."),
        (lambda a, b: {**below("model.", b), **below("model_ema.module.", a)}, "model_ema.module."),
        (lambda a, b: {**b, **below("swa_model.", a)}, "swa_model."),
        (lambda a, b: {"params": b, "params_ema": a}, ""),
        (lambda a, b: {"model": b, "ema": {"decay": 0.9, "shadow": a}}, ""),
        (lambda a, b: {"state_dict": {**below("model.", b), **below("ema.", floats(a))}}, "ema."),
        # an average of the parameters alone is no whole network
        (lambda a, b: {**below("model.", a), **below("ema.", parameters(b))}, "model."),
        # the same tensors twice are one network
        (lambda a, b: {**below("backbone.", a), **below("model.0.", a)}, "backbone."),
        (lambda a, b: {"model": a, "best": {k: v.clone() for k, v in a.items()}}, ""),
    ],
)  # fmt: skip
def test_averaged_weights_come_first(write, taken, state, other):
    found = find_weights(write(state, other), "a.pth")
    assert found.prefix == taken
    assert equal(floats(found.state), floats(state))


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: {**below("student.", a), **below("teacher.", b)},
        lambda a, b: {**below("module.encoder_q.", a), **below("module.encoder_k.", b)},
        lambda a, b: {"student": a, "teacher": below("module.", b)},
        lambda a, b: {"model": a, "best": b},
        lambda a, b: {"model": a, "net": b, "ema": {k: v * 0.5 for k, v in floats(a).items()}},
        lambda a, b: {f"{'a' * 500}\n": a, "b": b},
    ],
)
def test_several_networks_are_never_chosen_from(write, state, other, tmp_path, refused):
    torch.save(write(state, other), tmp_path / "a.pth")
    with refused() as caught:
        create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")
    assert len(str(caught.value)) < 500


def with_thop(state):
    """As thop leaves a network that it has profiled: two numbers in every module."""
    modules = {key.rpartition(".")[0] for key in state} | {"layer1", "layer1.0"}
    names = [f"{module}.{name}" for module in modules for name in ("total_ops", "total_params")]
    return {**state, **dict.fromkeys(["total_ops", "total_params", *names], torch.zeros(1, dtype=torch.float64))}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_thop_leaves_is_ignored_and_said(prefix, state, tmp_path):
    profiled = with_thop(state)
    torch.save(below(prefix, profiled), tmp_path / "a.pth")
    count = (len(profiled) - len(state)) // 2
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.left_out == dict.fromkeys(("total_ops", "total_params"), f"left by thop, {count} tensors")
    assert equal(create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict(), state)


def test_a_tensor_that_is_only_called_so_is_no_leftover(state, tmp_path, refused):
    torch.save({**state, "layer1.0.total_ops": torch.zeros(3)}, tmp_path / "a.pth")
    with refused():
        create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")


def test_what_torch_s_average_counts_is_said(state):
    found = find_weights({"n_averaged": torch.tensor(5), **below("module.", state)}, "a.pth")
    assert (found.around, found.left_out) == ({"n_averaged": "left by torch's AveragedModel, 1 tensor"}, {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_halved_file_is_loaded_and_its_counters_become_integers(dtype, state, tmp_path):
    state = {key: torch.tensor(48) if key.endswith("num_batches_tracked") else value for key, value in state.items()}
    torch.save({key: value.to(dtype) for key, value in state.items()}, tmp_path / "a.pth")
    loaded = create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict()
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value.to(dtype).to(value.dtype))
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    count = sum(key.endswith("num_batches_tracked") for key in state)
    assert f"{count} counters of batches are {str(dtype)[6:]}; taken as integers" in done.notes
    assert equal(create_model(NAME, num_classes=4, pretrained=tmp_path / "b.safetensors").state_dict(), loaded)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.5])
def test_counters_that_are_none_are_left_out(value, state, tmp_path):
    # float16 ends at 65,504
    torch.save({**state, "bn1.num_batches_tracked": torch.tensor(value, dtype=torch.float16)}, tmp_path / "a.pth")
    assert equal(create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict(), state)
    notes = describe_weights(tmp_path / "a.pth").notes
    assert notes[-1] == "1 of them are no whole number, or infinite; left out, no output depends on them"


def test_model_half_s_own_state_dict(state, tmp_path):
    model = create_model(NAME, num_classes=4, seed=0).half()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict()
    assert all(torch.equal(value.to(loaded[key].dtype), loaded[key]) for key, value in model.state_dict().items())


def test_mappings_that_hold_themselves_and_names_of_any_length(state, tmp_path, refused):
    content = {"model": state, ".".join("a" * 5000): torch.zeros(1), 3: {"model": state}, "b": {}}
    content["self"] = content["b"]["self"] = content
    torch.save(content, tmp_path / "a.pth")
    assert equal(read_file(tmp_path / "a.pth").state, state)
    with refused():
        find_weights({"epoch": 3, "self": {"epoch": 4}}, "a.pth")


def test_tensors_that_are_no_plain_ones_are_refused(state, refused):
    sparse = {**state, "fc.weight": torch.eye(3).to_sparse()}
    for content in (sparse, {"model": state, "other": sparse}):
        with refused():
            find_weights(content, "a.pth")


@pytest.mark.parametrize("prefix", ["model.", "module.net.", ""])
def test_networks_of_others_are_found_by_their_own_tensors(prefix, tmp_path):
    build = torchvision.models.mobilenet_v3_small
    theirs, larger = (
        build(num_classes=4).state_dict(),
        torchvision.models.mobilenet_v3_large(num_classes=4).state_dict(),
    )
    torch.save(
        {"teacher": larger, "student": {**below(prefix, theirs), "total_ops": torch.zeros(1)}}, tmp_path / "a.pth"
    )
    name, options = "torchvision:mobilenet_v3_small", {"num_classes": 4, "pretrained": str(tmp_path / "a.pth")}
    assert equal(create_network(name, **options).state_dict(), theirs)
    # with attention, of which some weights have some
    attended = create_network(name, attention="se", at="features.1", seed=0, **options)
    torch.save({"state_dict": {**below("model.", attended.state_dict()), "loss.a": torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"left out of .*: loss\.a"):
        again = create_network(name, attention="se", at="features.1", seed=1, **options)
    assert equal(again.state_dict(), attended.state_dict())


def test_two_networks_of_others_that_fit_alike_are_not_chosen_from(tmp_path, refused):
    first, second = (torchvision.models.squeezenet1_1(num_classes=4).state_dict() for _ in range(2))
    torch.save({**below("a.", first), **below("b.", second)}, tmp_path / "a.pth")
    with refused():
        create_network("torchvision:squeezenet1_1", num_classes=4, pretrained=str(tmp_path / "a.pth"))


def test_a_file_of_a_smaller_network_of_others_is_compared_below_its_modules(tmp_path, refused):
    torch.save(below("module.", timm.create_model("resnet10t").state_dict()), tmp_path / "a.pth")
    with refused():
        create_network("timm:resnet26t", pretrained=str(tmp_path / "a.pth"))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_around_parts_of_a_network(wrapper, state, tmp_path, refused):
    wrapped = {key.replace("layer1.0.", f"layer1.0.{wrapper}."): value for key, value in state.items()}
    torch.save(below("module.", wrapped), tmp_path / "a.pth")
    assert equal(create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth").state_dict(), state)
    # names that would then be one are left as they are
    torch.save({**state, **wrapped}, tmp_path / "a.pth")
    with refused():
        create_model(NAME, num_classes=4, pretrained=tmp_path / "a.pth")


def test_an_average_of_another_network_is_none_of_this_one(state, refused):
    larger = create_model("cbam_resnet50", num_classes=4).state_dict()
    with refused():
        find_weights({"model": state, "ema": larger}, "a.pth")


def test_a_file_that_may_not_be_read_is_not_called_damaged(state, tmp_path, monkeypatch, refused):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    torch.save(state, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", refuse)
    with refused():
        read_file(tmp_path / "a.pth")


def test_weights_that_timm_s_registration_is_given_are_found_alike(state):
    import whatwhere.timm  # noqa: F401

    config = {"state_dict": {"state_dict": {**below("model.", state), "criterion.weight": torch.ones(4)}}}
    with pytest.warns(UserWarning, match=r"left out of the weights from 'pretrained_cfg': criterion\.weight"):
        model = timm.create_model(NAME, num_classes=4, pretrained=True, pretrained_cfg=config)
    assert equal(model.state_dict(), state)
