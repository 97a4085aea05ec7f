"""The file system below the workspaces does what programs expect of one: those of clusters lack what laptops have.

All is tried in a folder of its own in a slot's workspace. A call that never returns is ended; where even that can't be
done, it takes its slot with it, and what follows uses another.
"""

from __future__ import annotations

import re
from shlex import quote

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect, measured
from sifproof.checks.engine.subject import Server, nonce
from sifproof.errors import Fault
from sifproof.nomad.node.script import ProbeError
from sifproof.sandbox.client import ServerError

HANGS_S = 5.0
"""Seconds after which a call that takes milliseconds seems to hang."""

_SLOW_S = 20.0
"""The same for what may have to wait until a busy disk has written all it was given."""

_LONGER_S = 20.0
"""Seconds of a second look at one that seemed to: a busy node may take that long to start an interpreter."""

_LATER_S = 3.0
"""What the server waits longer than the command itself, which ends what hangs more gently."""

_LACKS, _NO_TOOL = "lacks: ", "no tool: "
"""How a script begins the line that says what it found wrong, or that it could not look; else it prints `fine`."""


@check(
    "storage.rename",
    "A file renamed over another replaces it at once, so that no reader finds it missing or empty; a directory can be "
    "renamed over an empty one.",
    why="Editors, git and package managers save that way; a reader in between would see a file that is gone.",
    todo="Put the allocations' directories on a file system with atomic renames, or bind one that has them over /data.",
    blames=Fault.INFRASTRUCTURE,
)
def rename(server: Server) -> Finding:
    return _judge(
        server,
        """
        lacks() { : > done; wait; echo "lacks: $*"; exit; }
        echo 0 > file
        {
            looks=0 misses=0
            while [ ! -e done ]; do
                read -r line < file || misses=$((misses + 1))
                looks=$((looks + 1))
                if [ $looks = 100 ]; then : > enough; fi
            done 2> /dev/null
            echo $looks $misses > seen
        } &
        i=0
        while [ $i -lt 50 ] || { [ ! -e enough ] && [ $i -lt 5000 ]; }; do
            i=$((i + 1))
            echo $i > new && mv -f new file || lacks "a file could not be renamed over another"
        done
        : > done
        wait
        read -r looks misses < seen
        [ -e enough ] || { echo "no tool: the reader was not given time to look"; exit; }
        [ $misses = 0 ] || lacks "a reader found the file missing or empty $misses times in $looks looks"
        mkdir old new && echo inside > old/file || lacks "no directory could be made"
        set -- $(ls -di old); before=$1
        if mv --help 2>&1 | grep -q -e -T; then over="mv -T"; else rmdir new; over=mv; fi
        $over old new || lacks "a directory could not be renamed"
        set -- $(ls -di new)
        [ $before = $1 ] || lacks "a directory was copied, not renamed: inode $before became $1"
        read -r line < new/file && [ "$line" = inside ] || lacks "a renamed directory lost its file"
        echo "fine: $i renames, $looks looks"
        """,
        hangs_s=_SLOW_S,
    )


