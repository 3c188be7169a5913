"""Ultralytics trains its networks with attention: `YOLO(...).train(trainer=trainer("cbam"), data=...)`."""

import copy
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import yolo_data
from client import wanted
from whatwhere import BAM, EfficientChannelAttention, SqueezeExcitation, detach
from whatwhere.base.errors import UserError
from whatwhere.insert.host import inserted_in

wanted("ultralytics")
from ultralytics import YOLO  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.utils.dist import generate_ddp_file  # noqa: E402

import whatwhere.ultralytics  # noqa: E402
from whatwhere.ultralytics import trainer  # noqa: E402

OPTIONS = {
    "epochs": 2,
    "imgsz": 64,
    "batch": 4,
    "nbs": 4,
    "warmup_epochs": 0,
    "optimizer": "AdamW",
    "plots": False,
    "device": "cpu",
    "workers": 0,
    "verbose": False,
    "exist_ok": True,
}
NETWORKS = [
    ("yolov5n", "detect"),
    *(
        (f"{name}{suffix}", task)
        for name in ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
        for suffix, task in (("", "detect"), ("-seg", "segment"), ("-cls", "classify"))
    ),
    ("yolo11n-pose", "pose"),
    ("yolo11n-obb", "obb"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the data set of a task, written once."""
    written = {}

    def of_task(task):
        if task not in written:
            written[task] = yolo_data.write(tmp_path_factory.mktemp(task), task)
        return written[task]

    return of_task


def checkpoint(tmp_path, name, seed=0):
    """Save a network with seeded weights as Ultralytics does, for its name does not download anything."""
    torch.manual_seed(seed)
    model = YOLO(f"{name}.yaml")
    model.ckpt = {"train_args": {"task": model.task}}  # as every checkpoint of a training has
    path = tmp_path / "weights.pt"
    model.save(path)
    return path


def built(tmp_path, data, weights, how, **options):
    """Return a trainer as `YOLO.train` makes it, with its network."""
    yolo = YOLO(weights)
    overrides = {**OPTIONS, "model": str(weights), "task": yolo.task, "data": data(yolo.task)}
    made = how(overrides={**overrides, "project": str(tmp_path), "name": "built", **options})
    made.model = made.get_model(weights=yolo.model, cfg=yolo.model.yaml)
    return made


def plain(overrides):
    return whatwhere.ultralytics._trainer_of(overrides["task"])(overrides=overrides)


def mixes(model):
    return [value.item() for key, value in model.state_dict().items() if key.endswith(".mix")]


def predicted(model, image=None):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) if image is None else image
    with torch.no_grad():
        output = model.eval()(image)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("name", "task"), NETWORKS)
def test_from_a_checkpoint_to_onnx(name, task, tmp_path, data):
    weights = checkpoint(tmp_path, name)
    without = built(tmp_path, data, weights, plain).model
    attended = built(tmp_path, data, weights, trainer("cbam", at="blocks")).model
    kept = {key: value for key, value in attended.state_dict().items() if key in without.state_dict()}
    # each tensor is what it is without attention, and so is the output, bit for bit
    torch.testing.assert_close(kept, without.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(predicted(attended), predicted(without), rtol=0, atol=0)
    places = len(mixes(attended))
    assert places == len(inserted_in(attended)) >= 6

    yolo = YOLO(weights)
    yolo.train(trainer=trainer("cbam", at="blocks"), data=data(task), project=str(tmp_path), name="run", **OPTIONS)
    best = tmp_path / "run" / "weights" / "best.pt"
    trained = YOLO(best)
    assert sum(value != 0 for value in mixes(trained.model)) == len(mixes(trained.model)) == places
    written = json.loads((tmp_path / "run" / "attention.json").read_text())
    assert len(written["places"]) == places
    last = YOLO(tmp_path / "run" / "weights" / "last.pt")  # in float16
    assert written["largest_mix"] == pytest.approx(max(map(abs, mixes(last.model))), rel=1e-3)
    expected = predicted(trained.model)
    saved = torch.load(best, weights_only=False)["model"].float()
    torch.testing.assert_close(predicted(saved), expected, rtol=0, atol=0)
    fused = copy.deepcopy(trained.model).fuse(verbose=False)
    torch.testing.assert_close(predicted(fused)[0], expected[0], rtol=1e-3, atol=1e-3)
    # attention has an effect, so the comparisons can fail
    assert not torch.equal(predicted(detach(copy.deepcopy(trained.model)))[0], expected[0])

    session = wanted("onnxruntime").InferenceSession(trained.export(format="onnx", imgsz=64))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (found, *_) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), predicted(fused, image)[0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("format", ["torchscript", "openvino", "onnx"])
def test_what_is_exported_predicts_the_same(format, tmp_path, data):
    if format == "openvino":
        wanted("openvino")
    weights = checkpoint(tmp_path, "yolo11n-cls")
    yolo = YOLO(weights)
    how = trainer("cbam", start="paper")
    yolo.train(trainer=how, data=data("classify"), project=str(tmp_path), name="run", **OPTIONS)
    best = YOLO(tmp_path / "run" / "weights" / "best.pt")
    images = sorted(map(str, Path(data("classify")).rglob("val/*/*.png")))
    expected = [result.probs.data for result in best.predict(images, imgsz=64, verbose=False)]
    without = YOLO(tmp_path / "run" / "weights" / "best.pt")
    detach(without.model)
    assert not torch.allclose(without.predict(images[0], imgsz=64, verbose=False)[0].probs.data, expected[0], atol=1e-3)
    exported = YOLO(best.export(format=format, imgsz=64), task="classify")
    found = [exported.predict(image, imgsz=64, verbose=False)[0].probs.data for image in images]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_predict_val_and_track(tmp_path, data):
    wanted("lap")
    yolo = YOLO(checkpoint(tmp_path, "yolo11n"))
    yolo.train(trainer=trainer("cbam"), data=data("detect"), project=str(tmp_path), name="run", **OPTIONS)
    best = YOLO(tmp_path / "run" / "weights" / "best.pt")
    options = {"imgsz": 64, "verbose": False, "project": str(tmp_path), "exist_ok": True}
    metrics = best.val(data=data("detect"), plots=False, device="cpu", **options)
    images = str(Path(data("detect")).parent / "images" / "val")
    assert len(best.predict(images, **options)) == len(best.track(images, conf=0.0, **options)) == 8
    assert mixes(best.model)
    assert set(metrics.results_dict) > {"metrics/mAP50(B)"}


def interrupted(tmp_path, data, how, epochs=3):
    """Train for one of the epochs, and return last.pt."""

    def stop(running):
        raise KeyboardInterrupt

    yolo = YOLO(checkpoint(tmp_path, "yolo11n"))
    yolo.add_callback("on_model_save", stop)
    options = {**OPTIONS, "epochs": epochs, "project": str(tmp_path), "name": "run"}
    with pytest.raises(KeyboardInterrupt):
        yolo.train(trainer=how, data=data("detect"), **options)
    return tmp_path / "run" / "weights" / "last.pt"


def test_resume(tmp_path, data):
    last = interrupted(tmp_path, data, trainer("cbam"))
    saved = torch.load(last, weights_only=False)["ema"].float().state_dict()
    begun = {}
    yolo = YOLO(last)
    yolo.add_callback("on_train_start", lambda t: begun.update(copy.deepcopy(t.model.state_dict())))
    yolo.add_callback("on_train_start", lambda t: begun.update(epoch=t.start_epoch, state=len(t.optimizer.state)))
    yolo.train(trainer=trainer("cbam"), resume=True)
    assert begun.pop("epoch") == 1
    assert begun.pop("state") > 0
    torch.testing.assert_close(begun, saved, rtol=0, atol=0)
    assert any(key.endswith(".mix") and value != 0 for key, value in begun.items())
    assert mixes(YOLO(last).model)


@pytest.mark.parametrize(
    "other",
    [
        trainer("se"),
        trainer("cbam", attention_kwargs={"maps": ["mean", "max"]}),
        trainer("cbam", at="stages"),
        trainer("cbam", start="paper"),
    ],
)
def test_weights_with_other_attention(other, tmp_path, data, refused):
    last = interrupted(tmp_path, data, trainer("cbam", at="blocks"))
    with refused():
        YOLO(last).train(trainer=other, resume=True)


def test_further_with_other_classes(tmp_path, data):
    last = interrupted(tmp_path, data, trainer("cbam"))
    made = built(tmp_path, data, last, trainer("cbam"))
    before = YOLO(last).model.state_dict()
    made.data = {**made.data, "nc": 5, "names": dict(enumerate("abcde"))}
    after = made.get_model(weights=YOLO(last).model, cfg=made.model.yaml).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if "attention" in key)


def test_without_pretrained_weights(tmp_path, data):
    made = trainer("cbam")(
        overrides={
            **OPTIONS,
            "model": "yolo11n.yaml",
            "task": "detect",
            "data": data("detect"),
            "project": str(tmp_path),
            "name": "run",
        }
    )
    made.setup_model()
    assert len(mixes(made.model)) == 13


def test_the_random_numbers_of_training_stay_the_same(tmp_path, data):
    weights, states = checkpoint(tmp_path, "yolo11n"), []
    for how in (plain, trainer("cbam")):
        built(tmp_path, data, weights, how, seed=3)
        states.append((torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()))
    assert states[0] == states[1]


def test_attention_depends_on_the_seed(tmp_path, data):
    weights = checkpoint(tmp_path, "yolo11n")
    first, again, other = (
        built(tmp_path, data, weights, trainer("cbam"), seed=seed).model.state_dict() for seed in (0, 0, 1)
    )
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert any(not torch.equal(other[key], first[key]) for key in first if "attention" in key)


class Gate(nn.Module):
    """An attention of the user's own."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x * (1 + self.gamma[:, None, None])


class Addressed(Gate):
    def extra_repr(self):
        return f"at {id(self)}"


def test_what_two_attentions_must_agree_in():
    difference = whatwhere.ultralytics._difference
    assert difference({"a": Addressed(4)}, {"a": Addressed(4)}) == ""
    found = difference({"a": BAM(32, dilation=4)}, {"a": BAM(32, dilation=2)})
    assert found == "at a, spatial.dilated1.conv.padding is (4, 4) in the weights and (2, 2) in the trainer"
    assert difference({}, {"a": Gate(4)}) == "a is attention in the trainer only"
    found = difference({"a": Gate(4)}, {"a": Gate(8)})
    assert found == "at a, the shape of gamma is (4,) in the weights and (8,) in the trainer"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD", "auto"])
@pytest.mark.parametrize("attention", ["cbam", "gct", "srm", Gate])
def test_no_decay_of_scales(optimizer, attention, tmp_path, data):
    if optimizer == "MuSGD":
        wanted("ultralytics.optim")  # since 8.4
    weights = checkpoint(tmp_path, "yolo11n")
    groups = []
    for how in (plain, trainer(attention, at="blocks", start="paper" if attention is Gate else "identity")):
        made = built(tmp_path, data, weights, how)
        made.optimizer = made.build_optimizer(made.model, name=optimizer, decay=0.1)
        names = {parameter: name for name, parameter in made.model.named_parameters()}
        groups.append({names[p]: group for group in made.optimizer.param_groups for p in group["params"]})
        assert len(groups[-1]) == len(names)
    without, attended = groups
    same = {name: group["weight_decay"] for name, group in attended.items() if name in without}
    assert same == {name: group["weight_decay"] for name, group in without.items()}
    ours = {name: group for name, group in attended.items() if name not in without}
    scales = [name for name in ours if name.rpartition(".")[2] in ("mix", "alpha", "beta", "gamma")]
    if attention == "srm":
        scales += [name for name in ours if name.endswith("what.weight")]
    assert len(scales) >= 13
    assert not any(ours[name]["weight_decay"] or ours[name].get("use_muon") for name in scales)
    if attention == "cbam":
        assert {ours[name]["weight_decay"] for name in ours if name.endswith(("fc1.weight", "conv.weight"))} == {0.1}


def test_frozen_layers(tmp_path, data, refused):
    weights = checkpoint(tmp_path, "yolo11n")
    options = {**OPTIONS, "data": data("detect"), "project": str(tmp_path), "name": "run"}
    with refused():
        YOLO(weights).train(trainer=trainer("cbam"), freeze=23, **options)


def test_several_attentions(tmp_path, data):
    several = [
        {"attention": "cbam", "at": "blocks", "attention_kwargs": {"reduction": 8}},
        {"attention": "eca", "at": "model.9"},
    ]
    made = built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer(several))
    assert len(mixes(made.model)) == 14
    attention = made.model.get_submodule("model.9.attention")
    assert isinstance(attention, EfficientChannelAttention)
    made.set_model_attributes()
    written = json.loads((tmp_path / "built" / "attention.json").read_text())
    assert [step["attention"] for step in written["attention"]] == ["cbam", "eca"]
    assert written["attention"][0]["attention_kwargs"] == {"reduction": 8}


def test_a_pattern_and_an_attention_of_the_users(tmp_path, data):
    made = built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer(Gate, at="model.4, model.6", start="paper"))
    assert [name for name, _ in made.model.named_modules() if name.endswith("attention")] == [
        "model.4.attention",
        "model.6.attention",
    ]


