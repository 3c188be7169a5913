import re

import pytest

from whatwhere import UserError
from whatwhere.experiment import Results, judge, read_results
from whatwhere.statistics.columns import FOLDS, Reading
from whatwhere.statistics.direction import is_called_best, is_called_higher
from whatwhere.statistics.epochs import CHOSEN, LAST

ARMS = ("none", "cbam")
# W&B's "Export CSV" of a project's runs; MLflow's `search_runs` and its "Download CSV"
WANDB = (
    '"Name","State","Notes","User","Created","Runtime","seed","attention","val_acc"\n'
    '"brave-1","finished","","me","2026-11-01","71","0","none","0.61"\n'
    '"calm-2","finished","","me","2026-11-01","72","0","cbam","0.62"\n'
    '"dry-3","crashed","","me","2026-11-01","7","1","none","0.11"\n'
    '"easy-4","finished","","me","2026-11-01","71","1","cbam","0.63"\n'
)
MLFLOW = (
    "run_id,experiment_id,status,metrics.acc,params.model,params.seed,tags.mlflow.user\n"
    "a1,0,FINISHED,0.61,resnet18,0,me\nb2,0,FINISHED,0.62,cbam_resnet18,0,me\n"
    "c3,0,FINISHED,0.63,resnet18,1,me\nd4,0,FAILED,0.1,cbam_resnet18,1,me\n"
)


@pytest.fixture
def read(tmp_path):
    def run(text, **reading):
        path = tmp_path / "results.csv"
        path.write_text(text)
        return read_results(path, reading=Reading(**reading))

    return run


@pytest.mark.parametrize(
    ("head", "arm", "seed"),
    [
        ("model,run,acc", "model", "run"),
        ("Variant,random_state,acc", "Variant", "random_state"),
        ("method,trial,acc", "method", "trial"),
        ("config,id,acc", "config", "id"),
        ("params.model,params.seed,acc", "params.model", "params.seed"),
        ("name,fold,acc", "name", "fold"),
    ],
)
def test_usual_names_of_columns_are_understood_and_said(read, head, arm, seed):
    results = read(f"{head}\nnone,0,0.5\ncbam,0,0.6\nnone,1,0.7\ncbam,1,0.8\n")
    assert (results.arms, results.seeds, results.metrics) == (["none", "cbam"], ["0", "1"], ["acc"])
    assert results.notes == [
        f"the column {arm!r} is taken as the arm",
        *([f"the column {seed!r} is taken as the seed"] if seed != "params.seed" else []),
        *([FOLDS] if seed == "fold" else []),
    ]


def test_columns_by_name(read, refused):
    text = "who,when,acc\nnone,0,0.5\ncbam,0,0.6\n"
    results = read(text, arm_column="who", seed_column="when")
    assert (results.arms, results.seeds, results.notes) == (["none", "cbam"], ["0"], [])
    with refused():
        read(text)
    with refused():
        read(text, arm_column="whom")
    with refused():
        read(text, arm_column="who")


def test_exports_of_wandb_and_mlflow(read):
    results = read(WANDB, metric="val_acc")
    assert (results.arms, results.seeds) == (["none", "cbam"], ["0", "1"])
    assert results.values("none", "val_acc") == {"0": 0.61}
    assert results.notes == [
        "the column 'attention' is taken as the arm",
        "runs that did not finish, by the column State, count as missing: none, seed 1 (crashed) (--may-differ State "
        "counts them)",
    ]
    results = read(MLFLOW, metric="metrics.acc")
    assert results.arms == ["resnet18", "cbam_resnet18"]
    assert results.values("cbam_resnet18", "metrics.acc") == {"0": 0.62}
    assert read(MLFLOW, metric="metrics.acc", may_differ=frozenset({"status"})).values("cbam_resnet18", "metrics.acc")[
        "1"
    ]


@pytest.mark.parametrize("state", ["cancelled", "Preempting", "Crashed (OOM)", "timeout", "running", ""])
def test_a_run_counts_only_with_a_state_that_says_it_finished(read, state):
    results = read(f"arm,seed,status,acc\nnone,0,Completed,0.5\ncbam,0,{state},0.1\ncbam,1,ok,0.6\n", metric="acc")
    assert results.values("cbam", "acc") == {"1": 0.6}
    assert results.notes == [
        f"runs that did not finish, by the column status, count as missing: cbam, seed 0 ({state or 'no state'}) "
        "(--may-differ status counts them)"
    ]


