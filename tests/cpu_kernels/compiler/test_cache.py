"""The compiled-code cache: fresh after every edit, private, and unbreakable."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import types

import pytest

pytest.importorskip("numba")

from package_copy import COMPILED, FIRST_CALL, LOADED, ROOT, PackageCopy

from cpu_kernels.compiler import cache
from cpu_kernels.compiler.cache import source_digest
from cpu_kernels.compiler.jit import INTERPRETED, driver
from cpu_kernels.compiler.private_folder import PrivateFolder, Refused, usual_places

pytestmark = pytest.mark.skipif(os.name != "posix", reason="compiled code is kept on POSIX systems only")


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A copy whose kernel is compiled and kept; tests leave it as they find it."""
    package = PackageCopy(tmp_path_factory.mktemp("warm"))
    output, _ = package.python(FIRST_CALL)
    assert output == COMPILED
    return package


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_second_process_loads(warm):
    assert warm.python(FIRST_CALL) == (LOADED, "")


def test_loaded_code_uses_the_math_library_and_raises(copy):
    """What loaded code may need beyond the sample: math functions, exceptions."""
    copy.source("sample.py").write_text("""
import math
import numpy as np
from cpu_kernels.compiler.jit import driver

@driver
def mixed(x):
    if x.size == 0:
        raise ValueError("empty")
    total = 0.0
    for i in range(x.size):
        total += math.exp(x[i]) + math.erf(x[i]) + np.float32(x[i]) ** 1.5
    return total
""")
    code = """
import numpy as np
from cpu_kernels.sample import mixed
print(mixed(np.arange(4.0)), sum(mixed.stats.cache_hits.values()))
try:
    mixed(np.empty(0))
except ValueError as error:
    print(error)
print(mixed(np.arange(4, dtype=np.float32)) > 0)
"""
    first, second = copy.python(code)[0].split(), copy.python(code)[0].split()
    assert first[0] == second[0] and first[2:] == second[2:] == ["empty", "True"]
    assert (first[1], second[1]) == ("0", "1")


def test_digest_covers_every_file():
    digest = source_digest(ROOT / "cpu_kernels")
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_digest_changes_with_one_byte_of_any_file(copy):
    seen = {source_digest(copy.folder / "cpu_kernels")}
    files = sorted((copy.folder / "cpu_kernels").rglob("*.py"))
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ") if content else path.write_bytes(b" ")
        seen.add(source_digest(copy.folder / "cpu_kernels"))
        path.write_bytes(content)
    assert len(seen) == len(files) + 1
    path.rename(path.with_name("renamed.py"))
    assert source_digest(copy.folder / "cpu_kernels") not in seen


def test_edit_of_a_called_file_recompiles(copy):
    """Same length and same time stamp: only the content tells."""
    assert copy.python(FIRST_CALL)[0] == COMPILED
    leaf = copy.source("sample_leaf.py")
    times = leaf.stat()
    leaf.write_text(leaf.read_text().replace("result *= x", "result -= x"))
    os.utime(leaf, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert copy.python(FIRST_CALL)[0] == "([-2.0, -5.0, -8.0], 0, 1)"
    leaf.write_text(leaf.read_text().replace("result -= x", "result *= x"))
    assert copy.python(FIRST_CALL)[0] == LOADED


def test_edit_between_import_and_first_call_is_not_kept_as_new_code(copy):
    code = """
from cpu_kernels.sample import outcome
from cpu_kernels import sample_leaf
text = open(sample_leaf.__file__).read()
open(sample_leaf.__file__, "w").write(text.replace("result *= x", "result -= x"))
print(outcome())
"""
    assert copy.python(code)[0] == COMPILED
    assert copy.entries() == []
    assert copy.python(FIRST_CALL)[0] == "([-2.0, -5.0, -8.0], 0, 1)"


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "change",
    [
        "import numba, numpy; numpy.__version__ = '2.99.0'",
        "import numba, llvmlite; llvmlite.__version__ = '0'",
        "import numba; numba.config.OPT = numba.core.config._OptLevel(2)",
    ],
)
def test_other_versions_and_options_share_nothing(warm, change):
    before = warm.entries()
    assert warm.python(f"{change}; {FIRST_CALL}")[0] == COMPILED
    assert set(before) < set(warm.entries())


def test_other_cpu_shares_nothing(warm):
    assert warm.python(FIRST_CALL, NUMBA_CPU_NAME="generic")[0] == COMPILED
    assert warm.python(FIRST_CALL, NUMBA_CPU_NAME="generic")[0] == LOADED
    assert warm.python(FIRST_CALL)[0] == LOADED


