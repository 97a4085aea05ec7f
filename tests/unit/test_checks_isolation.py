"""What counts as a leak and as a limit, and the script that plants markers where a file system hangs."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer

import pytest
from checkout import wait_until

from sifproof import host_tools
from sifproof.checks.engine.registry import NotApplicable, NotMeasured
from sifproof.checks.isolation import scripts
from sifproof.checks.isolation.host import far_directories, judge_devices, judge_place
from sifproof.checks.isolation.planted import Planted, Said, is_ordinary, look_at_environment
from sifproof.checks.isolation.slot import Greed, Limits, LockedIn
from sifproof.errors import Fault
from sifproof.sandbox.client import Result


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijKLMNOPqrstuvwx",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "gho_16C7e42F292c6912E7710c838347Ae178B4a",
        "npm_abcdefghijklmnop",
        "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        "s.iyNUhq8Ov4hIAx6snw5mB2nL",
        "hvs.CAESIJlWhXqLAdcPqKlTrTLmDkYp",
        "abcdefghijklmnopqrst",
        "91827364554637281900",
        ".hidden-value",
        "en_US.secretofmine",
        "C.abcdefghijkl",
    ],
)
def test_a_value_that_looks_like_a_secret_counts(secret):
    assert not is_ordinary(secret)


@pytest.mark.parametrize(
    "value",
    [
        *("short", "C.UTF-8", "POSIX", "de_DE.UTF-8", "en_US.utf8", "de_DE.ISO-8859-15@euro", "en_US:en"),
        *("/usr/share/somewhere", "./relative/path", "~/bin/tools", "~user/bin"),
        *("noninteractive", "truecolor", "2024-01-01 12:00:00", "3.11.2.1", "127.0.0.1,10.0.0.1", "1700000000"),
    ],
)
def test_what_machines_have_in_common_by_chance_does_not(value):
    assert is_ordinary(value)


def test_a_value_of_many_marks_is_judged_at_once():
    start = time.monotonic()
    is_ordinary("-" * 5000 + "x")
    assert time.monotonic() - start < 60  # one that tries every way of taking them apart takes for ever


# --- exhaustion


def answer(*lines: str, **more) -> Result:
    return Result(success=more.pop("success", True), output="\n".join(lines), **more)


def test_all_of_it_taken_is_no_limit_met():
    finding = Greed(answer("took all"), calls=3, during=2).finding("took 5", "", "no limits")
    assert finding.passed
    assert (
        finding.saw
        == "slot 0 took 5 and met no limit; 3 calls of slot 1 answered, 2 of them at the height of it; " + ("no limits")
    )


@pytest.mark.parametrize(
    "greedy",
    [
        answer("wrote 0"),
        answer("[stderr]", "head: cannot open '/dev/zero' for reading: No such file or directory", "0"),
        answer("[stderr]", "bash: line 1: file: Permission denied"),
        answer(success=False, error="Command timed out after 5s", metadata={"timeout": True, "exit_code": -1}),
        answer("tail ended with 0", "took 0"),
    ],
)
def test_a_command_that_failed_for_another_reason_met_no_limit(greedy):
    with pytest.raises(NotMeasured, match="slot 0 could take nothing"):
        Greed(greedy, calls=3).finding("took 5", "", "")


@pytest.mark.parametrize(
    "greedy",
    [
        answer("head: error writing 'standard output': No space left on device"),
        answer("bash: fork: retry: Resource temporarily unavailable", success=False),
        answer("tail ended with 137", "took 0"),
        answer(success=False, metadata={"exit_code": 137}, error="Exit code: 137"),
        answer(success=False, metadata={"exit_code": -9}),
    ],
)
def test_words_and_codes_of_a_limit_are_one(greedy):
    finding = Greed(greedy, calls=3).finding("took 5", "", "")
    assert finding.passed
    assert "slot 0 was stopped, and met a limit" in finding.saw


def test_what_was_taken_of_it_is_told():
    saw = Greed(answer(success=False, error="Command timed out"), calls=3).finding("", "started 20 processes", "").saw
    assert saw.startswith("slot 0 started 20 processes and no more: Command timed out")


def test_trouble_of_the_other_fails_whatever_was_taken():
    finding = Greed(answer(), trouble=["gone"]).finding("took 5", "", "")
    assert not finding.passed
    assert "meanwhile: gone" in finding.saw


@pytest.mark.parametrize(
    ("least", "nothing", "said"),
    [
        ({"a": None, "b": None}, "", "the node sets no limit to it (a unlimited, b unlimited)"),
        ({"a": 2048, "b": None}, "", "the node's limits to it: a 2, b unlimited"),
        ({"b": None}, "no look", "what the node allows of it could not be read (b unlimited; no look)"),
        ({"b": 1024}, "no look", "the node's limits to it: b 1"),
        ({}, "no look", "what the node allows of it could not be read (no look)"),
    ],
)
def test_what_the_node_allows_is_said_in_a_sentence(least, nothing, said):
    assert Limits(least, None, nothing).of("it", "a", "b", unit=1024).startswith(said)


# --- what is planted on the node


def hung(path: str) -> None:
    """Mount a file system that nobody serves, in a mount name space of the caller's own; who looks at it waits."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user:
        if libc.unshare(0x10000000):  # a user name space, where an ordinary user may mount
            os._exit(98)
        for file, text in (("uid_map", f"{user} {user} 1"), ("setgroups", "deny"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", file).write_text(text)
    fuse = os.open("/dev/fuse", os.O_RDWR)  # in the name space that it is mounted in
    options = f"fd={fuse},rootmode=40000,user_id={user},group_id={group}".encode()
    if (
        libc.unshare(0x20000)
        or libc.mount(b"none", b"/", None, 0x44000, None)
        or libc.mount(b"hung", path.encode(), b"fuse", 0, options)
    ):
        os._exit(99)
    os.set_inheritable(fuse, True)  # while it is open, there might be an answer


@contextlib.contextmanager
def planting(folder: Path, **more):
    """The script that plants, as Nomad would run it, and the word that its markers have."""
    own = folder / "allocations" / "own"
    (own / "alloc").mkdir(parents=True)
    (folder / "secrets").mkdir()
    (folder / "home").mkdir()
    (folder / "allocations" / "box" / "alloc" / "data" / "slot_0").mkdir(parents=True)
    mark = secrets.token_hex(12)
    script = scripts.plant(mark, allocation="box", task="server", workspace="slot_0")
    environment = {
        **os.environ,
        "NOMAD_ALLOC_DIR": str(own / "alloc"),
        "NOMAD_SECRETS_DIR": str(folder / "secrets"),
        "HOME": str(folder / "home"),
        **more.pop("env", {}),
    }
    process = subprocess.Popen(
        [*more.pop("below", ()), "sh", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    # Whoever waits for a word of a script that hangs sees the end of its output instead.
    with contextlib.closing(process.stdout):
        late = Timer(120, end)
        late.start()
        try:
            yield process, mark
        finally:
            # It takes its markers away, unless it is killed.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            late.cancel()
            late.join()
            end()
            process.wait()


def said_before(process, word: str) -> list[str]:
    lines = []
    for line in process.stdout:
        if line.partition("\t")[0].strip() == word:
            return lines
        lines.append(line.rstrip("\n"))
    raise AssertionError(lines)


def markers(lines: list[str], mark: str) -> list[Path]:
    places = [Path(line.partition(" ")[2]) for line in lines if line.startswith("place\t")]
    assert {path.name.removeprefix(f".sifproof-{mark}-") for path in places} >= {"home", "tmp", "allocations"}
    return places


def test_markers_are_planted_and_cleared_away(tmp_path):
    with planting(tmp_path) as (process, mark):
        lines = said_before(process, "planted")
        places = markers(lines, mark)
        assert all(path.read_text() == f"sifproof-{mark}\n" for path in places)
        assert any(line.startswith("directory\t") for line in lines)
        process.terminate()
        assert process.wait(60) == 0
        assert [path for path in places if path.exists()] == []


def test_the_clients_state_is_found_wherever_its_allocations_are(tmp_path):
    """By the file that the agent, above the script, has open."""
    agent, state = tmp_path / "nomad", tmp_path / "elsewhere" / "client"
    agent.symlink_to(shutil.which("bash"))
    state.mkdir(parents=True)
    holds = [agent, "-c", 'exec 9> "$0/state.db"; "$@" & trap "kill $!; wait $!" TERM; wait $!', state]
    with planting(tmp_path, below=holds, cwd=tmp_path) as (process, mark):
        lines = said_before(process, "planted")
        marker = state / f".sifproof-{mark}-nomad-data"
        there = {path for path in markers(lines, mark) if path.name == marker.name}
        assert there == {marker, tmp_path / marker.name}
        assert marker.exists()
        process.terminate()
        process.wait(60)
        assert not marker.exists()


def test_a_file_system_of_the_network_that_hangs_is_not_looked_at(tmp_path):
    """On a directory of the root, where nothing of the test lies; the machine does not see the mount."""
    empty = (path for path in map(Path, ("/mnt", "/media", "/srv", "/opt")) if path.is_dir())
    point = str(next(path for path in empty if not tmp_path.resolve().is_relative_to(path)))
    with planting(tmp_path, preexec_fn=lambda: hung(point), close_fds=False) as (process, mark):
        lines = said_before(process, "planted")
        (far,) = [line.split() for line in lines if line.startswith("far\t")]
        assert far[2:] == ["/", point, point]
        assert any(line.endswith(" /usr") for line in lines if line.startswith("directory\t"))
        process.terminate()
        assert process.wait(60) == 0
        assert [path for path in markers(lines, mark) if path.exists()] == []


def test_markers_go_while_something_hangs(tmp_path):
    """As a program does that waits for a disk: it does not hear that it is told to end."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("stat", "ipcmk"):
        (programs / name).write_text("#!/bin/sh\ntrap '' TERM\nsleep 600\n")
        (programs / name).chmod(0o755)
    with planting(tmp_path, env={"PATH": f"{programs}:{os.environ['PATH']}"}) as (process, mark):
        lines = said_before(process, "ipc-namespace")
        places = markers(lines, mark)
        os.killpg(process.pid, signal.SIGTERM)
        wait_until(lambda: not any(path.exists() for path in places))


VARIABLES = {
    "APPTAINERENV_DB_PASSWORD": "correcthorse",
    "KEY_FILE": "/srv/keys/of-the-node",
    "PIN": "20231117",
    "API_TOKEN": "hf_abcdefghijKLMNOPqrstuvwx",
    "CITY": "Münsöüä",
    "SHORT": "false",
    "DEBIAN_FRONTEND": "noninteractive",
}
SEEN = {name.removeprefix("APPTAINERENV_"): value for name, value in VARIABLES.items()}


@pytest.fixture
def in_utf8(monkeypatch):
    """A locale in which the city has seven characters, not eleven bytes: a short value to grep(1)."""
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")


@pytest.mark.usefixtures("in_utf8")
@pytest.mark.parametrize(
    ("seen", "own", "leaked", "known"),
    [
        (SEEN, set(), {"DB_PASSWORD", "KEY_FILE", "PIN", "API_TOKEN", "CITY"}, 5),
        ({}, set(), set(), 5),
        # A word tells nothing of a leak under another name, a token does.
        ({"OTHER": "correcthorse"}, set(), set(), 5),
        ({"OTHER": VARIABLES["API_TOKEN"]}, set(), {"OTHER (the value of API_TOKEN)"}, 5),
        # Nor under its own, where the image may set it; what can't be found is not counted.
        (SEEN, {"DB_PASSWORD"}, {"KEY_FILE", "PIN", "API_TOKEN", "CITY"}, 4),
        (SEEN, None, {"API_TOKEN", "CITY"}, 2),
    ],
)
def test_values_that_anything_may_have_are_compared_by_name_too(tmp_path, seen, own, leaked, known):
    with planting(tmp_path, env=VARIABLES) as (process, mark):
        node = Said("\n".join([*said_before(process, "planted"), "end"]), "end", "node")
    inside = Said("own\tfound\nend", "end", "slot")
    values = {}
    for name, value in seen.items():
        values.setdefault(value, []).append(name)
    whole = Planted(inside, node, inside, "", inside, mark, values, None if own is None else frozenset(own))
    found, count = whole.leaked()
    kinds = ("variable",) if own is None else ("variable", "ordinary")
    lines = {line for kind in kinds for line in node[kind]}
    others = {line.split()[0] for line in lines if line.split()[1] not in SEEN}  # of what runs the tests
    assert (set(found), count - len(others)) == (leaked, known)


def found(*lines: str, seen: str = "") -> Planted:
    """What was planted where the node says ``lines``; of it ``seen`` is what the slot says."""
    node = Said("\n".join([*lines, "end"]), "end", "node")
    inside = Said(f"own\tfound\n{seen}\nend", "end", "slot")
    return Planted(inside, node, Said("arrived\town found\nend", "end", "node"), "", inside, "", {})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("home", "closed\thome /var/lib/nomad"),
        ("home", "absent\thome /nonexistent"),
        ("home", "nothing\t"),
        ("dev-shm", "absent\tdev-shm /dev/shm"),
    ],
)
def test_nothing_can_be_left_where_there_is_no_directory_of_the_user(name, line):
    with pytest.raises(NotApplicable):
        judge_place(name, found(line))


def test_a_directory_that_may_not_be_written_could_not_be_looked_at():
    with pytest.raises(NotMeasured, match="nothing could be planted: /var/tmp") as caught:
        judge_place("var-tmp", found("closed\tvar-tmp /var/tmp"))
    assert not isinstance(caught.value, NotApplicable)


def test_one_of_two_directories_is_told():
    finding = judge_place("workdir", found("place\tworkdir /a/.mark", "closed\tworkdir /b"))
    assert finding.passed
    assert finding.saw.endswith(": /a; not looked at, for the client's user may not write there: /b")


@pytest.mark.parametrize(
    ("binds", "fault"),
    [
        (["/data:/data"], None),
        (["/root:/elsewhere"], None),
        (["/root:/srv:ro"], Fault.CONFIGURATION),
        (["/:/"], Fault.CONFIGURATION),
    ],
)
def test_what_the_config_binds_is_its_own_matter(binds, fault):
    there = found("place\thome /root/.mark", seen="visible\thome /srv/.mark")
    finding = judge_place("home", there, binds)
    assert (finding.passed, finding.fault) == (False, fault)
    assert judge_place("home", found("place\thome /root/.mark"), binds).fault is None


@pytest.mark.parametrize(
    ("lines", "green"),
    [
        (["mknod\t8 0"], True),
        (["CapEff\t0", "map\t0 0 4294967295"], True),
        (["CapEff\tffffffffff", "map\t0 1000 1"], True),
        (["CapEff\tffffffffff", "map\t0 0 4294967295"], False),
    ],
)
def test_a_device_that_could_be_made_has_to_be_tried(lines, green):
    said = Said("\n".join([*lines, "end"]), "end", "slot")
    if green:
        assert judge_devices(said).passed
        assert not judge_devices(Said("\n".join([*lines, "device\t/dev/sda", "end"]), "end", "slot")).passed
    else:
        with pytest.raises(NotMeasured, match="mknod"):
            judge_devices(said)


class Shell:
    """A slot that has no programs but those in a folder, and sees its own processes alone."""

    placement = None

    def __init__(self, folder: Path, *programs: str) -> None:
        self.folder = folder
        for name in programs:
            (folder / name).symlink_to(shutil.which(name))

    def bash(self, command: str) -> Result:
        user = [] if os.geteuid() == 0 else ["--map-current-user"]
        alone = ["unshare", *user, "--pid", "--fork", "--mount-proc", shutil.which("sh"), "-c", command]
        variables = {"PATH": str(self.folder), "GIVEN": "hf_abcdefghijKLMNOPqrstuvwx"}
        done = subprocess.run(alone, env=variables, capture_output=True, text=True, check=False)
        return Result(success=done.returncode == 0, output=done.stdout)


def test_a_search_that_does_not_find_its_own_variable_is_none(tmp_path):
    needed = ("unshare", "cat", "tr", "cut", "sort", "head")
    (tmp_path / "whole").mkdir()
    found = look_at_environment(Shell(tmp_path / "whole", *needed, "env"))
    assert found["hf_abcdefghijKLMNOPqrstuvwx"] == ["GIVEN"]
    for lacking in ("cut", "sort", "head"):
        (tmp_path / lacking).mkdir()
        found = look_at_environment(Shell(tmp_path / lacking, *{*needed, "env"} - {lacking}))
        assert isinstance(found, NotMeasured)
        assert "does not find one of its own" in str(found)


@pytest.mark.parametrize(
    ("mount", "given", "seen"),
    [
        ("0:50 /export/home /home", [], ["/home"]),
        ("0:50 /export/home/ann /somewhere\\040else", [], ["/somewhere else"]),
        ("0:50 / /all", [], ["/all"]),
        ("0:50 /export/home /home", ["/home/ann"], []),
        ("0:50 /export/home /home", ["/home"], []),
        ("0:50 /export/home/bob /home", [], []),
        ("0:50 /export/home/ann/allocation/data /data", [], []),
        ("0:51 /export/home /home", [], []),
    ],
)
def test_what_comes_over_the_network_is_told_by_its_mount(mount, given, seen):
    node = Said("far\t0:50 /export/home /home /home/ann\nend", "end", "node")
    inside = Said(f"far\t{mount}\nfar\t0:20 / /proc\nend", "end", "slot")
    assert far_directories(node, inside, given) == [(path, "/home/ann") for path in seen]


# --- who asks Nomad


class Api(BaseHTTPRequestHandler):
    """Answers one path and no other, as Nomad does to somebody without a token."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200 if self.path in ("/health", "/v1/jobs") else 403)
        self.end_headers()

    def do_POST(self):
        self.send_response(200 if self.rfile.read(int(self.headers["Content-Length"])) == b'{"a": 1}' else 400)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


BUSYBOX = host_tools.root() / "debian/busybox/usr/bin/busybox"
# Not what a PATH has by the name of python3, which may be a script that looks for one.
TOOLS = {"bash": None, "python3": Path(sys.executable).resolve(), "wget": BUSYBOX, "nc": BUSYBOX}
# Set-up brings neither of these: they are tried where the machine has them.
TOOLS |= {f"{name} of the machine": place for name in ("curl", "wget") if (place := shutil.which(name))}


def asked(folder: Path, name: str, port: int, own_port: int) -> Said:
    """What the script says where there is no other program than that of ``TOOLS`` to ask with."""
    tool = name.partition(" ")[0]
    for other in ("cat", "head", "sed", "timeout", "rm", "sleep"):
        (folder / other).symlink_to(shutil.which(other))
    (folder / tool).symlink_to(TOOLS[name] or shutil.which(tool))
    script = scripts.ask(
        own_host="127.0.0.1",
        own_port=own_port,
        targets=[f"http://127.0.0.1:{port}"],
        gateway="",
        job="j",
        plan='{"a": 1}',
    )
    done = subprocess.run(
        [shutil.which("sh"), "-c", script],
        env={"PATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return Said(done.stdout, "end", done.stderr)


@pytest.mark.parametrize("tool", TOOLS)
def test_each_program_gets_the_same_answers(tmp_path, api, tool):
    said = asked(tmp_path, tool, api, api)
    assert said.one("way") == tool.partition(" ")[0]
    answers = {line.split()[2]: line.split()[4] for line in said["answer"]}
    assert answers == {"/v1/jobs": "200", "/v1/nodes": "403", "/v1/agent/self": "403", "/v1/job/j/plan": "200"}


def test_who_reaches_nobody_is_told_from_who_has_nothing_to_ask_with(tmp_path, api):
    (tmp_path / "with").mkdir()
    said = asked(tmp_path / "with", "python3", api, 1)
    assert said.one("way") == "python3"
    assert said["cut"]
    assert "200" in said["answer"][0]  # it is asked all the same
    (tmp_path / "without").mkdir()
    without = asked(tmp_path / "without", "nc", api, 1)
    assert not without.one("way")
    assert not without["answer"]


BOTH = {"slot_0", "slot_1"}


@pytest.mark.parametrize(
    ("before", "after", "passed", "said"),
    [
        (LockedIn(BOTH, []), LockedIn(BOTH, []), True, "2 slots sandboxed, 2 before; slot 1 reads nothing of slot 0"),
        (LockedIn(set(), []), LockedIn(set(), []), True, "0 slots sandboxed, 0 before"),
        (LockedIn(set(), []), LockedIn(BOTH, []), True, "2 slots sandboxed, 0 before"),
        (LockedIn(BOTH, []), LockedIn({"slot_1"}, []), False, "a command of slot_0 is not sandboxed any more"),
        (LockedIn(BOTH, []), LockedIn(BOTH, ["by /data"]), False, "slot 1 reads slot 0's file: by /data"),
        (LockedIn(set(), []), LockedIn(set(), ["by /data"]), False, "slot 1 reads slot 0's file: by /data"),
        (LockedIn(BOTH, ["by /data"]), LockedIn(BOTH, ["by /data"]), True, "reads what it did before of slot 0"),
    ],
)
def test_commands_are_locked_in_as_before(before, after, passed, said):
    found = before.still(after)
    assert (found.passed, said in found.saw) == (passed, True), found


def test_what_was_open_before_is_no_news():
    with pytest.raises(NotApplicable, match="before, too: by /data"):
        LockedIn(set(), ["by /data"]).still(LockedIn(set(), ["by /data"]))