def test_a_state_to_judge_by_is_a_figure(read):
    assert read("arm,seed,state\nnone,0,0.5\ncbam,0,0.1\n", metric="state").values("cbam", "state") == {"0": 0.1}


def test_settings_that_mlflow_names_must_be_equal_within_pairs(read, refused):
    rows = "run_id,params.model,params.seed,params.lr,params.note,metrics.acc\n"
    rows += "a,none,0,0.1,x,0.5\nb,cbam,0,0.1,x,0.6\nc,none,1,0.2,x,0.5\nd,cbam,1,0.2,x,0.6\n"
    results = read(rows)
    assert (results.arms, results.metrics) == (["none", "cbam"], ["metrics.acc"])
    other = rows.replace("cbam,1,0.2", "cbam,1,0.3")
    with refused():
        read(other)
    assert read(other, may_differ=frozenset({"params.lr"})).notes == [
        "the column 'params.model' is taken as the arm",
        "within pairs these settings differ besides the arm, as asked: params.lr; the verdict is about these settings "
        "and the arm together",
    ]
    assert read(rows, metric="params.lr").metrics == ["params.lr", "metrics.acc"]


@pytest.mark.parametrize("metric", ["acc", None])
def test_columns_that_differ_with_the_arm_are_told(read, metric):
    rows = "none,0,r18,224,a,7,0.5\nnone,1,r18,224,a,8,0.6\ncbam,0,r50,640,a,9,0.7\ncbam,1,r50,640,a,9,0.8\n"
    told = (
        "columns that differ between arms, and are the same in all runs of an arm: backbone, width; if they are "
        "settings, the verdict is about them and the arm together"
    )
    assert read(f"arm,seed,backbone,width,data,minutes,acc\n{rows}", metric=metric).notes == [told]
    # with one seed, every column would be one
    first = "".join(line for line in rows.splitlines(keepends=True) if ",0," in line)
    assert read(f"arm,seed,backbone,width,data,minutes,acc\n{first}", metric=metric).notes == []


@pytest.mark.parametrize(
    "text",
    [
        "model,method,seed,acc\na,x,0,0.5\nb,y,0,0.6\n",
        "arm,run,trial,acc\nnone,0,1,0.5\ncbam,0,1,0.6\nnone,1,2,0.5\ncbam,1,2,0.6\n",
        "arm,id,acc\nnone,0,0.5\ncbam,1,0.6\n",
        "seed,acc,loss\n0,0.5,1.2\n1,0.6,1.1\n",
        "seed,first,second\n0,0.5,0.6\n1,0.6,0.7\n",
        "seed,none,acc\n0,0.5,0.6\n1,0.6,0.7\n",
        "seed,acc\n0,0.5\n",
        "seed,r18,distilled\n0,0.5,0.6\n",
        "seed,none,cbam\n0,0.5,0.6\n1,O.6,0.7\n",
    ],
    ids=[
        "two arms",
        "two seeds",
        "no pair",
        "metrics",
        "either",
        "none and metric",
        "one column",
        "a name like a metric",
        "text",
    ],
)
def test_two_readings_or_none_are_refused(read, text, refused):
    with refused():
        read(text)