DAMAGE = """
import pickle, hashlib
from pathlib import Path
from cpu_kernels import sample
from cpu_kernels.compiler import cache
from cpu_kernels.compiler.jit import driver

def first_call():
    function = driver(sample.powers.py_func)
    assert sample.cubes([1, 2, 3], function) == [1.0, 8.0, 27.0]
    return sum(function.stats.cache_hits.values())

first_call()
entry, = [path for path in Path(cache.place().path).rglob("powers-*") if path.is_file()]
sound = entry.read_bytes()
forge = lambda payload: cache.FORMAT + hashlib.sha256(payload).digest() + payload
damaged = [sound[:length] for length in (0, 1, len(cache.FORMAT), len(cache.FORMAT) + 31, len(cache.FORMAT) + 32, len(sound) // 2, len(sound) - 1)]
damaged += [sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1:] for i in (0, len(cache.FORMAT), len(cache.FORMAT) + 40, len(sound) - 1)]
damaged += [sound + b"x", forge(b""), forge(b"garbage"), forge(pickle.dumps((1, 2))), forge(pickle.dumps(None)), b"\\0" * len(sound)]
for content in damaged:
    entry.write_bytes(content)
    assert first_call() == 0, content[:60]
    assert entry.read_bytes()[:len(cache.FORMAT)] == cache.FORMAT
    assert first_call() == 1
print(len(damaged))
"""


def test_damaged_files_are_rebuilt(copy):
    assert copy.python(DAMAGE)[0] == "17"


def test_entry_of_another_signature_is_rebuilt(copy):
    code = """
import numpy as np
from cpu_kernels import sample
from cpu_kernels.compiler import cache
from cpu_kernels.compiler.jit import driver
from pathlib import Path
sample.cubes([1, 2, 3])
entry, = Path(cache.place().path).rglob("powers-*")
other = driver(sample.powers.py_func)
out = np.empty(3, np.float32)
sample.run(other, 3, np.arange(3, dtype=np.float32), 3, out, cost=0)
second, = set(Path(cache.place().path).rglob("powers-*")) - {entry}
second.write_bytes(entry.read_bytes())
again = driver(sample.powers.py_func)
sample.run(again, 3, np.arange(3, dtype=np.float32), 3, out, cost=0)
print(out.tolist(), sum(again.stats.cache_hits.values()))
"""
    assert copy.python(code)[0] == "[0.0, 1.0, 8.0] 0"


