"""Weights of other people's networks, made by their code: outputs equal here, tensors equal after the way back."""

import functools

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.layers import SEModule
from timm.layers.cbam import CbamModule
from torch import nn

from named_networks import create_network
from published import FullCBAM, OfficialResNet, trained
from whatwhere import UserError, create_model
from whatwhere.attention import ATTENTION
from whatwhere.models.resnet import RESNETS
from whatwhere.networks import convert_weights
from whatwhere.networks.convert import names_of
from whatwhere.networks.weights.layouts import LAYOUTS
from whatwhere.networks.weights.translate import from_ours, options_of, to_ours

timm_model = functools.partial(timm.create_model, num_classes=10)


def with_cbam(name, **options):
    attention = functools.partial(CbamModule, **options) if options else "cbam"
    return timm_model(name, block_args={"attn_layer": attention})


FULL = {"form": "ultralytics"}
COPIED = {"mlp_bias": False, "maps": ["mean", "max"], "norm": None, "spatial_bias": False}
THEIRS = {
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=10), "torchvision", "resnet18", {}),
    "timm": (lambda: timm_model("resnet50"), "torchvision", "resnet50", {}),
    "timm's ResNeXt": (lambda: timm_model("resnext50_32x4d"), "torchvision", "resnext50_32x4d", {}),
    "timm's SE": (
        lambda: timm_model("seresnet18"),
        "timm",
        "se_resnet18",
        {"attention_kwargs": {"form": "timm"}},
    ),
    "timm's SE, bottlenecks": (lambda: timm_model("seresnet50"), "timm", "se_resnet50", {}),
    "timm's SE-ResNeXt": (lambda: timm_model("seresnext50_32x4d"), "timm", "se_resnext50_32x4d", {}),
    "timm's SE, legacy": (
        lambda: timm_model("legacy_seresnet50"),
        "timm-legacy",
        "se_resnet50",
        {"ceil_pool": True, "stride_in_1x1": True},
    ),
    "timm's SE-ResNeXt, legacy": (
        lambda: timm_model("legacy_seresnext50_32x4d"),
        "timm-legacy",
        "se_resnext50_32x4d",
        {"ceil_pool": True},
    ),
    "timm's CBAM": (
        lambda: with_cbam("resnet18"),
        "timm",
        "cbam_resnet18",
        {"attention_kwargs": {"form": "timm"}},
    ),
    "timm's CBAM, bottlenecks": (
        lambda: with_cbam("resnext50_32x4d"),
        "timm",
        "cbam_resnext50_32x4d",
        {"attention_kwargs": {"form": "timm"}},
    ),
    "timm's CBAM with options": (
        lambda: with_cbam("resnet18", rd_ratio=1 / 8, spatial_kernel_size=3, mlp_bias=True),
        "timm",
        "cbam_resnet18",
        {"attention_kwargs": {"form": "timm", "reduction": 8, "mlp_bias": True, "kernel_size": 3}},
    ),
    "the authors' CBAM": (OfficialResNet, "official", "cbam_resnet18", {}),
    "the authors' CBAM, bottlenecks": (
        lambda: OfficialResNet((3, 4, 6, 3), 4),
        "official",
        "cbam_resnet50",
        {},
    ),
    "the authors' BAM": (
        lambda: OfficialResNet(cbam=False, bam=True),
        "official",
        "bam_resnet18",
        {"attention_kwargs": {"combine": "multiply"}},
    ),
    "copied code": (lambda: OfficialResNet(copied="layers"), "ca-sa", "cbam_resnet18", {"attention_kwargs": COPIED}),
    "copied code, bottlenecks": (
        lambda: OfficialResNet((3, 4, 6, 3), 4, copied="layers"),
        "ca-sa",
        "cbam_resnet50",
        {"attention_kwargs": COPIED},
    ),
    "copied code with a Sequential": (
        lambda: OfficialResNet(copied="sequential"),
        "ca-sa-sequential",
        "cbam_resnet18",
        {"attention_kwargs": COPIED},
    ),
    "Ultralytics' CBAM": (
        lambda: OfficialResNet(copied="ultralytics"),
        "ultralytics",
        "cbam_resnet18",
        {"attention_kwargs": FULL},
    ),
    "Ultralytics' CBAM, bottlenecks": (
        lambda: OfficialResNet((3, 4, 6, 3), 4, copied="ultralytics"),
        "ultralytics",
        "cbam_resnet50",
        {"attention_kwargs": FULL},
    ),
    "the authors' plain network": (lambda: OfficialResNet(cbam=False), "torchvision", "resnet18", {}),
}