def test_a_column_for_each_arm(read, refused):
    text = "seed,none,se,cbam\n0,0.5,0.6,0.7\n1,0.4,,0.8\n"
    results = read(text, metric="mAP50")
    assert (results.arms, results.metrics) == (["none", "se", "cbam"], ["mAP50"])
    assert results.values("se", "mAP50") == {"0": 0.6}
    assert results.notes == ["each column is taken as an arm: none, se, cbam"]
    # arms by other names, where the metric is no column
    assert read("fold,r18,r18+se\n0,0.5,0.6\n1,0.4,0.5\n", metric="acc").arms == ["r18", "r18+se"]
    # names that look like metrics, where both the baseline and the figures have a name
    for name in ("distilled", "timesformer", "cbam_top", "gct_f"):
        assert read(f"seed,none,{name}\n0,0.5,0.6\n", metric="accuracy").arms == ["none", name]
    # which way is better must be said where the metric has no name
    assert read(text).metrics == ["figure"]
    with refused():
        judge(read(text))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_several_epochs_of_a_run(read, order, refused):
    rows = [f"{arm},{seed},{epoch},{value[epoch]}\n" for epoch in order for seed in (0, 1) for arm, value in (
        ("none", (0.5, 0.7, 0.6)), ("cbam", (0.6, 0.5, 0.7)))]  # fmt: skip
    text = "arm,seed,epoch,acc\n" + "".join(rows)
    results = read(text)
    assert (results.values("none", "acc"), results.notes) == ({"0": 0.6, "1": 0.6}, [LAST])
    best = read(text, epoch="best", metric="acc")
    assert (best.values("none", "acc"), best.notes) == ({"0": 0.7, "1": 0.7}, [CHOSEN])
    assert read(text, epoch="last").values("cbam", "acc") == {"0": 0.7, "1": 0.7}
    with refused():
        read(text, epoch="best")
    with refused():
        read(text + "none,0,1,0.9\n")
    with refused():
        read(text + "none,0,3,0.9\n")
    assert read(text + "none,0,3,0.9\n", may_differ=frozenset({"epochs"})).values("none", "acc")["0"] == 0.9
    with refused():
        read(text + "none,0,,0.9\n")


def test_figures_that_are_logged_in_some_lines_and_runs_that_diverge(read):
    text = "arm,seed,step,loss,acc\na,0,1,2,\na,0,2,,0.5\na,0,3,1,\nb,0,1,2,0.4\nb,0,2,,nan\nb,0,3,nan,\n"
    results = read(text)
    assert (results.runs("a"), results.runs("b")) == ({"0": {"loss": 1, "acc": 0.5}}, {"0": {}})
    assert read(text, epoch="best", metric="acc").runs("b") == {"0": {"loss": 2, "acc": 0.4}}


def test_a_metric_that_ends_before_its_run_is_refused(read, refused):
    rows = "".join(f"{arm},0,{epoch},1,{0.5 + epoch / 10}\n" for arm in ("none", "cbam") for epoch in range(3))
    text = "arm,seed,epoch,loss,acc\n" + rows.removesuffix("0.7\n") + "\n"
    for metric in ("acc", None):
        with refused():
            read(text, metric=metric)
    assert read(text, metric="loss").values("cbam", "loss") == {"0": 1}
    assert read(text, may_differ=frozenset({"epochs"})).values("cbam", "acc") == {"0": 0.6}


def test_runs_of_one_line_must_end_at_one_epoch(read, refused):
    text = "arm,seed,epoch,acc\nnone,0,100,0.5\ncbam,0,50,0.6\nnone,1,100,0.5\ncbam,1,37,0.6\n"
    with refused():
        read(text)
    with refused():
        read(text, epoch="best", metric="acc")
    assert read(text, may_differ=frozenset({"epochs"})).notes == [
        "the runs end at different epochs, 37 to 100, as asked"
    ]
    # a run that counts as missing may end anywhere
    state = text.replace("acc", "acc,state").replace("0.5", "0.5,done").replace("0.6", "0.6,failed")
    assert read(state, metric="acc").values("none", "acc") == {"0": 0.5, "1": 0.5}
    # as may those of `whatwhere collect`, which has compared them
    collected = (
        "arm,seed,acc,epoch,folder,collect_notes\nnone,0,0.5,100,a,\ncbam,0,0.6,50,b,\n"
        "none,1,0.5,100,c,\ncbam,1,0.6,37,d,\n"
    )
    assert len(read(collected).values("cbam", "acc")) == 2