def test_two_processes_compile_at_once(copy):
    processes = [copy.start(FIRST_CALL) for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.strip() in (COMPILED, LOADED)
    assert copy.python(FIRST_CALL)[0] == LOADED
    assert [path.name[0] for path in copy.entries()] == ["p"]  # no drafts left


def test_folder_and_files_are_private(warm):
    folders = [path for path in (warm.cache / "cpu_kernels").rglob("*") if path.is_dir()]
    assert folders
    assert {mode(path) for path in [warm.cache / "cpu_kernels", *folders]} == {0o700}
    assert {mode(path) for path in warm.entries()} == {0o600}


def test_home_places(copy):
    home = copy.folder / "home"
    home.mkdir()
    xdg = copy.folder / "xdg"
    where = (
        "from cpu_kernels.sample import outcome; from cpu_kernels.compiler.cache import place; "
        "outcome(); print(place().path)"
    )
    nothing = dict(CPU_KERNELS_CACHE_DIR=None, HOME=str(home), TMPDIR=str(copy.folder))
    if os.sys.platform != "darwin":
        assert copy.python(where, **nothing)[0] == str(home / ".cache" / "cpu_kernels")
    assert copy.python(where, **nothing, XDG_CACHE_HOME=str(xdg))[0] == str(xdg / "cpu_kernels")
    in_temp = str(copy.folder / f"cpu_kernels-{os.geteuid()}")
    assert copy.python(where, **{**nothing, "HOME": str(copy.folder / "missing")})[0] == in_temp


def test_read_only_home_falls_back_silently(copy):
    if not os.path.isdir("/sys"):
        pytest.skip("needs a folder that not even the administrator can write to")
    changes = dict(CPU_KERNELS_CACHE_DIR=None, HOME="/sys", TMPDIR=str(copy.folder))
    output, errors = copy.python(FIRST_CALL, **changes)
    assert output == COMPILED and "not kept" not in errors
    assert copy.python(FIRST_CALL, **changes) == (LOADED, "")


@pytest.mark.sample(3)
@pytest.mark.parametrize("place", ["off", "0", "file"])
def test_without_a_cache_everything_works_with_one_line_at_most(copy, place):
    (copy.folder / "file").write_text("")
    place = str(copy.folder / place) if place == "file" else place
    hurried = (
        "from cpu_kernels.compiler import notice as compile_notice; compile_notice.PATIENCE = 0; "
        f"{FIRST_CALL}"
    )
    for _ in range(2):
        output, errors = copy.python(hurried, CPU_KERNELS_CACHE_DIR=place)
        assert output == COMPILED
        assert len(errors.splitlines()) == 1 and "not kept" in errors
    assert copy.entries() == []


def test_notice_comes_once_when_compiling_is_slow_and_never_from_the_cache(copy):
    code = """
from cpu_kernels.compiler import notice as compile_notice
compile_notice.PATIENCE = 0
from cpu_kernels import sample
from cpu_kernels.compiler.jit import driver
import numpy as np
sample.cubes([1, 2, 3])
sample.run(sample.powers, 1, np.ones(1, np.float32), 3, np.ones(1), cost=0)
"""
    _, errors = copy.python(code)
    assert len(errors.splitlines()) == 1
    assert errors.startswith("cpu_kernels: compiling for this CPU, once (kept in ")
    assert copy.python(code)[1] == ""


def test_notice_waits_for_a_second(copy):
    code = """
import time
from cpu_kernels.compiler.notice import CompileNotice
said = []
notice = CompileNotice()
notice._say = lambda destination: said.append(destination)
notice.compiling("a"); time.sleep(0.3); notice.compiled(); time.sleep(1.0)
assert not said
notice.compiling("b"); time.sleep(0.4); assert not said
time.sleep(0.6)
print(said)
"""
    assert copy.python(code)[0] == "['b']"


PLANTED = """
import hashlib, os, pickle
from pathlib import Path
from cpu_kernels import sample
from cpu_kernels.compiler import cache
from cpu_kernels.compiler.jit import driver

class Attack:
    def __reduce__(self):
        return os.mkdir, ("executed",)

def first_call():
    cache._place = None
    assert sample.cubes([1, 2, 3], driver(sample.powers.py_func)) == [1.0, 8.0, 27.0]

first_call()
root = Path(cache.place().path)
entry, = root.rglob("powers-*")
payload = pickle.dumps(Attack())
planted = cache.FORMAT + hashlib.sha256(payload).digest() + payload
for exposed in (entry, entry.parent, root):
    for bits in (0o020, 0o002):
        entry.write_bytes(planted)
        private = exposed.stat().st_mode
        exposed.chmod(private | bits)
        first_call()
        assert not os.path.exists("executed"), exposed
        exposed.chmod(private)
# The harness works: in a private place the same file is trusted.
entry.write_bytes(planted)
first_call()
print(os.path.exists("executed"))
"""


def test_code_that_others_could_have_planted_is_not_loaded(copy):
    assert copy.python(PLANTED)[0] == "True"


def test_private_folder_refuses_what_is_not_ours(tmp_path):
    with pytest.raises(Refused, match="another user"):
        if os.geteuid() != 0:
            PrivateFolder("/usr")
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 12345, 12345)
        PrivateFolder(theirs)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o770)
    with pytest.raises(Refused, match="writable by other users"):
        PrivateFolder(shared)
    link = tmp_path / "link"
    link.symlink_to(PrivateFolder(tmp_path / "own").path)
    with pytest.raises(Refused):
        PrivateFolder(link)


def test_private_folder_closes_to_readers(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    PrivateFolder(folder)
    assert mode(folder) == 0o700


def test_private_folder_reads_no_links_and_no_other_folders(tmp_path):
    folder = PrivateFolder(tmp_path / "own")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder.path / "link").symlink_to(secret)
    folder.write("plain", b"plain")
    assert folder.read("plain") == b"plain"
    assert folder.read("link") is None
    assert folder.read("missing") is None
    folder.write("link", b"new")  # replaces the link, not what it points to
    assert folder.read("link") == b"new" and secret.read_bytes() == b"secret"
    folder.remove("missing")
    folder.remove("plain")
    assert folder.read("plain") is None
    shutil.rmtree(folder.path)
    with pytest.raises(Refused, match="No such file"):
        folder.write("gone", b"")
    assert not folder.path.exists()


