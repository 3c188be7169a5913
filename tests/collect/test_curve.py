import math

import pytest

from whatwhere import UserError
from whatwhere.collect.curve import read_curve


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "results.csv"
        path.write_bytes(text.encode())
        return path

    return write


def test_the_last_and_the_best_epoch(csv):
    path = csv("epoch,time,acc,loss,lr/pg0\n1,1,0.5,3,0.1\n2,2,0.7,2,0.1\n3,3,0.7,1,0.1\n4,4,0.6,2,0.1\n")
    curve = read_curve(path, "acc")
    assert (curve.last, curve.epochs) == ({"acc": 0.6, "loss": 2}, {1, 2, 3, 4})
    # the first of equal ones
    assert (curve.best, curve.best_epoch) == ({"acc": 0.7, "loss": 2}, 2)
    assert read_curve(path, "loss", lower_is_better=True).best_epoch == 3
    assert read_curve(path).best_epoch is None


def test_rows_of_one_epoch_add_up_and_a_test_is_no_epoch(csv):
    text = "epoch,step,test_acc,train_loss,val_acc\n0,9,,2.0,\n0,9,,,0.5\n1,19,,1.0,\n1,19,,,0.4\n2,20,0.45,,\n"
    curve = read_curve(csv(text), "val_acc")
    assert curve.last == {"train_loss": 1.0, "val_acc": 0.4, "test_acc": 0.45}
    assert curve.best == {"val_acc": 0.5, "test_acc": 0.45}
    assert curve.epochs == {0, 1}


def test_lines_of_lightnings_monitors_have_no_epoch(csv):
    text = "epoch,lr-SGD,lr-SGD/pg1,step,train_loss,val_acc\n,0.1,0.2,49,,\n0,,,99,2.0,0.5\n"
    text += ",0.05,0.1,149,,\n1,,,199,1.0,0.6\n"
    curve = read_curve(csv(text), "val_acc")
    assert (curve.last["val_acc"], curve.epochs, curve.best_epoch) == (0.6, {0, 1}, 1)
    with pytest.raises(UserError, match=r"line 3 of .* has no epoch"):
        read_curve(csv("epoch,step,val_acc\n0,1,0.5\n,2,0.6\n"))


def test_old_tables_are_padded_with_blanks(csv):
    assert read_curve(csv("   epoch,   metrics/mAP50(B)\n       0,   0.5\n")).last == {"metrics/mAP50(B)": 0.5}


@pytest.mark.parametrize("end", ["3,0.9", "3,", "3", '3,"0.9\n'])
def test_a_last_line_that_was_cut_short_is_no_epoch(csv, end):
    curve = read_curve(csv(f"epoch,acc\n1,0.5\n2,0.6\n{end}".rstrip("\n")))
    assert (curve.last, curve.epochs) == ({"acc": 0.6}, {1, 2})


def test_a_figure_that_is_not_finite_is_the_last_one(csv):
    curve = read_curve(csv("epoch,acc\n1,0.5\n2,nan\n"), "acc")
    assert math.isnan(curve.last["acc"])
    assert curve.best == {"acc": 0.5}
    assert read_curve(csv("epoch,acc\n1,inf\n"), "acc").best == {}


def test_the_head_again_where_a_training_goes_on(csv):
    curve = read_curve(csv("epoch,acc\n0,0.5\nepoch,acc\n1,0.6\n"))
    assert (curve.last, curve.epochs) == ({"acc": 0.6}, {0, 1})


def test_epochs_that_a_resumed_training_repeats_count_once(csv):
    curve = read_curve(csv("epoch,acc\n0,0.5\n1,0.6\n2,0.7\n1,0.65\n2,0.66\n"))
    assert (curve.last, curve.epochs) == ({"acc": 0.66}, {0, 1, 2})


@pytest.mark.parametrize(
    ("validated", "num_epochs", "ended"),
    [
        (range(4), 10, {"val_acc"}),
        (range(9), 10, {"val_acc"}),  # cut off in the last epoch
        (range(10), 10, set()),
        ((2, 5, 8), 10, set()),  # every third epoch
        ((2, 5), 9, {"val_acc"}),
        ((9,), 10, set()),
        ((0,), 10, {"val_acc"}),
    ],
)
def test_a_figure_that_ends_before_the_run(csv, validated, num_epochs, ended):
    rows = "".join(f"{epoch},1,\n{epoch},,{0.5 if epoch in validated else ''}\n" for epoch in range(num_epochs))
    curve = read_curve(csv(f"epoch,train_loss,val_acc\n{rows}"))
    assert curve.ended == ended
    assert curve.last_epochs == {"train_loss": num_epochs - 1, "val_acc": max(validated)}


@pytest.mark.parametrize("text", ["", "epoch,acc\n"])
def test_no_epoch_is_no_figure(csv, text):
    assert not read_curve(csv(text)).epochs


@pytest.mark.parametrize(
    "text",
    [
        "seed,acc\n0,0.5\n",
        "epoch,acc,acc\n1,1,1\n",
        "epoch,acc\n1,0.5,7\n2,0.5\n",
        "epoch,acc\n1,0.5\n2,o.6\n",
        "epoch,acc\n,0.5\n",
        "epoch,acc\n-1,0.5\n",
        "epoch,acc\none,0.5\n",
        "epoch,acc\n1,0.5\n2,0.6\n1,0.4\n",
        "epoch,acc\n1," + "0" * 200_000 + "\n",
    ],
    ids=range(9),
)
def test_what_is_no_csv_of_epochs_is_refused(csv, text, refused):
    with refused():
        read_curve(csv(text))


def test_text_beside_the_figures_is_left_out(csv):
    assert read_curve(csv("epoch,note,acc\n1,good,0.5\n2,7,0.6\n")).last == {"acc": 0.6}


def test_other_encodings_and_no_file(csv, tmp_path, refused):
    path = csv("")
    path.write_bytes("epoch,précision\n1,0.5\n".encode("latin-1"))
    with refused():
        read_curve(path)
    with refused():
        read_curve(tmp_path / "none.csv")


def test_memory_does_not_grow_with_the_table(csv):
    import tracemalloc

    rows = "".join(f"{row // 100},0.{row % 997:03d},{row}.5\n" for row in range(100_000))
    path = csv(f"epoch,acc,loss\n{rows}")
    tracemalloc.start()
    curve = read_curve(path, "acc")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert curve.best["acc"] == 0.996
    assert peak < 500_000 < path.stat().st_size


def test_epochs_that_a_resumed_training_did_not_reach_again_do_not_count(csv):
    lines = [*((epoch, 0.1 * epoch) for epoch in range(1, 10)), (5, 0.42), (6, 0.41)]
    curve = read_curve(csv("epoch,acc\n" + "".join(f"{e},{acc}\n" for e, acc in lines)), "acc", sums=[{"acc": 1}])
    assert (curve.last, curve.epochs, curve.last_epochs) == ({"acc": 0.41}, {1, 2, 3, 4, 5, 6}, {"acc": 6})
    assert (curve.best, curve.best_epoch, curve.peaks) == ({"acc": 0.42}, 5, [{5}])
    assert not curve.ended


def test_a_figure_that_a_resumed_training_did_not_log_again_is_not_there(csv):
    curve = read_curve(csv("epoch,acc,loss\n1,,3\n2,0.6,2\n3,,1\n4,0.8,1\n3,,1.5\n"), "acc")
    assert (curve.last, curve.epochs) == ({"loss": 1.5}, {1, 2, 3})
    assert (curve.best_epoch, curve.best["acc"]) == (2, 0.6)
