import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.base.files import write_json
from whatwhere.experiment import Results, judge, read_results
from whatwhere.statistics.history import judge_again, read_record

CASES = Path(__file__).parent / "cases"
TERMS = {"metric": None, "lower_is_better": None, "baseline": None, "margin": None}


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "results.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_a_table_is_read(table):
    results = read_results(
        table("arm,seed,accuracy,note\nnone,0,0.91,ok\ncbam,0,0.92,\nnone,1,,crashed\ncbam,1,nan,\n")
    )
    assert (results.arms, results.seeds, results.metrics) == (["none", "cbam"], ["0", "1"], ["accuracy"])
    assert results.values("none", "accuracy") == {"0": 0.91}
    assert results.values("cbam", "accuracy") == {"0": 0.92}


def test_seeds_that_differ_are_kept_apart(table):
    seeds = ["9007199254740992", "9007199254740993", "1e2", "99"]
    lines = "".join(f"none,{seed},0.9\ncbam,{seed},0.8\n" for seed in seeds)
    assert len(read_results(table(f"arm,seed,accuracy\n{lines}")).seeds) == 4


def test_names_that_would_confuse_a_terminal_are_escaped(table):
    results = read_results(table("arm,seed,m\u202eAP\nno\x1bne,a,0.91\ncb\u202eam,b\u2066,0.92\n"))
    assert (results.arms, results.seeds) == (["no\\x1bne", "cb\\u202eam"], ["a", "b\\u2066"])
    assert results.metrics == ["m\\u202eAP"]


@pytest.mark.parametrize(
    "text",
    [
        "seed;mAP;arm\n0;61,5;none\n1;60,5;none\n",
        "\ufeffArm\tSeed\tmAP\r\nnone\t0\t61.5\r\n\r\nnone\t1\t60.5\r\n",
        'arm, seed, mAP\n none , 0, "61,5"\n"none",1,60.5\n',
    ],
)
def test_other_spreadsheets_dialects(table, text):
    assert read_results(table(text)).values("none", "mAP") == {"0": 61.5, "1": 60.5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "arm,accuracy\nnone,0.5\n",
        "arms,seed,accuracy\nnone,0,0.5\n",
        "arm,seed,accuracy\nnone,0,0.5\nnone,0,0.6\n",
        "arm,seed,accuracy\nnone,0,0.5\nnone,1,0,6\n",
        "arm,seed,accuracy\nnone,0,0.5\nnone,00,0.6\n",
        "arm,seed,accuracy\nnone,1,0.5\nnone,1.0,0.6\n",
        "arm,seed,accuracy\nnone,0,0.5\nnone,1,o.6\n",
        "arm,seed,accuracy,epochs\nnone,0,0.5,9\nnone,1,oops,9\n",
        "arm,seed,accuracy\n,0,0.5\n",
        "arm,seed,accuracy\nnone,,0.5\n",
        "arm,seed,note\nnone,0,good\n",
        "arm,seed,a,a\nnone,0,1,2\n",
        'arm,seed,accuracy\nnone,0,"0.5\n',
    ],
)
def test_what_is_no_such_table_is_refused(table, text, refused):
    with refused():
        read_results(table(text))


def test_the_metric_asked_for_must_be_a_number(table, refused):
    path = table("arm,seed,accuracy,map\nnone,0,0.5,high\nnone,1,0.5,0.4\n")
    for asked in ("accuracy", None):
        results = read_results(path, asked)
        assert results.metrics == ["accuracy"]
        assert results.notes == ["the column map holds text, such as 'high' in line 2: it is left out"]
    with refused():
        read_results(path, "map")
    with refused():
        read_results(path, "accurracy")


def test_files_that_cannot_be_read(tmp_path, table, refused):
    with refused():
        read_results(tmp_path / "none.csv")
    with refused():
        read_results(tmp_path)
    with refused():
        read_results(table("arm,seed,précision\nnone,0,1\n", "latin-1"))


def test_the_order_of_the_seeds_is_no_figures(table):
    for seeds, order in (("10", "9", "2.5", "1"), ["1", "2.5", "9", "10"]), (("x", "b", "a"), ["a", "b", "x"]):
        lines = "".join(f"{arm},{seed},0.5\n" for arm in "ab" for seed in seeds)
        results = read_results(table("arm,seed,accuracy\n" + lines))
        assert results.seeds == order
        results.put_first([order[-1], "gone", order[1]])
        assert results.seeds == [order[-1], order[1], *(seed for seed in order if seed not in (order[-1], order[1]))]