def test_old_states_are_removed(tmp_path):
    folder = PrivateFolder(tmp_path / "own")
    for number in range(12):
        os.utime(folder.subfolder(f"state{number}").path, (number, number))
    folder.write("file", b"")
    folder.keep_newest(8)
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(
        ["file"] + [f"state{number}" for number in range(4, 12)]
    )


def test_usual_places_ignore_a_relative_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert all(path.is_absolute() for path in usual_places("name"))


def test_time_of_use_is_recorded(warm):
    state = warm.entries()[0].parent
    states = {path.parent for path in warm.entries()}
    for folder in states:
        os.utime(folder, (1, 1))
    warm.python(FIRST_CALL)
    assert any(folder.stat().st_mtime > time.time() - 600 for folder in states), state


# -- whatever lies where the cache should be ----------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def device(path):
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: reading it never ends


def plain_file(path):
    path.write_bytes(b"something")


def full_folder(path):
    path.mkdir(mode=0o700)
    (path / "file").write_bytes(b"something")


def link_to(target):
    def plant(path):
        path.symlink_to(path.parent / target if target != "itself" else path)

    return plant


def of_another_user(plant):
    def planted(path):
        plant(path)
        os.chown(path, 12345, 12345)

    return planted


def with_mode(bits, plant):
    def planted(path):
        plant(path)
        path.chmod(bits)

    return planted


PLANTS = {
    "pipe": pipe,
    "socket": unix_socket,
    "device": device,
    "file": plain_file,
    "folder": full_folder,
    "link to a folder": link_to("elsewhere"),
    "link to a file": link_to("elsewhere/file"),
    "link to a pipe": link_to("elsewhere/pipe"),
    "link to nothing": link_to("missing"),
    "link to itself": link_to("itself"),
    "another user's file": of_another_user(plain_file),
    "another user's folder": of_another_user(full_folder),
    "file nobody may read": with_mode(0o000, plain_file),
    "folder nobody may enter": with_mode(0o000, full_folder),
    "folder nobody may write to": with_mode(0o500, full_folder),
    "file everybody may write to": with_mode(0o666, plain_file),
}
NEEDS_ROOT = ("device", "another user's file", "another user's folder")


def remove(path):
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        path.chmod(0o700)
        shutil.rmtree(path)


@pytest.fixture
def first_call(monkeypatch, tmp_path):
    """Calls a new driver of this package as a new process would; whether its code was loaded, and
    where the notice would say it is kept.
    """
    monkeypatch.setenv("CPU_KERNELS_CACHE_DIR", str(tmp_path / "given"))
    module = types.ModuleType("cpu_kernels.planted")
    exec("def doubled(x):\n    return 2 * x", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cache, "_place", None)

    def hung(*_):
        raise TimeoutError("waits for what was planted")

    def call():
        cache._place = None
        function = driver(module.doubled)
        signal.alarm(60)
        assert function(1.5) == 3.0
        signal.alarm(0)
        return sum(function.stats.cache_hits.values()) == 1, cache.place().description

    previous = signal.signal(signal.SIGALRM, hung)
    yield call
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.sample(3)
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("kind", PLANTS)
def test_a_call_works_whatever_lies_where_the_cache_should_be(kind, first_call, tmp_path):
    """In the place of the folder given, of ours in it, of the one for this state of the world, of the
    file: and what the notice says is so.
    """
    if kind in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("only root makes devices and files of other users")
    given = tmp_path / "given"
    assert first_call() == (False, f"kept in {given / 'cpu_kernels'}")
    (entry,) = [path for path in given.rglob("*") if path.is_file()]
    for place in (entry, entry.parent, entry.parent.parent, given):
        remove(place)
        elsewhere = place.parent / "elsewhere"
        full_folder(elsewhere)
        pipe(elsewhere / "pipe")
        PLANTS[kind](place)
        loaded, said = first_call()
        assert not loaded and said.startswith(("kept in ", "not kept: ")), place
        assert first_call()[0] == said.startswith("kept in "), (place, said)
        assert (
            (elsewhere / "file").read_bytes() == b"something"
        )  # what a link leads to is left alone, but for a folder of ours in the one given
        remove(place)
        remove(elsewhere)
        barred = kind == "folder nobody may enter" and os.geteuid() != 0  # only root can take it away
        if place == entry and not barred:
            assert said.startswith("kept in ")
        assert first_call()[1].startswith("kept in ")