def test_bad_arguments(refused):
    for bad in (
        lambda: trainer("cban"),
        lambda: trainer([]),
        lambda: trainer(["cbam", "eca"]),
        lambda: trainer([{"attention": "cbam", "places": 3}]),
        lambda: trainer([{"attention": "cbam"}], at="blocks"),
        lambda: trainer("cbam", start="zero"),
        lambda: trainer("cbam", replace="cbam"),
        lambda: trainer("cbam", at=3),
        lambda: trainer([{"attention": "cbam", "attention_kwargs": 8}]),
        lambda: trainer("cbam", base="DetectionTrainer"),
        lambda: trainer("cbam")(overrides={"model": "yolo11n.yaml"}),
        lambda: trainer("cbam")(overrides={"task": "sing"}),
        lambda: trainer("cbam")(overrides={"task": "world"}),
    ):
        with refused():
            bad()


def test_two_attentions_in_one_place(tmp_path, data, refused):
    with refused():
        built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer([{"attention": "cbam"}, {"attention": "eca"}]))


def test_a_class_of_the_running_program(tmp_path, data, monkeypatch, caplog):
    """Its best.pt loads in no other program."""
    monkeypatch.setattr(Gate, "__module__", "__main__")
    built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer(Gate, at="model.4"))
    assert "another program cannot load best.pt" in caplog.text


