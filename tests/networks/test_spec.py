"""The one description of a network: to and from JSON, in words, and everywhere that it is taken."""

import functools
import json
import subprocess
import sys

import msgspec
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from whatwhere import create_model
from whatwhere.attention import ATTENTION, CBAM
from whatwhere.comparison.arms import parse_arms, with_arguments
from whatwhere.models.article import ARTICLE_NETWORKS
from whatwhere.models.resnet import RESNETS
from whatwhere.networks import NetworkSpec, create, list_models
from whatwhere.networks.factory import name_of
from whatwhere.networks.spec import ARTICLE_BACKBONES, ATTENTIONS, BACKBONES, parse_arguments, read_spec
from whatwhere.training.bundle import load_bundle

SMALL = ("--image-size", 32, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--device", "cpu", "--no-check")


def test_the_names_without_torch_are_those_of_the_modules():
    assert (tuple(ATTENTION), tuple(RESNETS), tuple(ARTICLE_NETWORKS)) == (ATTENTIONS, BACKBONES, ARTICLE_BACKBONES)


@pytest.mark.parametrize("command", [["models", "cbam_*"], ["models"], ["--version"], ["train", "--help"]])
def test_names_and_help_need_no_torch(command):
    code = (
        "import sys\nfrom whatwhere.cli import main\n"
        f"sys.argv = ['whatwhere', *{command!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    if command[0] == "models":
        assert done.stdout.split() == list_models(*command[1:])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (NetworkSpec(name="resnet50"), "resnet50"),
        (NetworkSpec(name="cbam_resnet50", attention_kwargs={"reduction": 8}), "cbam_resnet50 (reduction 8)"),
        (NetworkSpec(name="resnet50", attention="cbam", at="blocks"), "resnet50 with cbam at blocks"),
        (NetworkSpec(name="resnet50", attention="m:Gate", start="identity"), "resnet50 with m:Gate (start identity)"),
        (NetworkSpec(name="timm:x", attention="se", replace="se"), "timm:x with se instead of se"),
        (NetworkSpec(name="resnet50", width_factor=1.25), "resnet50, 1.25 times as wide"),
    ],
)
def test_a_spec_in_words(spec, words):
    assert spec.describe() == words


def test_the_line_of_python_builds_the_network():
    kwargs = {"reduction": 4, "form": "timm"}
    spec = NetworkSpec(
        name="cbam_resnext11_8x8d",
        attention_kwargs=kwargs,
        num_classes=3,
        in_channels=1,
        model_kwargs={"ceil_pool": True},
    )
    model = eval(spec.call(), {"create_model": create_model})
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in create(spec, seed=0).state_dict().items()
    }


arguments = st.dictionaries(
    st.text(max_size=64),
    st.recursive(
        st.none() | st.booleans() | st.integers(-65_536, 65_536) | st.floats(-65_536, 65_536) | st.text(max_size=64),
        lambda values: st.lists(values, max_size=3),
        max_leaves=1,
    ),
    max_size=4,
)
specs = st.builds(
    NetworkSpec,
    name=st.text(max_size=20),
    attention=st.text(max_size=20),
    attention_kwargs=arguments,
    at=st.text(max_size=20),
    start=st.sampled_from(["", "identity", "paper"]),
    replace=st.sampled_from(["", "se"]),
    width_factor=st.floats(0.01, 16),
    num_classes=st.integers(0, 100),
    in_channels=st.integers(1, 12),
    model_kwargs=st.sampled_from([{}, {"ceil_pool": True}, {"replace_stride_with_dilation": [False, True, True]}]),
    as_published=st.booleans(),
)


