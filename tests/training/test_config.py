import dataclasses
import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given as drawn
from hypothesis import settings

from whatwhere import UserError
from whatwhere.training.config import (
    CHOICES,
    FREE,
    OPTIONS,
    Config,
    Recipe,
    augmentation_in_words,
    defaults,
    image_size_for,
    num_steps,
    read_config,
)


def chosen(image_size=32, on_cpu=False, on_gpu=False, bf16=False, num_cores=2, num_images=10**6, **given):
    machine = {"device": "cpu" if on_cpu else "cuda" if on_gpu else "mps", "bf16": bf16, "num_cores": num_cores}
    return defaults(given, image_size=image_size, num_images=num_images, **machine)


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_reading_options_needs_no_torch():
    code = "import sys, whatwhere.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lists_of_options_name_real_ones():
    assert set(CHOICES) <= set(OPTIONS)
    assert set(FREE) <= set(OPTIONS)
    assert {field.name for field in dataclasses.fields(Recipe)} <= set(OPTIONS)


def test_every_choice_is_accepted_and_any_other_word_refused(refused):
    for name, words in CHOICES.items():
        for word in words:
            assert getattr(Config(**{name: word}), name) == word
        with refused():
            Config(**{name: "other"})


@pytest.mark.parametrize(
    ("given", "image_size", "rate"),
    [
        ({}, 32, 0.1),
        ({"batch_size": 256}, 64, 0.2),
        ({}, 224, 0.025),
        ({"batch_size": 256}, 224, 0.1),
        ({"batch_size": 256, "pretrained": "imagenet"}, 224, 0.01),
        ({"batch_size": 256, "optimizer": "adamw"}, 224, 1e-3),
        ({"batch_size": 64, "optimizer": "adamw", "pretrained": "w.pth"}, 32, 2.5e-5),
    ],
)
def test_the_learning_rate_is_in_proportion_to_the_batch(given, image_size, rate):
    assert chosen(image_size, **given)["lr"] == pytest.approx(rate)


def test_what_is_given_is_not_chosen():
    assert not set(chosen(lr=1.0, model="resnet18", ema=0.0)) & {"lr", "model", "ema"}


def test_defaults_by_size_start_and_machine():
    assert chosen(32)["crop"] == "pad"
    assert chosen(224)["crop"] == "resized"
    assert chosen(32)["model"] == "cbam_resnext29_32x4d"
    # there are no published weights of the small one
    assert chosen(32, pretrained="imagenet")["model"] == chosen(224)["model"] == "cbam_resnext50_32x4d"
    # another attention is given for the plain one
    assert chosen(32, attention="se")["model"] == "resnext29_32x4d"
    # grouped convolutions are slow on a CPU
    assert chosen(32, on_cpu=True)["model"] == "cbam_resnet20"
    assert (
        chosen(32, on_cpu=True, pretrained="imagenet")["model"] == chosen(224, on_cpu=True)["model"] == "cbam_resnet18"
    )
    assert chosen(224, attention="own:Gate")["model"] == "resnext50_32x4d"
    # at 64 px a network for 32 px takes longer than the large one
    for on_cpu, small, large in ((True, "resnet20", "resnet18"), (False, "resnext29_32x4d", "resnext50_32x4d")):
        names = [chosen(size, on_cpu=on_cpu)["model"] for size in (28, 48, 49, 64, 96)]
        assert names == [f"cbam_{name}" for name in (small, small, large, large, large)]
    assert (chosen()["epochs"], chosen(pretrained="imagenet")["epochs"]) == (100, 30)
    assert [chosen(epochs=epochs)["warmup_epochs"] for epochs in (4, 30, 300)] == [0, 3, 5]
    assert [chosen(on_gpu=True, bf16=bf16)["amp"] for bf16 in (True, False)] == ["bf16", "none"]
    assert chosen(on_gpu=True, num_cores=16)["workers"] == 8
    assert chosen(num_cores=1)["workers"] == 0


@pytest.mark.parametrize("image_size", [32, 64, 96, 224])
@pytest.mark.parametrize("given", [{}, {"optimizer": "adamw"}, {"pretrained": "imagenet"}])
def test_what_is_chosen_is_valid(image_size, given):
    Config(data="digits", **{**chosen(image_size, **given), **given})


def test_the_image_size_is_the_largest_usual_one_within_the_images():
    sizes = {8: 32, 28: 32, 63: 32, 64: 64, 100: 96, 223: 192, 3000: 224}
    assert {side: image_size_for(side) for side in sizes} == sizes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.0),
        ("batch_size", True),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("ema", 1.0),
        ("label_smoothing", -0.1),
        ("hflip", 1.1),
        ("crop_scale", 0.0),
        ("rand_augment", 31),
        ("val_fraction", 1.0),
        ("workers", -1),
        ("image_size", 0),
        ("save_minutes", -1.0),
        ("drop_rate", 1.0),
        ("early_stop", -1),
        ("width_factor", 0.0),
        ("width_factor", -1.0),
        ("width_factor", 16.5),
        ("width_factor", float("nan")),
        ("width_factor", float("inf")),
    ],
)
def test_a_value_out_of_range_is_one_sentence_with_its_name(name, value, refused):
    with refused():
        Config(**{name: value})