@pytest.mark.parametrize("epoch", ["nan", "inf", "1e300", "-inf"])
def test_an_epoch_that_is_no_number_of_epochs_is_refused(read, epoch, refused):
    with refused():
        read(f"arm,seed,epoch,acc\nnone,0,9,0.5\ncbam,0,{epoch},0.6\n")


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("train/epoch", ("90", "45")),
        ("training_iteration", ("90", "45")),
        ("trainer/global_step", ("9000", "4500")),
        ("last_epoch", ("89", "44")),
        ("epochs_trained", ("90", "45")),
        ("epochsCompleted", ("90", "45")),
        ("轮次", ("90", "45")),
        ("epoch", ("90/90", "45/90")),
        ("epoch", ("epoch 90", "epoch 45")),
    ],
)
def test_a_run_that_ended_early_is_found_by_what_programs_call_its_epochs(read, name, epochs):
    text = f"arm,seed,{name},acc\n" + "".join(
        f"{arm},{seed},{epochs[arm == 'cbam' and seed == 1]},0.{60 + seed}\n" for seed in range(3) for arm in ARMS
    )
    with pytest.raises(UserError, match=r"the runs end at different epochs, such as .* 1 of 6 runs end before that"):
        read(text, metric="acc")
    assert read(text.replace(epochs[1], epochs[0]), metric="acc").metrics == ["acc"]


def test_an_epoch_of_text_is_refused(read, refused):
    with refused():
        read("arm,seed,epoch,acc\nnone,0,90,0.5\ncbam,0,best,0.6\n")


@pytest.mark.parametrize("state", ["stopped", "0", "gut", "FAILED"])
def test_a_table_without_a_finished_run_says_so(read, state):
    text = "arm,seed,status,acc\n" + "".join(f"{arm},{n},STATE,0.6{n}\n" for n in range(3) for arm in ARMS)
    stopped = text.replace("STATE", state)
    sentence = (
        f"no run is finished, by the column status of .* .'{state}'.; write finished there for those that are, or"
    )
    with pytest.raises(UserError, match=sentence):
        read(stopped, metric="acc")
    assert len(read(stopped, metric="acc", may_differ=frozenset({"status"})).values("cbam", "acc")) == 3
    results = read(text.replace("STATE", "TERMINATED"), metric="acc")
    assert (len(results.values("cbam", "acc")), results.notes) == (3, [])


@pytest.mark.parametrize(
    ("name", "no", "yes"), [("done", "False", "True"), ("finished", "0", "1"), ("completed", "no", "yes")]
)
def test_a_column_that_asks_whether_a_run_is_done(read, name, no, yes):
    text = f"arm,seed,{name},acc\n" + "".join(
        f"{arm},{n},{no if n == 1 else yes},0.6{n}\n" for n in range(3) for arm in ARMS
    )
    results = read(text)
    assert (results.metrics, list(results.values("cbam", "acc"))) == (["acc"], ["0", "2"])
    assert results.notes[0].startswith(
        f"runs that did not finish, by the column {name}, count as missing: none, seed 1"
    )


def test_of_several_lines_of_a_run_one_tells_that_it_is_done(read):
    lines = [(arm, n, epoch, n < 2 and epoch == 2) for arm in ARMS for n in range(3) for epoch in (1, 2)]
    text = "arm,seed,epoch,done,acc\n" + "".join(f"{arm},{n},{e},{done},0.{e}{n}\n" for arm, n, e, done in lines)
    results = read(text, metric="acc")
    assert results.values("cbam", "acc") == {"0": 0.2, "1": 0.21}
    assert "count as missing: none, seed 2 (False); cbam, seed 2 (False) (--may-differ done" in results.notes[0]


def test_every_column_of_states_counts_and_of_a_run_its_last_line(read):
    text = "arm,seed,completed,State,acc\nnone,0,1,finished,0.5\ncbam,0,1,crashed,0.1\ncbam,1,1,finished,0.6\n"
    assert read(text, metric="acc").values("cbam", "acc") == {"1": 0.6}
    text = "arm,seed,epoch,status,acc\n" + "".join(
        f"{arm},{n},{e},{'crashed' if (arm, n, e) == ('cbam', 1, 2) else 'ok'},0.{e}{n}\n"
        for n in range(3)
        for e in (1, 2)
        for arm in ARMS
    )
    assert list(read(text, metric="acc").values("cbam", "acc")) == ["0", "2"]


