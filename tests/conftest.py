import os

# before torch starts CUDA: its deterministic matrix products need a fixed workspace
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import contextlib
import ctypes
import gc
import re
import shutil
import signal
import sys
import traceback
from pathlib import Path

import hypothesis
import pytest
import torch
from PIL import Image

from pictures import make_folder
from whatwhere import UserError
from whatwhere.base.processes import STOP_SIGNALS
from whatwhere.ops import native

# Fresh memory is filled with NaN, so that a value nobody wrote is seen.
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True
# the tests themselves run on all cores
torch.set_num_threads(1)
# no test asserts a time: a first call may import a library, on a busy machine
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """End a child that a test has forked and that comes back from the test: it would run all other tests."""
    process = os.getpid()
    try:
        return (yield)
    finally:
        if os.getpid() != process:
            print("a forked child has come back from its test", traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)


@pytest.fixture
def cpp():
    """The C++ passes, for tests of them or of the bytes that they keep, a little other than those of Python.

    Where there is a compiler make has built them: then a failed build fails the tests.
    """
    if native.why_missing() and shutil.which("g++") is None:
        pytest.skip(f"no compiler: {native.why_missing()}")


@pytest.fixture(autouse=True)
def _whole_sentences(request, monkeypatch):
    """Shorten no message that a snapshot has: the length of the test's folder would decide what is left of it."""
    if "snapshot" in request.fixturenames:
        monkeypatch.setattr("whatwhere.base.errors.SENTENCE_LETTERS", 2_000)


@pytest.fixture(autouse=True)
def _signals_of_a_terminal():
    """Hear the signals that nohup, or a shell's `&`, starts the tests without: a run leaves ignored ones alone."""
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


OPEN = Image.open


@pytest.fixture(autouse=True)
def _pillow_as_it_is(monkeypatch):
    """Undo what Ultralytics does to Pillow when a test, or a file of tests that is collected, imports it."""
    monkeypatch.setattr(Image, "open", OPEN)


kept = [0]  # bytes after the last time


@pytest.fixture(autouse=True)
def _memory_given_back():
    """Free what a worker keeps after a test, where that has grown.

    It keeps modules in circles, the classes of each TorchScript trace with their graphs (torch's own tests forget them
    in the same way), compiled graphs, and memory that glibc holds.
    """
    yield
    if resident() > kept[0] + 100e6:
        torch._C._jit_clear_class_registry()
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
        torch.jit._state._clear_class_state()
        torch.compiler.reset()
        gc.collect()
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)
        kept[0] = resident()


def resident():
    """The bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.fixture
def fresh_compiler():
    """Without what other tests have compiled: of one function torch keeps only so many graphs, whoever calls it."""
    torch.compiler.reset()


collected = pytest.StashKey[dict[str, set[str]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Note the tests of each file, also those that -m or -k leaves out; `make snapshots` runs those with snapshots."""
    tests = config.stash[collected] = {}
    for item in items:
        tests.setdefault(item.path, set()).add(item.name)
    if config.option.update_snapshots:
        config.hook.pytest_deselected(items=[item for item in items if "snapshot" not in item.fixturenames])
        items[:] = [item for item in items if "snapshot" in item.fixturenames]


@pytest.fixture
def collected_tests(request):
    """The names of all tests, by file."""
    return request.config.stash[collected]


def pytest_addoption(parser):
    parser.addoption("--images", metavar="DIR", help="folder with the unpacked sign-digits/, for tests on real photos")


@pytest.fixture
def whatwhere(capsys, monkeypatch):
    """The command, in this process: exit status, standard output, standard error.

    `compare` calls `run_comparison` if it is given.
    """
    from whatwhere import cli

    def run(*arguments, run_comparison=None):
        monkeypatch.setattr(sys, "argv", ["whatwhere", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main(run_comparison)
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def whatwhere_here(whatwhere, tmp_path, monkeypatch):
    """The command in this process, in the test's folder and with a cache there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return whatwhere


# words that differ between versions of Python, typer and torch
LIBRARIES = "|".join(
    (
        r"(?<=maximum recursion depth exceeded)[^)]+",
        r"(?<=Exceeds the limit).+",
        r"Input should be .*(?=; see)",
        r"(?<=Possible options: ).*(?=\))",
        r"(?<=BatchNorm2d\().*(?=; give)",
        r"(?<=the network does not run: ).*(?=; give)",
    )
)


@pytest.fixture
def as_in_snapshot(snapshot, tmp_path, tmp_path_factory):
    """Is a message one printable line, and the one that __snapshots__/ has? `make snapshots` writes them anew.

    In them TMP is the test's folder, TMPS that of all tests, and TESTS this folder. Words that match `hiding` are left
    out: those of a library, because they change with its version. A file name of one letter many times is cut, because
    messages cut it at a length that depends on the folder.
    """

    def check(sentence, hiding=LIBRARIES):
        assert sentence.isprintable()
        sentence = sentence.replace(str(tmp_path), "TMP").replace(str(Path(__file__).parent), "TESTS")
        # numbers of the folders that several tests share
        shared = re.escape(str(tmp_path_factory.getbasetemp())) + r"(/[a-z]+)\d+"
        sentence = re.sub(r"/(.)\1{19,}", r"/\1\1\1", re.sub(shared, r"TMPS\1", sentence))
        assert re.sub(hiding, "...", sentence, count=1) == snapshot

    return check


@pytest.fixture
def refused(as_in_snapshot):
    """`with refused():` expects a UserError with the message of the snapshot; `hiding` as in `as_in_snapshot`."""

    @contextlib.contextmanager
    def expected(**hiding):
        with pytest.raises(UserError) as caught:
            yield caught
        as_in_snapshot(str(caught.value), **hiding)

    return expected


@pytest.fixture
def refused_command(whatwhere, as_in_snapshot):
    """Run a command that ends with exit status 2 and the message of the snapshot alone; return what it prints."""

    def run(*arguments, **hiding):
        status, out, err = whatwhere(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("whatwhere: ")
        assert err.endswith("\n")
        as_in_snapshot(err[:-1], **hiding)
        return err

    return run


@pytest.fixture(scope="session")
def patterns(tmp_path_factory):
    """Images without a split."""
    return make_folder(tmp_path_factory.mktemp("data") / "patterns")


@pytest.fixture
def images(request):
    """The folder of real images; tests that want it are skipped without --images."""
    folder = request.config.getoption("--images")
    if folder is None:
        pytest.skip("needs --images DIR, a folder with sign-digits/ (class folders of photos)")
    return Path(folder)