def test_images_on_the_device_are_of_one_size(refused):
    Config(cache="device", crop="pad")
    with refused():
        Config(cache="device", crop="resized")


def test_yaml(tmp_path):
    text = "# mine\nmodel: se_resnet50\nbatch-size: 32\nlr: 1e-3\nmixup: 0\nskip_bad: true\npretrained: imagenet\n"
    assert read_config(written(tmp_path, text)) == {
        "model": "se_resnet50",
        "batch_size": 32,
        "lr": 1e-3,
        "mixup": 0.0,
        "skip_bad": True,
        "pretrained": "imagenet",
    }


@pytest.mark.parametrize("text", ['lr: "1_0"', "lr: 1_0", 'momentum: "\N{ARABIC-INDIC DIGIT ZERO}.5"'])
def test_a_number_in_yaml_is_spelt_as_on_the_command_line(text, tmp_path):
    with pytest.raises(UserError, match=r"must be a number|is no decimal number"):
        read_config(written(tmp_path, text))


def test_every_option_can_stand_in_yaml(tmp_path):
    import yaml

    values = {name: getattr(Config(), name) for name in OPTIONS}
    assert read_config(written(tmp_path, yaml.safe_dump(values))) == values


def test_an_attention_of_ours_can_stand_in_yaml(tmp_path):
    assert read_config(written(tmp_path, "attention: se\nwidth-factor: 2")) == {"attention": "se", "width_factor": 2.0}


def test_the_network_in_words():
    assert Config(model="resnet18").network().describe() == "resnet18"
    assert Config(model="resnet18", attention="own:Gate").network().describe() == "resnet18 with own:Gate"
    assert Config(model="resnet18", width_factor=1.0512).network().describe() == "resnet18, 1.051 times as wide"


def test_an_empty_file_gives_nothing(tmp_path):
    assert read_config(written(tmp_path, "")) == {}