def images():
    return torch.randn(2, 3, 48, 48, dtype=torch.float64)


def assert_same_outputs(ours, theirs):
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(x), theirs.double().eval()(x), rtol=1e-9, atol=1e-9)


def loaded_strictly(file, name, **options):
    """Our network with the tensors of `file` and nothing else."""
    with torch.device("meta"):
        model = create_model(name, num_classes=10, **options)
    model.load_state_dict(safetensors.torch.load_file(file), strict=True, assign=True)
    return model


@pytest.mark.parametrize("case", THEIRS)
def test_outputs_are_theirs_and_the_way_back_ends_where_it_began(case, tmp_path):
    build, layout, name, options = THEIRS[case]
    theirs = trained(build())
    state = theirs.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert (done.layout, done.to, done.network.name) == (layout, "whatwhere", name)
    assert done.network.arguments() == {"num_classes": 10, **options}
    assert done.left_out == {"epoch": "3"}

    ours = loaded_strictly(tmp_path / "b.safetensors", name, **options)
    assert ours.state_dict().keys() == safetensors.torch.load_file(tmp_path / "b.safetensors").keys()
    convert_weights(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to=layout)
    back = safetensors.torch.load_file(tmp_path / "c.safetensors")
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert value.dtype == back[key].dtype
        assert torch.equal(value, back[key]), key
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize(
    "case",
    [
        *("timm's SE", "timm's CBAM", "timm's CBAM with options", "timm's SE, legacy", "the authors' BAM"),
        *("copied code", "copied code with a Sequential", "Ultralytics' CBAM"),
    ],
)
def test_create_model_takes_both_files_without_a_word_about_what_they_need(case, tmp_path):
    build, _, name, options = THEIRS[case]
    theirs = trained(build())
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    expected = loaded_strictly(tmp_path / "b.safetensors", name, **options).state_dict()
    for file in ("a.pth", "b.safetensors"):
        model = create_model(name, num_classes=10, pretrained=tmp_path / file)
        loaded = model.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    assert_same_outputs(model, theirs)


@pytest.mark.parametrize("form", ["official", "timm"])
def test_ours_into_timms_network_and_the_authors(form, tmp_path):
    ours = trained(create_model("cbam_resnet18", num_classes=10, attention_kwargs={"form": form}))
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    into_timm = convert_weights(tmp_path / "ours.pth", tmp_path / "timm.safetensors", to="timm")
    theirs = with_cbam("resnet18", **({"mlp_bias": True} if form == "official" else {})).eval()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "timm.safetensors"), strict=True)
    assert_same_outputs(ours, theirs)
    assert any("mlp_bias=True" in note for note in into_timm.notes) == (form == "official")
    assert any("the order of the spatial gate" in note for note in into_timm.notes)

    convert_weights(tmp_path / "timm.safetensors", tmp_path / "official.safetensors", to="official")
    authors = OfficialResNet()
    authors.load_state_dict(safetensors.torch.load_file(tmp_path / "official.safetensors"), strict=True)
    assert_same_outputs(ours, authors)


@pytest.mark.parametrize("layout", ["ca-sa", "ca-sa-sequential"])
@pytest.mark.parametrize("maps", [["max", "mean"], ["mean", "max"]])
def test_ours_into_copied_code(maps, layout, tmp_path):
    options = {**COPIED, "maps": maps}
    ours = trained(create_model("cbam_resnet18", num_classes=10, attention_kwargs=options))
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    done = convert_weights(
        tmp_path / "ours.pth", tmp_path / "theirs.safetensors", to=layout, attention_kwargs={"maps": maps}
    )
    theirs = OfficialResNet(copied="layers" if layout == "ca-sa" else "sequential")
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "theirs.safetensors"), strict=True)
    assert_same_outputs(ours, theirs)
    assert any("divide the channels by 16" in note for note in done.notes)
    again = convert_weights(tmp_path / "theirs.safetensors", tmp_path / "again.safetensors")
    assert any("names do not show what copied code computes" in note for note in again.notes)
    assert_same_outputs(
        create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "again.safetensors"), theirs
    )