@given(specs)
def test_a_spec_comes_back_from_json(spec):
    assert read_spec(json.loads(msgspec.json.encode(spec))) == spec


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        [],
        {},
        {"name": 3},
        {"name": "resnet50", "absent": 1},
        {"name": "resnet50", "width_factor": 0},
        {"name": "resnet50", "width_factor": 17},
        {"name": "resnet50", "num_classes": -1},
        {"name": "resnet50", "num_classes": 2**31},
        {"name": "resnet50", "start": "warm"},
        {"name": "resnet50", "attention_kwargs": {"reduction": 1e300}},
        {"name": "resnet50", "attention_kwargs": {"reduction": {"a": 1}}},
        {"name": "resnet50", "attention_kwargs": {"form": "a" * 65}},
        {"name": "resnet50", "model_kwargs": {"norm_layer": "os.system"}},
        {"name": "resnet50", "model_kwargs": {"drop_rate": 1}},
    ],
)
def test_what_a_file_may_not_say(wrong):
    with pytest.raises(ValueError, match=r"."):
        read_spec(wrong)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"reduction": 8, "form": "timm"}', {"reduction": 8, "form": "timm"}),
        ("{reduction:8,form:timm}", {"reduction": 8, "form": "timm"}),
        ("{reduction: 8, pools: [avg, max], norm: null, spatial: false}",
         {"reduction": 8, "pools": ["avg", "max"], "norm": None, "spatial": False}),
        ("{ratio:0.25}", {"ratio": 0.25}),
        ("{}", {}),
    ],
)  # fmt: skip
def test_arguments_as_json_and_without_quotes(text, value):
    assert parse_arguments(text) == value


@pytest.mark.parametrize(
    "text", ["", "8", "reduction=8", "[1]", "{", "{1: 2}", "{a: !!python/name:os.system }", "a" * 9999]
)
def test_what_are_no_arguments(text, refused):
    with refused():
        parse_arguments(text)


def test_an_argument_that_the_attention_lacks_is_one_sentence(refused):
    with refused():
        create(NetworkSpec(name="resnext11_8x8d", attention="cbam", attention_kwargs={"reductoin": 8}))
    with refused():
        create(NetworkSpec(name="resnet18", attention="se", start="paper", attention_kwargs={"start": "identity"}))


@pytest.mark.parametrize("typed", [True, False])
def test_attention_kwargs_are_trained_kept_and_used(patterns, tmp_path, typed, whatwhere_here):
    kwargs = {"form": "timm", "reduction": 4}
    options = ["--model", "resnext11_8x8d", "--attention", "cbam", *SMALL, "--out", "run"]
    if typed:
        options += ["--attention-kwargs", json.dumps(kwargs)]
    else:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"attention_kwargs": kwargs}))
        options += ["--config", "run.yaml"]
    status, out, err = whatwhere_here("train", patterns, *options)
    assert status == 0, err
    assert "resnext11_8x8d with cbam (form timm, reduction 4)" in " ".join(out.split())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["attention_kwargs"] == kwargs
    spec = load_bundle(tmp_path / "run").spec
    assert (spec.attention, spec.attention_kwargs) == ("cbam", kwargs)
    status, out, err = whatwhere_here("evaluate", "run", "run/split.csv", "--json")
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(out)["images"]["accuracy"] == result["test"]["accuracy"]
    # the same run goes on, another one is refused
    assert whatwhere_here("train", patterns, *options, "--resume")[0] == 0
    other = [*options, "--attention-kwargs", '{"reduction": 8}', "--resume"]
    status, _, err = whatwhere_here("train", patterns, *other)
    assert (status, err.count("\n")) == (2, 1)
    assert "--attention-kwargs was {'form': 'timm', 'reduction': 4}, is {'reduction': 8}" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--attention", "cbam", "--attention-kwargs", '{"reductoin": 8}'], "reductoin"),
        (["--attention", "cbam", "--attention-kwargs", "8"], "--attention-kwargs must be keyword arguments"),
        (["--attention-kwargs", '{"reduction": 8}'], "attention_kwargs {'reduction': 8} without an attention"),
    ],
)
def test_wrong_attention_kwargs_are_refused_before_the_images_are_read(
    patterns, tmp_path, options, sentence, whatwhere_here
):
    status, _, err = whatwhere_here("train", patterns, "--model", "resnext11_8x8d", *options, *SMALL)
    assert (status, err.count("\n")) == (2, 1), err
    assert sentence in err


