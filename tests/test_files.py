import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from whatwhere.base.errors import UserError
from whatwhere.base.files import check_can_write, check_writable, locked, read_csv, write_bytes, write_json
from whatwhere.training.run_folder import RunFolder


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", [b"", b"new", bytes(range(256)) * 5000])
def test_writes_what_it_is_given_and_replaces_what_was_there(tmp_path, content):
    path = tmp_path / "file"
    write_bytes(path, content)
    write_bytes(path, content[::-1])
    assert path.read_bytes() == content[::-1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_full_disk_leaves_all_as_it_was(tmp_path, monkeypatch, call, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(UserError) as caught:
        write_bytes(path, b"new")
    assert str(caught.value) == f"cannot write {str(path)!r}: No space left on device"
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_the_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = []
    for call in ("fsync", "replace"):
        original = getattr(os, call)

        def spy(*arguments, call=call, original=original):
            seen.append((call, path.read_bytes()))
            return original(*arguments)

        monkeypatch.setattr(os, call, spy)
    write_bytes(path, b"new")
    # the last one is the folder's
    assert seen == [("fsync", b"old"), ("replace", b"old"), ("fsync", b"new")]


def test_a_file_that_the_system_lets_grow_no_further(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from whatwhere.base.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "write_bytes(Path(sys.argv[1]).with_name('small'), b'x' * (1 << 16))\n"
        "try: write_bytes(Path(sys.argv[1]), b'x' * (1 << 20))\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == f"UserError cannot write {str(path)!r}: File too large\n"
    assert path.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "small"]


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_process_that_dies_while_it_writes_leaves_the_old_file(tmp_path, signal):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from whatwhere.base.files import write_bytes\n"
        f"os.fsync = lambda descriptor: os.kill(os.getpid(), signal.{signal})\n"
        "write_bytes(Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode < 0
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_json(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2.5, None, True], "b": "ü"})
    assert path.read_bytes().startswith(b'{\n  "a": [\n    1,\n')
    assert path.read_bytes().endswith(b"}\n")
    assert b"\\u00fc" in path.read_bytes()


@pytest.mark.parametrize(
    ("folder", "reason"), [("/dev/null/run", "Not a directory"), ("/proc/run", "No such file or directory")]
)
def test_a_place_where_no_folder_can_be(folder, reason):
    with pytest.raises(UserError) as caught:
        check_writable(Path(folder))
    assert str(caught.value) == f"cannot write to {folder!r}: {reason}; give another folder with --out"


def test_a_folder_that_takes_no_files(refused):
    with refused():
        check_writable(Path("/proc/self"))


def test_whether_a_file_can_be_written_is_known_before_it_is(tmp_path, refused):
    (tmp_path / "mine").write_text("mine")
    for makes_folders in (True, False):
        for name in ("mine", "new"):
            check_can_write(tmp_path / name, makes_folders=makes_folders)
        for path in (tmp_path, tmp_path / "mine" / "new", Path("/proc/self/new")):
            with refused():
                check_can_write(path, makes_folders=makes_folders)
    check_can_write(tmp_path / "a" / "b" / "new", makes_folders=True)
    with refused():
        check_can_write(tmp_path / "a" / "b" / "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine", "mine")]


def test_a_file_in_the_folders_place_is_left_alone(tmp_path, refused):
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with refused():
        check_writable(path)
    assert path.read_bytes() == b"mine"


def test_a_writable_folder_is_made_and_stays_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    check_writable(folder)
    check_writable(folder)
    assert list(folder.iterdir()) == []


HOLDER = """
import os, sys, time
from pathlib import Path
from whatwhere.base.files import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_until_its_process_is_dead_whatever_its_children_do(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            refused = pytest.raises(UserError, match=r"is in use by another process; wait for it, stop it, or give")
            with refused, locked(tmp_path):
                pass
            # asking does not unlock it
            with pytest.raises(UserError), locked(tmp_path):
                pass
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # alive
            with locked(tmp_path):
                pass
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_is_free_again_after_the_block(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), locked(tmp_path):
        raise RuntimeError("mine")
    code = (
        "import sys; from pathlib import Path; from whatwhere.base.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout == "held\n"


def test_a_lock_that_cannot_be_written(tmp_path, refused):
    with refused(), locked(tmp_path / "no"):
        pass


def test_a_file_is_held_beside_others_of_its_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from whatwhere.base.files import locked\n"
        "with locked(Path(sys.argv[1]), is_file=True): print('held')"
    )
    with locked(tmp_path / "results.csv", is_file=True):
        for name, status in (("results.csv", 1), ("other.csv", 0)):
            command = [sys.executable, "-c", code, str(tmp_path / name)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == status
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "delimiter", "rows"),
    [
        ("x.csv", b"a,b\n1,2\n", ",", [(1, ["a", "b"]), (2, ["1", "2"])]),
        ("x.csv", b"a;b,c\r\n\r\n1;2\r\n", ",", [(1, ["a;b", "c"]), (3, ["1;2"])]),
        ("x.csv", b'\xef\xbb\xbfa;b;c,d\n"1\n2"; 3\n', ";", [(1, ["a", "b", "c,d"]), (3, ["1\n2", "3"])]),
        ("x.csv", b"\n\na\tb\n", "\t", [(3, ["a", "b"])]),
        ("x.tsv", b"a,b,c\td\n", "\t", [(1, ["a,b,c", "d"])]),
        ("x.csv", b"", ",", []),
        ("x.csv", b",\n ,\t\n", ",", []),
    ],
)
def test_csv_files_are_read_by_their_delimiter(tmp_path, name, content, delimiter, rows):
    (tmp_path / name).write_bytes(content)
    assert read_csv(tmp_path / name) == (delimiter, rows)


@pytest.mark.parametrize(
    "content", [None, b"a,b\n\xff,1\n", b"a,b\n" + b"x" * 200_000, b'a,b\n1,"2\n', b'a,b\n"1"x,2\n']
)
def test_files_that_are_no_csv(tmp_path, content, refused):
    if content is not None:
        (tmp_path / "x.csv").write_bytes(content)
    with refused():
        read_csv(tmp_path / "x.csv")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_gets_the_permissions_that_are_asked_for(tmp_path):
    write_bytes(tmp_path / "own", b"", mode=0o600)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_is_a_pipe_is_told(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="it is a pipe, a socket or a device, not a file; remove it"), locked(tmp_path):
        pass


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path, monkeypatch):
    def refusing(path, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refusing)
    said = f"cannot write to {str(tmp_path)!r}: Permission denied; give another folder with --out"
    for look in (check_writable, lambda folder: RunFolder(folder).check_new()):
        with pytest.raises(UserError) as caught:
            look(tmp_path)
        assert str(caught.value) == said