def test_words_for_a_missing_figure(table):
    path = table("arm,seed,accuracy\na,0,0.5\na,1,failed\na,2,N/A\na,3,-\na,4,inf\n")
    assert read_results(path).values("a", "accuracy") == {"0": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        'arm,seed,size\nnone,0,"1,200"\n',
        'arm,seed,size\nnone,0,900\nnone,1,"1,200"\n',
        'arm,seed,size\nnone,0,"1,234.5"\n',
        "arm;seed;size\nnone;0;1,200\n",
        "arm\tseed\taccuracy\tloss\nnone\t0\t1,200\t0.5\n",
        "arm;seed;size\nnone;0;980\ncbam;0;1.150\n",
        "arm;seed;size\nnone;0;1.250\ncbam;0;1.150\n",
        "arm\tseed\tsize\nnone\t0\t980\ncbam\t0\t1.150\n",
        "arm;seed;accuracy;loss\nnone;0;1.200;0,5\n",
        "arm,seed,accuracy\nnone,0,0.5_123\n",
        "arm,seed,accuracy\nnone,0,0.\uff15\n",
        "arm,seed,accuracy\nnone,0,1e999\n",
        "arm;seed;size\nnone;0;1.234,5\n",
        'arm,seed,size\nnone,0,"1,234,567"\n',
        "arm,seed,accuracy\nnone,0,61%\nse,0,62 %\n",
        "arm,seed,accuracy\nnone,0,0.6\nse,0,61.5%\n",
        "arm,seed,score\nnone,0,1e160\n",
    ],
)  # fmt: skip
def test_figures_that_could_be_misread_are_refused(table, text, refused):
    with refused():
        read_results(table(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("arm;seed;size;loss\nnone;0;1,200;0,5\n", 1.2),
        ("arm\tseed\tsize\nnone\t0\t1.200\n", 1.2),
        # no accuracy is 76,553
        ("arm;seed;size;accuracy\nnone;0;1,200;76,553\n", 1.2),
        ("arm;seed;size;accuracy\nnone;0;1.200;76.553\n", 1.2),
        ('arm,seed,size\nnone,0,"61,25"\n', 61.25),
        ('arm,seed,size\nnone,0,"0,612"\n', 0.612),
        ("arm,seed,size\nnone,0,1200\n", 1200),
    ],
)
def test_decimal_commas_are_read(table, text, value):
    assert read_results(table(text)).values("none", "size") == {"0": value}


def test_text_beside_the_figures_may_look_like_one(table):
    path = table("arm,seed,accuracy,drop\nnone,0,0.5,10%\nnone,1,0.5,20%\n")
    assert read_results(path).metrics == ["accuracy"]
    path = table("arm,seed,accuracy\nnone,0,0\nnone,1,61.5\n")
    assert read_results(path).values("none", "accuracy") == {"0": 0, "1": 61.5}


def test_a_column_that_counts_the_rows_is_left_out_and_said_so(table, refused):
    results = read_results(CASES / "pandas-index.csv")
    assert results.metrics == ["accuracy"]
    assert results.notes == ["the first column has no name and counts the rows: it is left out"]
    assert judge(results).cautions == tuple(results.notes)
    named = (CASES / "pandas-index.csv").read_text().replace(",arm", "Unnamed: 0,arm", 1)
    assert read_results(table(named)).metrics == ["accuracy"]
    for text in (",arm,seed\n0.5,none,0\n0.6,cbam,0\n", "arm,seed,\nnone,0,5\ncbam,0,6\n"):
        with refused():
            read_results(table(text))
    assert read_results(table("arm,seed,accuracy,,\nnone,0,0.5,,\n")).metrics == ["accuracy"]


def test_a_column_with_text_is_no_metric_and_that_is_said(table, refused):
    path = CASES / "text-column.csv"
    results = read_results(path)
    assert results.metrics == ["accuracy"]
    assert results.notes == ["the column commit holds text, such as 'a91f0c3' in line 5: it is left out"]
    with refused():
        read_results(path, "commit")
    # where it may be what is judged by, text is a slip
    with refused():
        read_results(table("arm,seed,mAP,epochs\nnone,0,0.5,9\nnone,1,o.6,9\n"))


def test_a_null_character_in_the_name_is_a_sentence(refused):
    with refused():
        read_results(Path("results\0.csv"))


@pytest.mark.parametrize("other", ["None", "\uff4eone", "no\u200bne"])
def test_an_arm_spelt_in_two_ways_is_pointed_out(table, other):
    path = table(f"arm,seed,accuracy\nnone,0,0.5\n{other},1,0.5\n")
    assert f"{other} and none may be meant to be one arm" in judge(read_results(path)).arms[0].reason


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=5),
        st.dictionaries(
            st.integers(0, 5),
            st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) >= 1e-100),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_results_survive_their_csv(tmp_path_factory, figures):
    results = Results()
    for arm, runs in figures.items():
        for seed, value in runs.items():
            results.add(arm, str(seed), {"score": value, "loss": -value})
    path = tmp_path_factory.mktemp("csv") / "results.csv"
    path.write_text(results.to_csv(), encoding="utf-8")
    again = read_results(path)
    for arm, runs in figures.items():
        assert again.values(arm, "score") == {str(seed): value for seed, value in runs.items()}


def made(num_seeds, shift=0.3):
    noise = (0.9, -0.8, 0.4, -0.6, 1.1, -1.3)
    results = Results()
    for seed in range(num_seeds):
        results.add("none", seed, {"accuracy": 0.9, "loss": 0.3})
        results.add("cbam", seed, {"accuracy": 0.9 + (shift + noise[seed % 6]) / 100, "loss": 0.2})
    return results