def test_arms_with_arguments_are_compared(patterns, tmp_path, whatwhere_here):
    arms = "none,cbam8=cbam{reduction:8,form:timm},cbam"
    command = ["compare", patterns, "--backbone", "resnet8", "--attention", arms, "--seeds", 2, *SMALL]
    status, out, err = whatwhere_here(*command, "--out", "compared", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert content["arms"] == {
        "none": "resnet8",
        "cbam8": "cbam_resnet8 (reduction 8, form timm)",
        "cbam": "cbam_resnet8",
    }
    counts = {row["arm"]: row["num_params"] for row in content["cost"]["rows"]}
    assert counts["none"] < counts["cbam"] < counts["cbam8"]
    run = load_bundle(tmp_path / "compared" / "runs" / "cbam8" / "seed-0")
    assert run.spec.attention_kwargs == {"reduction": 8, "form": "timm"}
    # the same command changes nothing, another meaning of an arm is refused
    assert whatwhere_here(*command, "--out", "compared")[0] == 0
    other = [arms.replace("8,form", "4,form") if part == arms else part for part in command]
    status, _, err = whatwhere_here(*other, "--out", "compared")
    assert (status, err.count("\n")) == (2, 1), err


def test_arguments_for_all_arms_are_those_of_each_arm_without_its_own(refused):
    arms = parse_arms("none,cbam,cbam8=cbam{reduction:8},se,wide")
    assert [(arm.name, arm.attention, arm.attention_kwargs) for arm in with_arguments(arms, {"reduction": 4})] == [
        ("none", "none", {}),
        ("cbam", "cbam", {"reduction": 4}),
        ("cbam8", "cbam", {"reduction": 8}),
        ("se", "se", {"reduction": 4}),
        ("wide", "wide", {}),
    ]
    with refused():
        with_arguments(parse_arms("none,wide"), {"reduction": 4})


@pytest.mark.parametrize("command", ["summary", "attend"])
def test_attention_kwargs_where_costs_are_shown(tmp_path, command, whatwhere_here):
    def params(*more):
        options = ["resnet18", "--attention", "se", "--classes", 10, "--input", "3x64x64", "--json", *more]
        status, out, err = whatwhere_here(command, *options)
        assert status == 0, err
        shown = json.loads(out)
        return (
            shown["models"][0]["num_params"]
            if command == "summary"
            else sum(place["added_params"] for place in shown["plan"]["places"])
        )

    less, more = params("--attention-kwargs", "{reduction: 32}"), params("--attention-kwargs", "{reduction: 4}")
    assert less < params() < more


def test_attention_kwargs_of_a_network_with_the_attention_in_its_name(whatwhere_here):
    options = ["--attention-kwargs", "{form: ultralytics}", "--input", "3x64x64", "--json"]
    status, out, err = whatwhere_here("summary", "cbam_resnet18", *options)
    assert status == 0, err
    plain, channels = 11_689_512, (64, 128, 256, 512)
    assert json.loads(out)["models"][0]["num_params"] == plain + 2 * sum(c * c + c + 98 for c in channels)


def test_equal_specs_and_seeds_build_equal_networks():
    spec = NetworkSpec(name="resnext11_8x8d", attention="cbam", attention_kwargs={"form": "timm"}, at="layer?.?.bn3")
    states = [create(each, seed=3).state_dict() for each in (spec, read_spec(msgspec.to_builtins(spec)))]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_partial_is_named_by_what_it_wraps():
    assert name_of(functools.partial(CBAM, reduction=8)) == "whatwhere.attention.cbam:CBAM"
    assert [name_of(CBAM), name_of("cbam")] == ["cbam"] * 2