@pytest.mark.parametrize(
    "text",
    [
        "epoch: 3",
        "epochs: many",
        "epochs: 3.5",
        "epochs: true",
        "lr: fast",
        "lr: true",
        "compile: 1",
        "model: [a]",
        "model: null",
        "- epochs",
        "a: [",
        "model: !!python/object/apply:os.system ['echo ran']",
        "lr: !!python/object/new:os.system ['echo ran']",
        "lr: !!python/name:os.system",
        "epochs: 3\n---\nepochs: 4",
        "epochs: 2024-13-45",
        "epochs: " + "9" * 5000,
        "epochs: " + "[" * 20_000,
        "lr: 1" + "0" * 400,
        "data: x",
        "attention: os:system",
        "attention: 'own.module:Gate'",
        "epochs: 3\nlr: 1.0\nepochs: 4",
        "batch-size: 3\nbatch_size: 4",
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, capfd, refused):
    with refused():
        read_config(written(tmp_path, text))
    assert "ran" not in capfd.readouterr().out


def test_no_such_file(tmp_path, refused):
    with refused():
        read_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with refused():
        read_config(tmp_path / "binary.yaml")


def usual(name):
    return re.fullmatch(r".* \(default: (.*)\)", OPTIONS[name].metadata["help"])[1]


def test_the_help_says_the_defaults():
    values = {name: getattr(Config(), name) for name in OPTIONS} | chosen()
    compared = set()
    for name, value in values.items():
        said = usual(name)
        if isinstance(value, bool):
            assert said == ("yes" if value else "no"), name
        elif name in CHOICES and said in CHOICES[name]:
            assert said == value, name
        elif re.fullmatch(r"[\d.]+", said):
            assert float(said) == value, name
        elif said in ("none", "no"):
            assert not value, name
        else:
            continue
        compared.add(name)
    special = {"model", "epochs", "batch_size", "lr", "image_size", "workers", "device", "weight_decay", "clip_grad"}
    special |= {
        "at",
        "resize",
        "crop",
        "rand_augment",
        "amp",
        "cache",
        "path_column",
        "label_column",
        "split_column",
        "data_dir",
        "warmup_epochs",
        "hflip",
        "mixup",
        "random_erasing",
    }
    assert OPTIONS.keys() - compared == special
    large, tuned, adamw = chosen(224), chosen(pretrained="imagenet"), chosen(optimizer="adamw")
    assert usual("batch_size") == f"{values['batch_size']}, above 64 px {large['batch_size']}, less for few images"
    few = chosen(num_images=200, epochs=10)
    assert usual("rand_augment") == (
        f"{values['rand_augment']}; above 64 px {large['rand_augment']}; few steps {few['rand_augment']}"
    )
    for name in ("hflip", "mixup", "random_erasing"):
        assert usual(name) == f"{values[name]:g}; few steps {few[name]:g}"
    assert usual("lr") == f"{values['lr']:g}; above 64 px {large['lr']:g}; by batch size, optimizer and start"
    assert usual("epochs") == f"{values['epochs']}; fine-tuning: {tuned['epochs']}"  # at any size
    assert large["epochs"] == values["epochs"]
    assert usual("warmup_epochs") == "a tenth of all, at most 5"
    assert [chosen(epochs=epochs)["warmup_epochs"] for epochs in (1, 9, 20, 50, 200)] == [0, 0, 2, 5, 5]
    assert usual("weight_decay") == "sgd 5e-4, adamw 0.05"
    assert (values["weight_decay"], adamw["weight_decay"]) == (5e-4, 0.05)
    assert usual("clip_grad") == "0; adamw 1"
    assert (values["clip_grad"], adamw["clip_grad"]) == (0, 1)


def test_what_is_given_wins_over_the_defaults():
    import torch

    from whatwhere.data.split import Prepared
    from whatwhere.training.distributed import Team
    from whatwhere.training.setup import resolve

    alone = Team(0, 1, 0, torch.device("cpu"))
    images = Prepared(None, ("a",), {"train": (None,) * 1300}, None, (), 40)
    config = resolve("x", {"lr": 0.3, "epochs": 7, "crop": "resized"}, images, alone)
    assert (config.lr, config.epochs, config.crop) == (0.3, 7, "resized")
    assert (config.image_size, config.batch_size, config.rand_augment) == (32, 128, 3)  # 11 steps x 7
    config = resolve("x", {"image_size": 224}, images, alone)
    assert (config.crop, config.batch_size) == ("resized", 64)


def test_few_images_make_smaller_batches_so_that_an_epoch_has_ten_steps():
    sizes = {2000: 128, 1280: 128, 1279: 64, 500: 32, 200: 16, 20: 16}
    assert {num: chosen(num_images=num)["batch_size"] for num in sizes} == sizes
    assert chosen(224, num_images=300)["batch_size"] == 16


def test_a_batch_is_not_larger_than_the_images_there_are():
    sizes = {16: 16, 15: 15, 2: 2, 1: 1}
    assert {num: chosen(num_images=num)["batch_size"] for num in sizes} == sizes


@pytest.mark.parametrize("num_images", [6, 140, 420, 1257, 10**6])
def test_a_batch_that_is_small_because_the_images_are_few_keeps_the_rate(num_images):
    assert chosen(num_images=num_images)["lr"] == 0.1
    assert chosen(224, num_images=num_images)["lr"] == 0.025
    assert chosen(num_images=num_images, optimizer="adamw")["lr"] == 5e-4


@pytest.mark.parametrize(("batch_size", "rate"), [(8, 0.025), (16, 0.05), (32, 0.1), (64, 0.1), (128, 0.1), (256, 0.2)])
def test_a_batch_that_is_given_is_compared_with_that_which_suits_the_images(batch_size, rate):
    assert chosen(num_images=420)["batch_size"] == 32
    assert chosen(num_images=420, batch_size=batch_size)["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"num_images": 100}, 0.1),  # 7 steps x 30
        ({"num_images": 8448}, 0.1),  # 66 x 30: 1,980
        ({"num_images": 8449}, 0.01),  # 67 x 30: 2,010
        ({"num_images": 100, "image_size": 96}, 0.025),
        ({"num_images": 10**5, "image_size": 96}, 0.0025),
        ({"num_images": 100, "optimizer": "adamw"}, 5e-4),
        ({"num_images": 10**5, "optimizer": "adamw"}, 5e-5),
        ({"num_images": 100, "epochs": 1000}, 0.01),
    ],
)
def test_fine_tuning_in_few_steps_has_the_whole_rate(given, rate):
    assert chosen(pretrained="w.pth", **given)["lr"] == rate