def test_copied_code_with_other_numbers(tmp_path):
    options = {**COPIED, "reduction": 8, "kernel_size": 3}
    ours = trained(create_model("cbam_resnet18", num_classes=10, attention_kwargs=options))
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", to="ca-sa", attention_kwargs=options)
    assert "by 8 in its ChannelAttention and have kernel_size=3 in its SpatialAttention" in done.notes[-1]
    back = create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "b.safetensors")
    assert_same_outputs(back, ours)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": None},  # biases of the MLP and of the convolution
        {"norm": None, "mlp_bias": False},
        {**COPIED, "spatial": False},
        {**COPIED, "maps": ["mean"]},
        {**COPIED, "arrangement": "parallel"},
    ],
)
def test_what_copied_code_does_not_compute(options, tmp_path, refused):
    torch.save(create_model("cbam_resnet18", num_classes=2, attention_kwargs=options).state_dict(), tmp_path / "a.pth")
    with refused():
        convert_weights(
            tmp_path / "a.pth",
            tmp_path / "b.safetensors",
            model="cbam_resnet18",
            to="ca-sa",
            attention_kwargs=options,
        )


def test_attention_outside_the_blocks_is_no_network_s_here(tmp_path, refused):
    module = OfficialResNet(copied="layers").layer1[0]
    outside = {f"{name}.{key}": value for name in ("ca", "sa", "ca1", "sa1") for key, value in
               getattr(module, name[:2]).state_dict().items()}  # fmt: skip
    torch.save({**OfficialResNet(cbam=False).state_dict(), **outside}, tmp_path / "a.pth")
    for attempt in (
        lambda: convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors"),
        lambda: create_model("cbam_resnet18", pretrained=tmp_path / "a.pth"),
    ):
        with refused():
            attempt()


def ultralytics_state(name="cbam"):
    state = trained(OfficialResNet(copied="ultralytics")).state_dict()
    return {key.replace(".cbam.", f".{name}."): value for key, value in state.items()}


@pytest.mark.parametrize("name", ["attention", "attn", "cbam1"])
def test_ultralytics_cbam_by_any_name_in_its_block(name, tmp_path):
    state = ultralytics_state(name)
    torch.save(state, tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.layout == "ultralytics"
    assert done.notes == ["names do not show where a block calls its CBAM; assumed: before the sum"]
    theirs = OfficialResNet(copied="ultralytics")
    theirs.load_state_dict({key.replace(f".{name}.", ".cbam."): value for key, value in state.items()})
    assert_same_outputs(create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "a.pth"), theirs)


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("options", [{}, {"mlp_bias": False}, {"maps": ["max", "mean"]}])
def test_ours_into_networks_with_ultralytics_cbam(options, kernel_size, tmp_path):
    options = {**FULL, **options, "kernel_size": kernel_size}
    ours = trained(create_model("cbam_resnet18", num_classes=10, attention_kwargs=options))
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    done = convert_weights(
        tmp_path / "ours.pth", tmp_path / "theirs.safetensors", to="ultralytics", attention_kwargs=options
    )
    assert f"CBAM(channels, {kernel_size})`" in done.notes[-1]
    theirs = OfficialResNet(copied="ultralytics")
    for module in theirs.modules():
        if isinstance(module, FullCBAM):
            module.spatial_attention["cv1"] = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "theirs.safetensors"), strict=True)
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, "ultralytics"),
        ({"form": "timm"}, "ultralytics"),
        ({**FULL, "norm": "batch"}, "ultralytics"),
        ({**FULL, "spatial_bias": True}, "ultralytics"),
        ({**FULL, "spatial": False}, "ultralytics"),
        ({**FULL, "kernel_size": 5}, "ultralytics"),
        ({**FULL, "pools": ["avg", "max"]}, "ultralytics"),
        ({**FULL, "arrangement": "parallel"}, "ultralytics"),
        *[(FULL, layout) for layout in ("official", "timm", "timm-legacy", "ca-sa", "torchvision")],
    ],
)
def test_what_no_network_of_the_layout_computes(options, layout, tmp_path, refused):
    torch.save(create_model("cbam_resnet18", num_classes=2, attention_kwargs=options).state_dict(), tmp_path / "a.pth")
    with refused():
        convert_weights(
            tmp_path / "a.pth",
            tmp_path / "b.safetensors",
            model="cbam_resnet18",
            to=layout,
            attention_kwargs=options,
        )
    assert not (tmp_path / "b.safetensors").exists()


def misshapen(state):
    state["layer1.0.cbam.channel_attention.fc.weight"] = torch.zeros(64, 32, 1, 1)


def without_bias(state):
    del state["layer1.0.cbam.channel_attention.fc.bias"]