def test_the_last_epoch_tells_the_state_in_any_order_of_lines(read):
    text = "arm,seed,epoch,status,acc\n" + "".join(
        f"{arm},{n},2,{'crashed' if (arm, n) == ('cbam', 1) else 'ok'},0.6{n}\n{arm},{n},1,running,0.5{n}\n"
        f"{arm},{n},2,,\n"
        for n in range(3)
        for arm in ARMS
    )
    assert list(read(text, metric="acc").values("cbam", "acc")) == ["0", "2"]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("start_time", "2024-05-01 12:00:00.123000+00:00"),
        ("Runtime", "1:02:03.5"),
        ("inference_time", "1.5 ms"),
        ("loss_fn", "CE+0.5*Dice"),
        ("dist_url", "tcp://127.0.0.1:29500"),
    ],
)
def test_text_with_decimals_that_is_no_metric_is_no_fault(read, name, cell):
    rows = "".join(f"{arm},{n},{cell},0.6{n}\n" for n in range(3) for arm in ARMS)
    assert read(f"arm,seed,{name},accuracy\n{rows}").metrics == ["accuracy"]


def test_an_epoch_below_zero_is_not_one_above(read):
    rows = "".join(f"{arm},{n},{e},0.{e + 2}{n}\n" for n in range(3) for e in (-1, 0, 1) for arm in ARMS)
    assert read(f"arm,seed,epoch,acc\n{rows}", metric="acc").values("cbam", "acc")["1"] == 0.31


def test_a_column_that_says_more_than_yes_or_no_is_no_state(read):
    for name, cells in (("finished", ("2026-05-01 10:00", "2026-05-01 11:00")), ("completed", ("90", "90"))):
        text = f"arm,seed,{name},acc\nnone,0,{cells[0]},0.5\ncbam,0,{cells[1]},0.6\n"
        assert read(text, metric="acc").values("cbam", "acc") == {"0": 0.6}


def test_columns_that_the_user_names_are_what_he_says(read):
    for column in ("iteration", "step", "status", "done"):
        rows = "".join(f"{arm},{n},0.6{n}\n" for n in range(3) for arm in ARMS)
        assert read(f"arm,{column},acc\n{rows}", seed_column=column).seeds == ["0", "1", "2"]
        rows = "".join(f"{arm},{n},0.6{n}\n" for n in range(3) for arm in ARMS)
        assert read(f"{column},seed,acc\n{rows}", arm_column=column).arms == list(ARMS)


def test_one_seed_for_all_beside_a_column_that_counts_the_runs(read):
    rows = "".join(f"{arm},42,{n},0.6{n}\n" for n in range(3) for arm in ARMS)
    results = read(f"model,seed,run,acc\n{rows}")
    assert (results.seeds, results.notes[-1]) == (["0", "1", "2"], "the column 'run' is taken as the seed")
    # an id for each run is no seed
    assert read("model,seed,id,acc\nnone,42,1,0.5\ncbam,42,2,0.6\n", metric="acc").seeds == ["42"]


def test_arms_and_seeds_behind_the_prefixes_of_programs(read):
    rows = "".join(f"{arm},{n},0.6{n}\n" for n in range(3) for arm in ARMS)
    for head in ("params_attention,params_seed", "user_attrs_arm,user_attrs_seed", "config.model,args.seed"):
        assert (read(f"{head},value\n{rows}").arms, read(f"{head},value\n{rows}").seeds) == (
            list(ARMS),
            ["0", "1", "2"],
        )


def test_epochs_of_a_program_go_before_its_steps(read):
    rows = "".join(f"{arm},{n},{900 + (arm == 'cbam')},90,0.6{n}\n" for n in range(3) for arm in ARMS)
    assert len(read(f"attention,seed,_step,train/epoch,acc\n{rows}").values("cbam", "acc")) == 3


@pytest.mark.parametrize("cell", ["tensor(0.74{})", "**0.74{}**", "0.74{} @ep80", "[0.74{}]"])
@pytest.mark.parametrize("name", ["val_accuracy", "test_acc", "mAP50"])
def test_a_metric_of_text_with_figures_is_not_dropped_for_another_one(read, name, cell):
    rows = "".join(f"{arm},{n},{cell.format(n)},0.6{n}\n" for n in range(3) for arm in ARMS)
    for other in ("accuracy", "f1", "time_s"):
        with pytest.raises(UserError, match=rf"line 2 of .*: {name} is .*, not a number; write the number alone"):
            read(f"arm,seed,{name},{other}\n{rows}")