@pytest.mark.parametrize("kind", ["pipe", "socket", "file", "link to a file", "link to nothing"])
def test_what_was_given_is_named(kind, tmp_path, monkeypatch):
    full_folder(tmp_path / "elsewhere")
    place = tmp_path / "given"
    PLANTS[kind](place)
    monkeypatch.chdir(tmp_path)
    words = "is a link that leads nowhere" if kind == "link to nothing" else "is not a directory"
    for given in (str(place), "given"):
        monkeypatch.setenv("CPU_KERNELS_CACHE_DIR", given)
        assert cache._Place().description == f"not kept: CPU_KERNELS_CACHE_DIR={given} {words}"
    monkeypatch.setenv("CPU_KERNELS_CACHE_DIR", str(place / "deeper"))
    assert (
        cache._Place().description == f"not kept: CPU_KERNELS_CACHE_DIR={place / 'deeper'}: {place} {words}"
    )


NO_ROOM = """
import os, resource
from pathlib import Path
from cpu_kernels import sample
from cpu_kernels.compiler import cache
from cpu_kernels.compiler import notice as compile_notice
from cpu_kernels.compiler.jit import driver
compile_notice.PATIENCE = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, resource.RLIM_INFINITY))
function = driver(sample.powers.py_func)
print(sample.cubes([1, 2, 3], function), sum(function.stats.cache_hits.values()))
print(sorted(path.name for path in Path(cache.place().path).rglob("*") if path.is_file()))
"""


@pytest.mark.parametrize("size", [0, 1000])
def test_no_room_for_code_is_said_and_leaves_nothing_behind(copy, size):
    """A limit on the size of files stands for a full disk: the same call of the system fails."""
    output, notice = copy.python(NO_ROOM.replace("BYTES", str(size)))
    assert output.splitlines() == ["[1.0, 8.0, 27.0] 0", "[]"]
    assert "(not kept: " in notice and "File too large" in notice and len(notice.splitlines()) == 1


def test_kept_code_is_loaded_where_there_is_no_room_for_more(copy):
    assert copy.python(FIRST_CALL)[0] == COMPILED
    output, notice = copy.python(NO_ROOM.replace("BYTES", "0"))
    assert output.splitlines()[0] == "[1.0, 8.0, 27.0] 1" and notice == ""


def test_a_full_disk(copy):
    """A real one, of a few pages, where this user may mount it."""
    copy.cache.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", copy.cache], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("may not mount a file system")
    try:
        (copy.cache / "filler").write_bytes(bytes(4096))
        hurried = (
            "from cpu_kernels.compiler import notice as compile_notice; compile_notice.PATIENCE = "
            f"0; {FIRST_CALL}"
        )
        for _ in range(2):
            output, notice = copy.python(hurried)
            assert output == COMPILED and "(not kept: " in notice and "No space left on device" in notice
        assert [path.name for path in copy.entries()] == ["filler"]
    finally:
        subprocess.run(["umount", copy.cache], check=True)


def test_room_that_goes_while_compiling_is_said_too(copy):
    code = f"""
from cpu_kernels.compiler import notice as compile_notice
from cpu_kernels.compiler import private_folder
compile_notice.PATIENCE = 0
def full(self, name, content):
    raise private_folder.Refused("the disk filled up")
private_folder.PrivateFolder.write = full
{FIRST_CALL}
"""
    output, notice = copy.python(code)
    assert output == COMPILED and len(notice.splitlines()) == 2
    assert notice.splitlines()[1] == "cpu_kernels: compiled code is not kept: the disk filled up"


def test_the_notice_says_nothing_false_about_edited_sources(copy):
    code = """
from cpu_kernels import sample, sample_leaf
from cpu_kernels.compiler import notice as compile_notice
compile_notice.PATIENCE = 0
with open(sample_leaf.__file__, "a") as file:
    file.write("# edited")
sample.cubes([1, 2, 3])
"""
    assert "(not kept: the package's sources" in copy.python(code)[1] and copy.entries() == []


def test_a_relative_folder_in_a_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("CPU_KERNELS_CACHE_DIR", "given")
    assert cache._Place().description.startswith("not kept: ")


def test_no_folder_at_all(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere"])
    for name, value in (("CPU_KERNELS_CACHE_DIR", ""), ("XDG_CACHE_HOME", ""), ("HOME", "/nowhere")):
        monkeypatch.setenv(name, value)
    assert cache._Place().description.startswith("not kept: ")


def test_links_that_editors_leave_beside_sources_do_not_matter(copy):
    copy.source(".#sample.py").symlink_to("me@here.123")
    os.mkfifo(copy.source("pipe.py"))
    assert copy.python(FIRST_CALL)[0] == COMPILED
    assert copy.python(FIRST_CALL)[0] == LOADED