@check(
    "storage.fsync",
    "`fsync` of a file and of a directory returns, without an error.",
    why="Databases and git call it before they believe that something is written, and stop where it fails.",
    todo="Mount the file system of the allocations so that fsync is passed on, or choose another for them.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def fsync(server: Server) -> Finding:
    return _judge_with(server, _FSYNC, hangs_s=_SLOW_S)


_FSYNC = {
    "python3": """
import os
try:
    for what, path, how in ("a file", "file", os.O_WRONLY | os.O_CREAT), ("a directory", ".", os.O_RDONLY):
        there = os.open(path, how)
        if how & os.O_CREAT:
            os.write(there, bytes(16384))
        os.fsync(there)
    print("fine")
except OSError as error:
    print(f"lacks: {what}: {error}")
""",
    "perl": """
use IO::Handle;
sub lacks { print "lacks: @_\\n"; exit }
open my $file, ">", "file" or lacks("a file: $!");
print $file "x" x 16384;
$file->flush && $file->sync or lacks("a file: $!");
open my $directory, "<", "." or lacks("a directory: $!");
$directory->sync or lacks("a directory: $!");
print "fine\\n";
""",
    # An older `sync` (of coreutils or busybox) knows no files, and would wait for every disk of the node.
    "sync": f"""
        sync --help 2>&1 | grep -q FILE || {{ echo "{_NO_TOOL}python3, perl, sync of single files"; exit; }}
        lacks() {{ echo "lacks: $1: $(head -n 1 said)"; exit; }}
        dd if=/dev/zero of=file bs=4096 count=4 conv=fsync 2> said || lacks "a file"
        sync . 2> said || lacks "a directory"
        echo fine
        """,
}

_FLOCK = {
    "flock": """
        exec 9> file 8> file
        flock -n 9 2> said || { echo "lacks: a lock can't be taken: $(cat said)"; exit; }
        if flock -n 8 2> said; then echo "lacks: two had the exclusive lock at once"; exit; fi
        [ ! -s said ] || { echo "lacks: a lock can't be asked for: $(cat said)"; exit; }
        flock -u 9
        flock -n 8 2> said || { echo "lacks: a lock that was given back can't be taken: $(cat said)"; exit; }
        echo fine
        """,
    "python3": """
import fcntl
one, two = open("file", "w"), open("file", "w")
def take(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
try:
    assert take(one), "a lock can't be taken"
    assert not take(two), "two had the exclusive lock at once"
    fcntl.flock(one, fcntl.LOCK_UN)
    assert take(two), "a lock that was given back can't be taken"
    print("fine")
except (OSError, AssertionError) as error:
    print("lacks:", error)
""",
    "perl": """
use Fcntl ":flock";
sub lacks { print "lacks: @_\\n"; exit }
open my $one, ">", "file" and open my $two, ">", "file" or lacks("a file can't be opened: $!");
flock($one, LOCK_EX | LOCK_NB) or lacks("a lock can't be taken: $!");
lacks("two had the exclusive lock at once") if flock($two, LOCK_EX | LOCK_NB);
flock($one, LOCK_UN);
flock($two, LOCK_EX | LOCK_NB) or lacks("a lock that was given back can't be taken: $!");
print "fine\\n";
""",
}

_FCNTL = {
    "python3": """
import fcntl, os
file = open("file", "w")
def other_gets_it():
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        fcntl.lockf(open("file", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        os._exit(0)
    finally:
        os._exit(1)
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not other_gets_it(), "two processes had the exclusive lock at once"
    fcntl.lockf(file, fcntl.LOCK_UN)
    assert other_gets_it(), "a lock that was given back can't be taken"
    print("fine")
except (OSError, AssertionError) as error:
    print("lacks:", error)
""",
    # struct flock of 64-bit Linux: type, whence, start, length, process.
    "perl": """
use Fcntl;
$| = 1;
sub lacks { print "lacks: @_\\n"; exit }
sub set { fcntl($_[0], F_SETLK, pack("s!s!x4qqix4", $_[1], 0, 0, 0, 0)) }
sub take { open my $file, "+>", "file" or return; set($file, F_WRLCK) && $file }
sub other { my $child = fork; $child or exit !take(); waitpid $child, 0; !$? }
my $file = take() or lacks("a lock can't be taken: $!");
lacks("two processes had the exclusive lock at once") if other();
set($file, F_UNLCK);
other() or lacks("a lock that was given back can't be taken");
print "fine\\n";
""",
}

_SOCKET = {
    "python3": """
import socket
server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
def done(what):
    print(what, flush=True)
try:
    done("bind: begun")
    server.bind("socket")
    server.listen(1)
    done("bind: done; connect: begun")
    client.connect("socket")
    end, _ = server.accept()
    client.sendall(b"word")
    assert end.recv(4) == b"word", "what was sent did not arrive"
    print("fine")
except (OSError, AssertionError) as error:
    print("lacks:", error)
""",
    "perl": """
use Socket;
$| = 1;
sub lacks { print "lacks: @_\\n"; exit }
socket(my $server, PF_UNIX, SOCK_STREAM, 0) and socket(my $client, PF_UNIX, SOCK_STREAM, 0) or lacks("socket: $!");
print "bind: begun\\n";
bind($server, pack_sockaddr_un("socket")) and listen($server, 1) or lacks("bind: $!");
print "bind: done; connect: begun\\n";
connect($client, pack_sockaddr_un("socket")) or lacks("connect: $!");
accept(my $end, $server) or lacks("accept: $!");
syswrite($client, "word"); sysread($end, my $word, 4);
print $word eq "word" ? "fine\\n" : "lacks: what was sent did not arrive\\n";
""",
}


@check(
    "storage.flock",
    "`flock` gives an exclusive lock to one at a time, and to the next when it is given back.",
    why="Package managers and build tools guard their caches by it: refused, it stops them; given to all, it corrupts "
    "what they keep.",
    todo="Mount the file system with locks (Lustre: `-o flock`), or put the allocations on another.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def flock(server: Server) -> Finding:
    return _judge_with(server, _FLOCK)


@check(
    "storage.fcntl-locks",
    "A POSIX lock (`fcntl`) is given to one process at a time, and to the next when it is given back.",
    why="SQLite, and all that keeps its state in it, stops without such locks, or loses data where all get one.",
    todo="Mount the file system with locks (Lustre: `-o flock`; NFS: with its lock daemon), or put the allocations on "
    "another.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def fcntl_locks(server: Server) -> Finding:
    return _judge_with(server, _FCNTL)


@check(
    "storage.unix-sockets",
    "A Unix socket can be bound in a workspace, and connected to.",
    why="Terminal multiplexers, language servers and key agents talk over them; on some parallel file systems the call "
    "neither fails nor ever returns, and they hang with it.",
    todo="Point what makes sockets at a tmpfs of the container (`TMUX_TMPDIR`, `XDG_RUNTIME_DIR`), and make the check "
    "advisory; or put the allocations on another file system.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def unix_sockets(server: Server) -> Finding:
    return _judge_with(server, _SOCKET)


@check(
    "storage.fifos",
    "A FIFO can be made, and what one process writes to it another reads.",
    why="Shell scripts and test runners pass streams through them.",
    todo="Let scripts make FIFOs in a tmpfs of the container, or put the allocations on another file system.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def fifos(server: Server) -> Finding:
    return _judge(
        server,
        """
        command -v mkfifo > /dev/null || { echo "no tool: the image has no mkfifo"; exit; }
        mkfifo fifo 2> said || { echo "lacks: $(cat said)"; exit; }
        echo word > fifo &
        read -r line < fifo
        wait
        if [ "$line" = word ]; then echo fine; else echo "lacks: what was written did not arrive"; fi
        """,
    )


@check(
    "storage.symlinks",
    "A symbolic link can be made, is read as it was made, and is followed.",
    why="Virtual environments, node_modules and shared libraries consist of them.",
    todo="Mount the file system with symbolic links, or put the allocations on another.",
    blames=Fault.INFRASTRUCTURE,
)
def symlinks(server: Server) -> Finding:
    return _judge(
        server,
        """
        echo word > file
        ln -s file link 2> said && ln -s nowhere dangling 2> said || { echo "lacks: $(cat said)"; exit; }
        [ "$(readlink link) $(readlink dangling)" = "file nowhere" ] ||
            { echo "lacks: the links file and nowhere lead to $(readlink link) and $(readlink dangling)"; exit; }
        read -r line < link && [ "$line" = word ] || { echo "lacks: a link is not followed"; exit; }
        echo fine
        """,
    )


@check(
    "storage.hard-links",
    "A file can have a second name, which holds the same content and keeps it when the first is removed.",
    why="git clones, package caches and backups save space by them.",
    todo="Tell the tools to copy (`uv --link-mode copy`, `git clone --no-hardlinks`), and make the check advisory; or "
    "put the allocations on another file system.",
    blames=Fault.INFRASTRUCTURE,
)
def hard_links(server: Server) -> Finding:
    return _judge(
        server,
        """
        echo one > file
        ln file link 2> said || { echo "lacks: $(cat said)"; exit; }
        echo two >> file
        set -- $(ls -l link); links=$2
        rm file
        { read -r first; read -r second; } < link
        if [ "$first $second $links" = "one two 2" ]; then echo fine
        else echo "lacks: the second name has $links links and holds '$first $second' after 'one two' in the first"; fi
        """,
    )


@check(
    "storage.case",
    "Names that differ only in case name different files.",
    why="Source trees hold such names; where they are one, a checkout overwrites one file with the other.",
    todo="Turn case folding off for the directory of the allocations, or put them on another file system.",
    blames=Fault.INFRASTRUCTURE,
)
def case(server: Server) -> Finding:
    return _judge(
        server,
        """
        echo lower > name
        echo upper > NAME
        set -- *
        { read -r lower < name; read -r upper < NAME; } 2> /dev/null
        if [ "$# $lower $upper" = "2 lower upper" ]; then echo fine
        else echo "lacks: the files name and NAME are $# file(s), and hold '$lower' and '$upper'"; fi
        """,
    )


_ENOUGH_FILES = 100


@check(
    "storage.small-files",
    "Small files are made and written as fast as the limit of the config demands, and all of them are there.",
    why="An installation or a checkout is ten thousand small files: at 100 a second it takes two minutes.",
    todo="Put the allocations on a local disk of the nodes, or on a file system with more metadata servers.",
    blames=Fault.INFRASTRUCTURE,
    unit="/s",
    at_least=True,
    limit_judges=True,
)
def small_files(server: Server) -> Finding:
    said = _fine(
        server,
        """
        now() { read -r now rest < /proc/uptime; now=${now%.*}${now#*.}; }
        now; start=$now made=0
        while [ $made -lt 5000 ]; do
            i=0
            while [ $i -lt 20 ]; do
                i=$((i + 1)) made=$((made + 1))
                echo content > f$made || { echo "lacks: file number $made could not be written"; exit; }
            done
            now
            spent=$((now - start))
            if [ $spent -ge 30 ] && [ $made -ge 200 ]; then break; fi
            if [ $spent -ge 500 ] && [ $made -ge 100 ] || [ $spent -ge 3000 ]; then break; fi
        done
        set -- f*
        there=$#
        lines=$(cat f* | wc -l)
        if [ $there = $made ] && [ $((lines)) = $made ]; then echo "fine: $made $spent"
        else echo "lacks: of $made files $there are there, with $lines lines"; fi
        """,
        hangs_s=2 * _SLOW_S,
    )
    if isinstance(said, Finding):
        return said
    made, hundredths = map(int, said.split())
    if made < _ENOUGH_FILES:
        raise NotMeasured(f"only {made} files were written in {hundredths / 100:.1f} s: too few to tell")
    # The clock of the node counts hundredths: what takes less than one is at least as fast as this.
    seconds = max(hundredths, 1) / 100
    return measured(made / seconds, f"{made} files in {seconds:.2f} s")


_COUNTED = re.compile(r"(\d+) (\d+) (\d+) (\d+)")


def _count(server: Server) -> tuple[int, int, int]:
    """Free bytes, inodes in all and free ones, as a command in a workspace sees them."""
    said = _fine(server, "echo fine: $(stat -f -c '%a %S %c %d' .)")
    found = _COUNTED.fullmatch(said) if isinstance(said, str) else None
    if not found:
        raise NotMeasured(f"`stat -f` did not tell: {said}")
    blocks, size, inodes, free = map(int, found.groups())
    return blocks * size, inodes, free


@check(
    "storage.free-space",
    "The file system of the workspaces has as much space left as the limit of the config demands.",
    why="An agent that fills the disk fails in ways that look like its own mistakes.",
    todo="Free space on the node, or put the allocations on a larger file system.",
    blames=Fault.INFRASTRUCTURE,
    unit="B",
    at_least=True,
    limit_judges=True,
)
def free_space(server: Server) -> Finding:
    space, _, _ = _count(server)
    return measured(space, f"{space / 1e9:.2f} GB free")


@check(
    "storage.free-inodes",
    "The file system of the workspaces can take as many more files as the limit of the config demands.",
    why='A file system without free inodes says "No space left on device" while `df` shows plenty.',
    todo="Remove files, or have the quota of files raised.",
    blames=Fault.INFRASTRUCTURE,
    unit="files",
    at_least=True,
    limit_judges=True,
)
def free_inodes(server: Server) -> Finding:
    _, inodes, free = _count(server)
    if not inodes:
        raise NotApplicable("the file system has no fixed number of inodes")
    return measured(free, f"{free} of {inodes} inodes free")


def _judge(server: Server, script: str, *, hangs_s: float | None = None) -> Finding:
    said = _fine(server, script, hangs_s=hangs_s)
    return said if isinstance(said, Finding) else expect(True, said)


def _judge_with(server: Server, programs: dict[str, str], *, hangs_s: float | None = None) -> Finding:
    """The finding of the first of ``programs``, a text each by the tool that runs it, that the image has.

    Where it has none, the node is asked, on the same directory.
    """
    ways = [f"if command -v {tool} > /dev/null; then {_run(tool, text)}" for tool, text in programs.items()]
    script = "\nel".join(ways) + f"\nelse echo '{_NO_TOOL}{', '.join(programs)}'; fi"
    try:
        return _judge(server, script, hangs_s=hangs_s)
    except NotMeasured as reason:
        said = _on_node(server, script)
        if said.startswith(_NO_TOOL):
            raise NotMeasured(f"{reason}; nor has the node") from None
        return expect(not said.startswith(_LACKS), f"{said} (the node's own programs, on the workspace's directory)")


def _run(tool: str, text: str) -> str:
    """The shell command that runs ``text`` with ``tool``."""
    options = {"python3": "-c", "perl": "-e"}
    return f"{tool} {options[tool]} {quote(text)}" if tool in options else text


def _on_node(server: Server, script: str) -> str:
    """The last line that ``script`` prints on the node, in a folder of a workspace."""
    placed, name = server.placed, nonce()
    # The directories of a node's allocations lie side by side.
    folder = f'"${{NOMAD_ALLOC_DIR%/*/*}}"/{quote(f"{placed.allocation.id}/alloc/data/{server.workspace(-1)}")}'
    try:
        said = placed.node.run(
            f"cd {folder} && mkdir {name} && cd {name} || exit\n"
            f"timeout -s KILL {_LONGER_S:g} sh -c {quote(script)} || echo '{_LACKS}no return within {_LONGER_S:g} s'\n"
            f"cd .. && rm -rf {name}"
        )
    except ProbeError as error:
        raise NotMeasured(f"the image has no program to try it with, and the node can't be asked: {error}") from None
    return said.strip().rpartition("\n")[2]


def _fine(server: Server, script: str, *, hangs_s: float | None = None) -> str | Finding:
    """What ``script`` said of what it found in order, or a finding that it lacks something.

    Raises :class:`NotMeasured` where it could not look.
    """
    for within_s in (hangs_s,) if hangs_s else (HANGS_S, _LONGER_S):
        slot, name = _free_slot(server), nonce()
        end = f"timeout -s KILL {within_s:g}"
        command = (
            f"mkdir {name} && cd {name} || exit\n"
            f"end=; if command -v timeout > /dev/null; then end='{end}'; fi\n"
            f"$end sh -c {quote(script)} < /dev/null\n"
            f"code=$?; cd .. && $end rm -rf -- {name}; exit $code"
        )
        try:
            result = server.bash(command, slot=slot, timeout_s=within_s + _LATER_S)
        except ServerError as error:
            if error.status is not None:
                raise
            return expect(False, f"it did not return, and could not be ended: {error}; {server.slot(slot)} is lost")
        hung = result.metadata.get("timeout") is True or result.exit_code in (137, -9)
        if not hung:
            break
    lines = [line for line in result.output.partition("[stderr]")[0].splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    if hung:
        where = f" (last seen: {last})" if last else ""
        return expect(False, f"it did not return within {within_s:g} s, and was ended{where}")
    if last.startswith(_NO_TOOL):
        raise NotMeasured(f"the image has none of {last.removeprefix(_NO_TOOL)}" if "," in last else last)
    if last.startswith(_LACKS) or not (result.success and last.startswith("fine")):
        return expect(False, last.removeprefix(_LACKS) if last.startswith(_LACKS) else result)
    return last.removeprefix("fine").removeprefix(":").strip()


def _free_slot(server: Server) -> int:
    """The last slot that is not busy: a call that could not be ended keeps its slot, and the first has most to do."""
    idle = server.idle()
    if not idle:
        raise NotMeasured("every slot is still executing something")
    return idle[-1]