def test_text_called_like_a_metric_is_a_setting_and_an_empty_metric_is_told(read):
    rows = "".join(f"{arm},{n},0.6{n},{'16-mixed' if arm == 'cbam' else '32-true'}\n" for n in range(3) for arm in ARMS)
    (note,) = read(f"arm,seed,accuracy,precision\n{rows}").notes
    assert note.startswith("columns that differ between arms, and are the same in all runs of an arm: precision;")
    rows = "".join(f"{arm},{n},0.6{n},\n" for n in range(3) for arm in ARMS)
    assert read(f"arm,seed,accuracy,val_accuracy\n{rows}").notes == [
        "columns without a finite figure in any line: val_accuracy; they are left out"
    ]


def test_a_margin_above_all_figures_is_a_caution(read):
    rows = "".join(f"{arm},{n},0.{25 + 7 * n % 5 - 3 * (arm == 'cbam')}\n" for n in range(8) for arm in ARMS)
    results = read(f"arm,seed,test_error\n{rows}")
    sentence = "the margin of 0.5 is larger than any figure of test error: if"
    told = {m: judge(results, lower_is_better=True, margin=m).cautions for m in (0.5, 0.05)}
    assert [any(caution.startswith(sentence) for caution in told[m]) for m in (0.5, 0.05)] == [True, False]


def test_an_empty_column_of_states_says_nothing(read):
    assert read("arm,seed,state,acc\nnone,0,,0.5\ncbam,0,,0.6\n", metric="acc").values("cbam", "acc") == {"0": 0.6}


def test_accuracy_of_keras_beside_that_of_other_images_is_not_chosen(read):
    rows = "".join(f"{arm},{n},0.9{n},0.6{n}\n" for n in range(6) for arm in ARMS)
    for name in (
        "val_accuracy",
        "test_accuracy",
        "eval_accuracy",
        "valid_acc",
        "holdout_acc",
        "val_error",
        "验证准确率",
    ):
        with pytest.raises(UserError, match=f"there are several figures, accuracy, {name}; choose the one to judge by"):
            judge(read(f"arm,seed,accuracy,{name}\n{rows}"))
    # Keras without a metric on other images
    with pytest.raises(UserError, match="there are several figures, accuracy, loss, val_loss; choose the one"):
        judge(read(f"arm,seed,accuracy,loss,val_loss\n{rows.replace(',0.6', ',1.2,0.6')}"))
    assert judge(read(f"arm,seed,accuracy,val_loss\n{rows}")).metric.name == "accuracy"
    # of our own figures none names other images
    assert judge(read(f"arm,seed,accuracy,macro_f1\n{rows}")).metric.name == "accuracy"


def test_an_epoch_is_no_figure_of_a_run(read, refused):
    text = "arm,seed,epoch,acc\nnone,0,9,0.5\ncbam,0,9,0.6\n"
    assert read(text).metrics == ["acc"]
    assert read(text, metric="epoch").metrics == ["epoch", "acc"]
    with refused():
        read("arm,seed,acc\nnone,0,0.5\ncbam,0,0.6\n", epoch="best", metric="acc")


def test_all_columns_of_a_comparison_in_python_are_figures(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("arm,seed,epoch,state\nnone,0,9,1\n")
    assert read_results(path, may_be_empty=True).metrics == ["epoch", "state"]


def test_a_huge_table_is_refused_before_it_is_read(tmp_path, refused):
    path = tmp_path / "history.csv"
    with open(path, "wb") as file:
        file.write(b"arm,seed,accuracy\nnone,0,0.5\n")
        file.truncate(100 * 2**20)
    with refused():
        read_results(path)


SPELT = "learningRate BatchSize user_attrs_lr params_lr"
PREFIXED = "optimizer.lr optimizer/learning_rate parameters/lr param_lr args.lr cfg.lr hparams_lr"


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "batch_size",
        "imgsz",
        "Learning Rate",
        "epochs",
        "学习率",
        "trainer.max_epochs",
        *SPELT.split(),
        *PREFIXED.split(),
    ],
)
def test_a_usual_setting_that_differs_within_pairs_is_refused(read, name, refused):
    lines = [f"{arm},{seed},0.{60 + seed},{value}" for seed in range(3) for arm, value in (("none", 16), ("cbam", 32))]
    text = "\n".join([f"arm,seed,accuracy,{name}", *lines])
    with refused():
        read(text)
    results = read(text, may_differ=frozenset({name}))
    assert results.metrics == ["accuracy"]
    assert any("besides the arm, as asked" in note for note in results.notes)