@pytest.mark.parametrize("at", ["layer4.*", "16"])
def test_no_place(at, tmp_path, data, refused):
    with refused():
        built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer("cbam", at=at))


def test_another_process_lacks_the_module_of_the_attention(tmp_path, monkeypatch):
    """Its error names the module, not the long name of the class."""
    (tmp_path / "only_here.py").write_text(
        "from whatwhere import SqueezeExcitation\nclass Gate(SqueezeExcitation): ..."
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = trainer("only_here:Gate", base=DetectionTrainer)
    monkeypatch.delitem(sys.modules, "only_here")
    code = f"from whatwhere.ultralytics import {made.__name__}"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "only_here" in failed.stderr.splitlines()[-1]


def test_a_class_of_the_user_that_derives_from_a_trainer(tmp_path, data):
    class Own(trainer("cbam", base=DetectionTrainer)):
        pass

    assert len(mixes(built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), Own).model)) == 13


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("rtdetr-l", "rtdetr.train.RTDETRTrainer"),
        ("yolov8n-world", "yolo.world.WorldTrainer"),
        ("yoloe-26n-seg", "yolo.yoloe.YOLOESegTrainer"),
    ],
)
def test_a_network_with_another_trainer(name, base, tmp_path, data, refused):
    overrides = {**OPTIONS, "model": f"{name}.yaml", "task": "segment" if "seg" in name else "detect"}
    overrides.update(data=data(overrides["task"]), project=str(tmp_path), name="run")
    with refused():
        trainer("cbam")(overrides=overrides).setup_model()
    module, _, found = base.rpartition(".")
    made = trainer("cbam", base=getattr(importlib.import_module(f"ultralytics.models.{module}"), found))
    assert mixes(made(overrides=overrides).get_model(cfg=overrides["model"]))