AUGMENTATION = ("hflip", "mixup", "random_erasing", "rand_augment")


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"num_images": 420, "epochs": 85}, (0, 0, 0, 3)),  # 14 steps x 85: 1,190
        ({"num_images": 420, "epochs": 86}, (0.5, 0, 0, 3)),  # 1,204
        ({"num_images": 1536}, (0, 0, 0, 3)),  # 12 x 100
        ({"num_images": 1537}, (0.5, 0, 0, 3)),  # 13 x 100
        ({"num_images": 420, "epochs": 142}, (0.5, 0, 0, 3)),  # 1,988
        ({"num_images": 420, "epochs": 143}, (0.5, 0.1, 0.1, 5)),  # 2,002
        ({"num_images": 2560}, (0.5, 0, 0, 3)),  # 20 x 100
        ({"num_images": 2561}, (0.5, 0.1, 0.1, 5)),  # 21 x 100
        ({"num_images": 2560, "batch_size": 64}, (0.5, 0.1, 0.1, 5)),
        ({"num_images": 1279}, (0.5, 0, 0, 3)),  # 20 x 100
        ({"num_images": 50_000, "epochs": 3}, (0, 0, 0, 3)),  # 391 x 3
        ({"num_images": 50_000, "epochs": 5}, (0.5, 0, 0, 3)),
        ({"num_images": 50_000, "epochs": 6}, (0.5, 0.1, 0.1, 5)),
        ({"num_images": 1280, "image_size": 224}, (0.5, 0, 0, 3)),  # 20 x 100
        ({"num_images": 1281, "image_size": 224}, (0.5, 0.1, 0.1, 7)),  # 21 x 100
        ({"num_images": 420, "pretrained": "imagenet"}, (0, 0, 0, 3)),  # 14 x 30
        ({"num_images": 8600, "pretrained": "imagenet"}, (0.5, 0.1, 0.1, 5)),  # 68 x 30
        ({"num_images": 420, "mixup": 0.2}, (0.5, None, 0, 3)),
    ],
)
def test_few_steps_get_less_augmentation(given, values):
    assert tuple(chosen(**given).get(name) for name in AUGMENTATION) == values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 12, "batch_size": 16}, "less augmentation and no flips for 1,200 steps (at most 1,200)"),
        ({"epochs": 13, "batch_size": 16}, "less augmentation for 1,300 steps (at most 2,000)"),
        ({"epochs": 20, "batch_size": 16}, "less augmentation for 2,000 steps (at most 2,000)"),
        ({"epochs": 21, "batch_size": 16}, "usual augmentation for 2,100 steps (above 2,000)"),
    ],
)
def test_the_augmentation_is_told_with_its_reason(options, words):
    assert augmentation_in_words(Config(**options), 1600) == words


@settings(max_examples=300)
@drawn(
    num_images=st.integers(2, 10**6),
    epochs=st.none() | st.integers(1, 1000),
    batch_size=st.none() | st.integers(1, 4096),
    image_size=st.sampled_from([8, 32, 64, 96, 224]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    pretrained=st.sampled_from(["", "imagenet"]),
)
def test_what_is_chosen_is_in_range_and_more_epochs_never_augment_less(
    num_images, epochs, batch_size, image_size, optimizer, pretrained
):
    options = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "pretrained": pretrained}
    options = {name: value for name, value in options.items() if value is not None}
    found = {**chosen(image_size, num_images=num_images, **options), **options}
    Config(data="photos", **found)
    assert batch_size or found["batch_size"] <= num_images
    full, highest = (128, 0.1) if image_size <= 64 else (64, 0.025)
    highest *= (0.005 if image_size <= 64 else 0.01) if optimizer == "adamw" else 1
    is_long = num_steps(found["epochs"], found["batch_size"], num_images) > 2000
    highest *= 0.1 if pretrained and is_long else 1
    low, high = (highest * min(1, found["batch_size"] / full), highest * max(1, found["batch_size"] / full))
    assert low * 0.999 <= found["lr"] <= high * 1.001
    assert found["warmup_epochs"] <= found["epochs"]
    more = chosen(image_size, num_images=num_images, **{**options, "epochs": found["epochs"] + 1})
    assert all(more[name] >= found[name] for name in AUGMENTATION)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e300},
        {"weight_decay": 1e300},
        {"mixup": 1e-300},
        {"workers": 1000},
        {"image_size": 100_000},
        {"image_size": 1},
        {"skip_bad": True, "check": False},
        {"best_by": "last", "early_stop": 1},
    ],
)
def test_what_no_run_could_bear_is_refused_at_once(options, refused):
    with refused():
        Config(**options)


def test_a_configuration_that_never_ends_is_not_waited_for(tmp_path, refused):
    os.mkfifo(tmp_path / "fifo.yaml")
    with refused():
        read_config(tmp_path / "fifo.yaml")


@pytest.mark.parametrize("key", ["data", "out", "resume", "dry-run", "json", "config"])
def test_what_belongs_on_the_command_line_is_told(tmp_path, key, refused):
    path = tmp_path / "options.yaml"
    path.write_text(f"{key}: runs\n")
    with refused():
        read_config(path)


def test_arguments_of_the_attention_may_be_text(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("attention_kwargs: '{\"reduction\": 8}'\n")
    assert read_config(path) == {"attention_kwargs": {"reduction": 8}}