def test_usual_settings_that_are_alike_or_change_during_a_run(read):
    same = ("none,0,0.6,0.1", "cbam,0,0.7,1e-1", "none,1,0.6,0.2", "cbam,1,0.7,0.20")
    assert read("\n".join(["arm,seed,accuracy,lr", *same])).metrics == ["accuracy"]
    lines = [f"{arm},0,{epoch},0.{epoch}5,{0.1 / epoch}" for arm in ("none", "cbam") for epoch in (1, 2)]
    results = read("\n".join(["arm,seed,epoch,accuracy,lr", *lines]), metric="accuracy")
    assert results.values("none", "accuracy") == {"0": 0.25}


def test_a_table_of_too_many_columns_lines_or_arms_is_refused(tmp_path, refused):
    path = tmp_path / "wide.csv"
    path.write_text(",".join(["arm", "seed", *(f"m{number}" for number in range(100_000))]) + "\n")
    with refused():
        read_results(path)
    path.write_text("arm,seed,accuracy\n" + "none,0,0.5\n" * 500_001)
    with refused():
        read_results(path)
    path.write_text("arm,seed,accuracy\n" + "".join(f"arm{number},0,0.5\n" for number in range(10_000)))
    with refused():
        judge(read_results(path))
    path.write_text("arm,seed,accuracy\n" + "".join(f"none,{seed},0.5\nse,{seed},0.6\n" for seed in range(10_001)))
    with refused():
        judge(read_results(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("netz,lauf,x\na,0,0.7\n", "no column 'arm' and no column 'seed'; it has 'netz', 'lauf', 'x'; name them with "),
        ("none,0,0.71\ncbam,0,0.74\n", "its first line, 'none', '0', '0.71', looks like a run; write a head such as"),
        ("lauf,4,8\n0,0.7,0.8\n", "it has 'lauf', '4', '8'; name them with --arm-column and --seed-column"),
    ],
)
def test_all_that_is_missing_is_told_at_once(read, text, told):
    with pytest.raises(UserError) as caught:
        read(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("none,0,0.71\nnone,1,0.72\ncbam,0,0.74\ncbam,1,0.75\n", ("none", "0")),
        ("none,0,71\nnone,1,72\ncbam,0,74\ncbam,1,75\n", ("none", "0")),
        ("7,none,0.71\n7,cbam,0.74\n8,none,0.72\n8,cbam,0.75\n", ("none", "7")),
        ("1,7,0.71\n2,7,0.74\n1,8,0.72\n2,8,0.75\n", ("1", "7")),
    ],
)
def test_columns_named_by_the_first_run_lose_no_run(read, text, columns):
    with pytest.raises(UserError, match=r"has no head: its first line, .*, looks like a run; write a head such as"):
        read(text, arm_column=columns[0], seed_column=columns[1])


@pytest.mark.parametrize("head", ["0,1,2", "1,2,3", ",0,1"])
def test_columns_numbered_by_a_program_are_a_head(read, head):
    arm, seed = [name for name in head.split(",") if name][:2]
    table = "0,none,4,0.71\n1,none,5,0.72\n2,cbam,4,0.74\n3,cbam,5,0.75\n"
    table = table if head[0] == "," else re.sub(r"(?m)^\d,", "", table)
    head += ",2" if head[0] == "," else ""
    assert read(f"{head}\n{table}", arm_column=arm, seed_column=seed).arms == ["none", "cbam"]


def test_columns_of_arms_need_the_name_of_their_figures(read):
    results = read("seed,none,cbam\n" + "".join(f"{n},0.7{n * n % 7},0.7{n * n % 5}\n" for n in range(6)))
    with pytest.raises(
        UserError, match="what its figures are is not known; give their name, such as --metric accuracy"
    ):
        judge(results)