def test_a_class_has_one_name_in_all_processes():
    made = trainer("cbam", at="model.4", attention_kwargs={"reduction": 8}, base=DetectionTrainer)
    assert made is trainer("cbam", at="model.4", attention_kwargs={"reduction": 8}, base=DetectionTrainer)
    assert made is not trainer("cbam", at="model.6", attention_kwargs={"reduction": 8}, base=DetectionTrainer)
    code = (
        f"from whatwhere.ultralytics import {made.__name__} as made\n"
        "print([base.__name__ for base in made.__mro__[1:3]], made.steps)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().splitlines()[-1] == (
        "['_Attending', 'DetectionTrainer'] [{'attention': <class 'whatwhere.attention.cbam.CBAM'>, 'at': 'model.4', "
        "'start': 'identity', 'replace': None, 'attention_kwargs': {'reduction': 8}}]"
    )


def test_a_class_stays_as_it_was_made():
    kwargs = {"reduction": 8}
    made = trainer("cbam", attention_kwargs=kwargs, base=DetectionTrainer)
    kwargs["reduction"] = 4
    assert made.steps[0]["attention_kwargs"] == {"reduction": 8}
    assert made is trainer("cbam", attention_kwargs={"reduction": 8}, base=DetectionTrainer)


def test_tuples_among_the_arguments():
    given = {"at": ("model.4", "model.6"), "attention_kwargs": {"pools": ("avg",)}}
    made = trainer("cbam", **given, base=DetectionTrainer)
    code = f"from whatwhere.ultralytics import {made.__name__} as made; print(made.steps[0]['attention_kwargs'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().splitlines()[-1] == "{'pools': ['avg']}"