def test_a_later_verdict_keeps_the_first_ones_plan(tmp_path):
    path = tmp_path / "verdict.json"
    assert read_record(path) is None
    first, _ = judge_again(made(8), None, terms=TERMS)
    assert first.arms[0].verdict == "cannot tell yet"
    write_json(path, {"judgement": first.to_dict(), "changes": []})
    second, changes = judge_again(made(12), read_record(path), terms=TERMS)
    told, _ = judge_again(made(12), None, first_look=8, terms=TERMS)
    assert second.arms[0].level == told.arms[0].level < judge(made(12)).arms[0].level
    assert not changes
    between, _ = judge_again(made(10), read_record(path), terms=TERMS)
    assert between.arms[0].num_pairs == 8


def test_another_plan_is_refused_and_other_terms_are_told(tmp_path, refused):
    path = tmp_path / "verdict.json"
    write_json(path, {"judgement": judge(made(8)).to_dict(), "changes": []})
    for plan in ({"first_look": 10}, {"max_pairs": 30}):
        with refused():
            judge_again(made(12), read_record(path), terms=TERMS, **plan)
    _, changes = judge_again(made(12), read_record(path), terms={**TERMS, "margin": 0.1})
    assert changes == ["after a verdict on 8 pairs: margin was 0.5, is 0.1"]
    _, changes = judge_again(made(12), read_record(path), terms={**TERMS, "metric": "loss", "margin": 0.01})
    assert "after a verdict on 8 pairs: metric was accuracy, is loss" in changes


def test_too_few_pairs_for_a_look_leave_the_plan_open(tmp_path):
    path = tmp_path / "verdict.json"
    write_json(path, {"judgement": judge(made(4)).to_dict(), "changes": []})
    later, _ = judge_again(made(7), read_record(path), terms=TERMS)
    assert later.arms[0].level == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("arms", 0, "plan", "first"), 7),
        (("arms", 0, "plan", "first"), 6),
        (("arms", 0, "plan", "last"), 24),
        (("arms", 0, "plan"), None),
        (("arms", 0, "num_pairs"), 7),
        (("arms", 0, "verdict"), "helpful"),
        (("arms", 0, "arm"), "none"),
        (("arms", 0, "seeds", 1), True),
        (("arms", 0, "seeds", 1), 0),
        (("max_pairs",), 30),
    ],
)
def test_an_earlier_verdict_that_contradicts_itself_is_refused(tmp_path, at, value, refused):
    """Another schedule would spend the error a second time, and nobody would see it."""
    content = json.loads(json.dumps(judge(made(8)).to_dict()))
    *way, last = at
    holder = content
    for key in way:
        holder = holder[key]
    holder[last] = value
    write_json(tmp_path / "verdict.json", {"judgement": content, "changes": []})
    with refused():
        read_record(tmp_path / "verdict.json")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"judgement": {"arms": [{}]}}', '{"judgement": 3}'])
def test_another_file_in_its_place_is_refused(tmp_path, content, refused):
    (tmp_path / "verdict.json").write_text(content)
    with refused():
        read_record(tmp_path / "verdict.json")


@pytest.mark.parametrize(
    "cell", ["90.1{} %", "90.1{}%", "90.1{} ± 0.3", "90.1{}+-0.3", "90.1{} (0.3)", "0.9{} (±0.01)"]
)
def test_a_metric_that_is_not_written_as_numbers_is_not_passed_over(cell, tmp_path, refused):
    """Its neighbour, here the loss, must not be judged in its place."""
    path = tmp_path / "results.csv"
    lines = [f"{arm},{seed},{cell.format(seed)},0.{seed}1" for arm in ("none", "se") for seed in range(6)]
    path.write_text("\n".join(["arm,seed,acc,loss", *lines]), encoding="utf-8")
    with refused():
        read_results(path)


@pytest.mark.parametrize("name", ["bs", "n_epochs", "WD", "resolution", "num_train", "dataset", "Augment", "max steps"])
def test_a_setting_is_known_by_its_name(name, tmp_path):
    path = tmp_path / "results.csv"
    lines = [f"{arm},{seed},0.{seed}1,{arm == 'se':d}0" for arm in ("none", "se") for seed in range(6)]
    path.write_text("\n".join([f"arm,seed,accuracy,{name}", *lines]))
    with pytest.raises(UserError, match=f"these settings differ between runs with one seed: {name} "):
        read_results(path)


def test_what_may_be_a_figure_or_an_arm_is_no_setting(tmp_path):
    path = tmp_path / "results.csv"
    rows = [f"{arm},{seed},0.{seed}1,0.{seed}2,{seed}00" for arm in ("none", "se") for seed in range(6)]
    path.write_text("\n".join(["arm,seed,accuracy,precision,steps", *rows]))
    assert read_results(path).metrics == ["accuracy", "precision", "steps"]
    path.write_text(
        "\n".join(["seed,none,mixup,dropout", *(f"{seed},0.{seed}1,0.{seed}2,0.{seed}3" for seed in range(6))])
    )
    assert read_results(path).arms == ["none", "mixup", "dropout"]