def table_of_data_sets(column, num_sets):
    lines = [f"arm,{column},seed,accuracy"]
    for seed in range(12):
        of = f"set{seed % num_sets}"
        lines += [f"none,{of},{seed},{0.8 + seed * seed % 7 / 100}", f"cbam,{of},{seed},{0.83 + seed * seed % 5 / 100}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("column", ["dataset", "Data", "domain", "params.dataset_name"])
def test_pairs_of_several_data_sets_are_said_to_be_a_mix(read, column):
    (note,) = [note for note in read(table_of_data_sets(column, 3)).notes if "data sets" in note]
    assert note.startswith(f"the pairs are of 3 data sets ({column}: set0, set1, set2): the verdict is on this mix")
    assert "whatwhere verdict --across" in note
    assert not [note for note in read(table_of_data_sets(column, 1)).notes if "data sets" in note]


@pytest.mark.parametrize(
    ("column", "cells", "told"),
    [
        ("split", ("val", "test"), "they differ in split (val, test): keep the lines of one, or give each a table of"),
        # seeds of their own would make pairs of them
        ("fold", ("0", "1"), "they differ in fold (0, 1): keep the lines of one, or give each a table of its own"),
        ("top1", ("71", "72"), "a pair needs one run of each arm: keep one of them, or give each run its own seed"),
        ("loss", ("0.1", "0.2"), "a pair needs one run of each arm: keep one of them, or give each run its own seed"),
    ],
)
def test_two_lines_of_one_run_say_in_what_they_differ(read, column, cells, told):
    with pytest.raises(UserError) as caught:
        read(f"arm,seed,{column},accuracy\n" + "".join(f"none,7,{cell},0.8{n}\n" for n, cell in enumerate(cells)))
    assert f"are both arm 'none' with seed '7'; {told}" in str(caught.value)


@pytest.mark.parametrize("name", ["fold", "Fold", "kfold", "cv_fold", "fold_id"])
def test_folds_as_seeds_are_a_caution(read, name):
    text = f"arm,{name},accuracy\n" + "".join(f"{arm},{n},0.{8 + n % 2}{n}\n" for arm in ("a", "b") for n in range(6))
    assert any("the seeds are folds" in note for note in read(text, seed_column=name).notes)
    assert not any("folds" in note for note in read(text.replace(name, "seed")).notes)


@pytest.mark.parametrize(
    ("name", "is_best"),
    [
        *(
            (name, True)
            for name in ("best_acc", "max_val_f1", "Best Top1", "val/acc_best", "min_val_loss", "最佳准确率")
        ),
        *((name, False) for name in ("acc", "AR@maxDets=100", "AR_max_100", "time_min", "bestiary_acc", "val_loss")),
    ],
)
def test_the_best_of_several_epochs_is_a_caution(name, is_best):
    assert is_called_best(name) is is_best
    results = Results()
    for seed in range(6):
        results.add("none", seed, {name: 0.7 + seed * seed % 5 / 100})
        results.add("cbam", seed, {name: 0.74 + seed * seed % 7 / 100})
    told = judge(results, metric=name, lower_is_better=None if is_called_higher(name) else True, margin=0.5).cautions
    assert any("the best of several by its name" in caution for caution in told) is is_best


@pytest.mark.parametrize(
    ("name", "is_seen"),
    [
        *((name, True) for name in ("train_acc", "train/loss", "Training Accuracy", "训练准确率")),
        *((name, False) for name in ("val_acc", "train_time", "train_samples_per_second", "strained_acc", "test_loss")),
    ],
)
def test_a_figure_of_the_training_images_is_a_caution(name, is_seen):
    results = Results()
    for seed in range(6):
        results.add("none", seed, {name: 0.7 + seed * seed % 5 / 100})
        results.add("cbam", seed, {name: 0.74 + seed * seed % 7 / 100})
    told = judge(results, metric=name, lower_is_better=None if is_called_higher(name) else True, margin=0.5).cautions
    assert any("of the training images by its name" in caution for caution in told) is is_seen