@pytest.mark.parametrize("name", ["X_attended_aaaa", "X_attended_", "X_attended_ü", "_attended_" + "a" * 1000, "X"])
def test_a_name_that_is_no_class(name):
    assert not hasattr(whatwhere.ultralytics, name)


TWO_PROCESSES = '''
"""A trainer that runs as on two GPUs, on two CPU processes with gloo."""

import torch
from torch import distributed
from ultralytics.models.yolo.detect import DetectionTrainer


class DDP(torch.nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids=None, **options):
        super().__init__(module, **options)


class OnTwo(DetectionTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size = 2

    def _setup_ddp(self):
        distributed.init_process_group("gloo")
        torch.nn.parallel.DistributedDataParallel = DDP

    def optimizer_step(self):
        super().optimizer_step()
        values = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
        gathered = [torch.zeros_like(values) for _ in range(2)]
        distributed.all_gather(gathered, values)
        assert torch.equal(*gathered)

    def final_eval(self):
        """Leave it out: Ultralytics asks for CUDA here."""
'''


@pytest.mark.parametrize("processes", [1, 2])
def test_the_file_that_starts_processes(processes, tmp_path, data, monkeypatch):
    """Ultralytics starts its processes by a file of Python that imports the trainer's class."""
    wanted("cloudpickle")
    monkeypatch.syspath_prepend(tmp_path)
    base = DetectionTrainer
    if processes == 2:
        path = tmp_path / "on_two.py"
        path.write_text(TWO_PROCESSES)
        spec = importlib.util.spec_from_file_location("on_two", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "on_two", module)
        spec.loader.exec_module(module)
        base = module.OnTwo
    made = built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer("cbam", base=base), epochs=1)
    file = generate_ddp_file(made)
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # older versions do not hand sys.path on
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    finished = subprocess.run(
        [sys.executable, *launcher, file], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    best = YOLO(tmp_path / "built" / "weights" / "best.pt")
    assert all(mixes(best.model))
    assert (tmp_path / "built" / "attention.json").exists()


def test_a_class_without_a_name_for_other_processes(tmp_path, data):
    """A class that cannot be imported is sent whole."""
    cloudpickle = wanted("cloudpickle")
    made = trainer(lambda channels: SqueezeExcitation(channels, reduction=4), base=DetectionTrainer)
    sent = cloudpickle.loads(cloudpickle.dumps(made))
    assert sent.__mro__[1:3] == made.__mro__[1:3]
    with pytest.raises(AttributeError):
        getattr(whatwhere.ultralytics, made.__name__)


def test_weights_where_whatwhere_is_not_installed(tmp_path, data):
    made = built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer("cbam"))
    path = tmp_path / "best.pt"
    torch.save({"model": made.model, "train_args": {}}, path)
    # -S: the installed packages without what .pth files add, such as a checkout of whatwhere
    code = (
        f"import importlib.util, sys; sys.path += {[*{*map(sysconfig.get_path, ('purelib', 'platlib'))}]!r}\n"
        f"if importlib.util.find_spec('whatwhere'): sys.exit(3)\nfrom ultralytics import YOLO\nYOLO({str(path)!r})"
    )
    failed = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    if failed.returncode == 3:
        pytest.skip("whatwhere is installed among the packages")
    assert failed.returncode == 1
    assert "No module named 'whatwhere'" in failed.stderr.splitlines()[-1]


def test_the_error_of_a_network_that_lost_its_attention(tmp_path, data):
    made = built(tmp_path, data, checkpoint(tmp_path, "yolo11n"), trainer("cbam"))
    detach(made.model)
    with pytest.raises(UserError, match="no attention"):
        made.set_model_attributes()