def behind_a_stage(state):
    cbam = {key: state[key] for key in state if key.startswith("layer1.1.cbam.")}
    state |= {key.replace("layer1.1.cbam", "layer1.2"): value for key, value in cbam.items()}


def twice_in_a_block(state):
    state |= {key.replace("cbam", "cbam2"): state[key] for key in list(state) if "layer1.0.cbam" in key}


@pytest.mark.parametrize("change", [misshapen, without_bias, behind_a_stage, twice_in_a_block])
def test_what_ultralytics_cbam_cannot_be(change, tmp_path, refused):
    state = ultralytics_state()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    for attempt in (
        lambda: convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors"),
        lambda: create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "a.pth"),
    ):
        with refused():
            attempt()


@pytest.mark.parametrize("options", [{"form": "official"}, {"form": "timm"}, {"kernel_size": 5}, {"reduction": 16}])
def test_options_that_ultralytics_weights_do_not_take(options, tmp_path, refused):
    torch.save(ultralytics_state(), tmp_path / "a.pth")
    with refused():
        create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "a.pth", attention_kwargs=options)


@pytest.mark.parametrize("forms", [("ultralytics", "official"), ("official", "ultralytics")])
def test_a_file_of_another_form_is_told(forms, tmp_path, refused):
    theirs = create_model("cbam_resnet18", num_classes=10, attention_kwargs={"form": forms[0]})
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with refused():
        create_model(
            "cbam_resnet18", num_classes=10, pretrained=tmp_path / "a.pth", attention_kwargs={"form": forms[1]}
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_bias": False},
        {"norm": "batch"},
        {"norm": "batch", "spatial_bias": True},
        {"spatial_bias": True},
        {"spatial": False},
        {"kernel_size": 3},
        {"start": "identity"},
    ],
)
def test_the_form_is_recognised_from_names_and_shapes(options):
    options = {**FULL, **options}
    with torch.device("meta"):
        state = create_model("cbam_resnet18", num_classes=10, attention_kwargs=options).state_dict()
    loaded = to_ours(state, "a")
    assert names_of(loaded) == ["cbam_resnet18"]
    assert options_of(state, "cbam") == options


def test_copied_code_loads_by_the_name_of_the_plain_network_and_an_attention(tmp_path, refused):
    theirs = trained(OfficialResNet(copied="layers"))
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    options = {"num_classes": 10, "attention": "cbam", "pretrained": str(tmp_path / "a.pth")}
    assert_same_outputs(create_network("resnet18", **options), theirs)
    with refused():
        create_model("cbam_resnet18", pretrained=tmp_path / "a.pth", attention_kwargs={"maps": ("max", "mean")})


def test_ours_with_se_into_timms_network(tmp_path):
    ours = trained(create_model("se_resnet18", num_classes=10))
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    (note,) = convert_weights(tmp_path / "ours.pth", tmp_path / "timm.safetensors", to="timm").notes
    assert "functools.partial(SEModule, rd_divisor=1)" in note
    theirs = timm_model("resnet18", block_args={"attn_layer": functools.partial(SEModule, rd_divisor=1)})
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "timm.safetensors"), strict=True)
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize("attention", [None, *sorted(ATTENTION.keys() - {"simam"})])
def test_every_network_is_recognised(attention):
    for backbone in RESNETS:
        name = backbone if attention is None else f"{attention}_{backbone}"
        with torch.device("meta"):
            state = create_model(name, num_classes=10).state_dict()
        assert names_of(to_ours(state, name)) == [name]


@pytest.mark.parametrize("name", ["se_wide_resnet18_2", "cbam_resnext29_32x4d", "cbam_resnet34", "se_resnext50_32x4d"])
@pytest.mark.parametrize("layout", ["official", "timm", "timm-legacy"])
def test_there_and_back(name, layout):
    with torch.device("meta"):
        state = create_model(name, num_classes=10).state_dict()
    attention = name.partition("_")[0]
    try:
        theirs = from_ours(state, LAYOUTS[layout], attention, model_kwargs={"ceil_pool": layout == "timm-legacy"})
    except UserError:
        assert (attention, layout) in {("se", "official"), ("cbam", "timm-legacy"), ("se", "timm-legacy")}
        return
    ours = to_ours(theirs, name)
    assert {key: value.shape for key, value in ours.state.items()} == {k: value.shape for k, value in state.items()}
    assert names_of(ours) == [name]


def test_a_computation_that_no_network_here_has(tmp_path, refused):
    torch.save(timm_model("legacy_seresnet18").state_dict(), tmp_path / "a.pth")
    for attempt in (
        lambda: convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors"),
        lambda: create_model("se_resnet18", pretrained=tmp_path / "a.pth"),
    ):
        with refused():
            attempt()


def test_old_files_without_counters(tmp_path):
    theirs = trained(OfficialResNet())
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    ours = create_model("cbam_resnet18", num_classes=10)
    ours.load_state_dict(safetensors.torch.load_file(tmp_path / "b.safetensors"), strict=True)
    assert_same_outputs(ours, theirs)


def test_the_paper_s_bam_and_the_authors_are_told_apart(tmp_path, refused):
    torch.save(create_model("bam_resnet18", num_classes=10).state_dict(), tmp_path / "a.pth")
    options = {"combine": "multiply"}
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", attention_kwargs=options, to="official")
    assert done.network.arguments()["attention_kwargs"] == options
    theirs = OfficialResNet(cbam=False, bam=True)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "b.safetensors"), strict=True)
    model = create_model("bam_resnet18", num_classes=10, pretrained=tmp_path / "b.safetensors")
    assert model.layer1.attention.combine == "multiply"
    assert_same_outputs(model, theirs)
    with refused():
        create_model("bam_resnet18", pretrained=tmp_path / "b.safetensors", attention_kwargs={"combine": "add"})
    (note,) = convert_weights(tmp_path / "a.pth", tmp_path / "c.safetensors").notes
    assert "assumed as added" in note


def test_an_identity_start_is_kept_here_and_has_no_place_elsewhere(tmp_path, refused):
    ours = create_model("cbam_resnet18", num_classes=10, attention_kwargs={"start": "identity"})
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.network.arguments()["attention_kwargs"] == {"start": "identity"}
    for layout in ("official", "timm"):
        with refused():
            convert_weights(tmp_path / "a.pth", tmp_path / "c.safetensors", to=layout)
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("se_resnet18", "official"),
        ("bam_resnet18", "official"),
        ("bam_resnet18", "timm"),
        ("cbam_resnet18", "torchvision"),
        ("se_resnet18", "timm-legacy"),
        ("se_resnet50", "timm-legacy"),
        ("resnet18", "elsewhere"),
    ],
)
def test_layouts_that_have_no_place(name, layout, tmp_path, refused):
    torch.save(create_model(name, num_classes=2).state_dict(), tmp_path / "a.pth")
    with refused():
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors", to=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_options_that_would_fit_and_compute_something_else(tmp_path, refused):
    torch.save(with_cbam("resnet18").state_dict(), tmp_path / "timm.pth")
    torch.save(OfficialResNet().state_dict(), tmp_path / "official.pth")
    for file, options in (
        ("timm.pth", {"form": "official", "mlp_bias": False}),
        ("official.pth", {"form": "timm", "mlp_bias": True}),
        ("official.pth", {"maps": ("mean", "max")}),
        ("timm.pth", {"pools": ("avg",)}),
        ("official.pth", {"pools": 3}),
        ("official.pth", {"arrangement": "parallel"}),
    ):
        with refused():
            create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / file, attention_kwargs=options)
    torch.save(OfficialResNet(cbam=False, bam=True).state_dict(), tmp_path / "bam.pth")
    with refused():
        create_model("bam_resnet18", num_classes=10, pretrained=tmp_path / "bam.pth", attention_kwargs={"dilation": 2})
    same = {"pools": ("max", "avg"), "norm": "batch"}
    create_model("cbam_resnet18", num_classes=10, pretrained=tmp_path / "timm.pth", attention_kwargs=same)


def test_another_number_of_classes_and_channels_from_their_files(tmp_path):
    theirs = trained(OfficialResNet(num_classes=1000))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = create_model("cbam_resnet18", num_classes=7, in_channels=1, pretrained=tmp_path / "a.pth").double().eval()
    x = images()[:, :1]
    theirs.double().fc = model.fc
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x.expand(-1, 3, -1, -1)), rtol=1e-6, atol=1e-6)
    assert not any(key.endswith(".mix") for key in model.state_dict())


def test_their_weights_through_timm_s_registration(tmp_path):
    import whatwhere.timm  # noqa: F401

    theirs = trained(with_cbam("resnet18"))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = timm.create_model("cbam_resnet18", num_classes=10, pretrained=str(tmp_path / "a.pth"))
    assert_same_outputs(ours, theirs)
