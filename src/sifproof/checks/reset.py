"""``/reset`` gives an empty slot back, and touches no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from shlex import quote

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation.slot import CACHES, TEMPORARY
from sifproof.errors import SifproofError
from sifproof.sandbox.client import Result


@check(
    "reset.empties",
    "After a reset the slot's workspace is there, writable and empty: no hidden file, no nested or read-only "
    "directory, no odd name, no link is left.",
    why="The next agent must find neither the work nor the answers of the last one.",
    todo="Empty the directory with its hidden entries, and make directories writable before removing what is in them.",
)
def empties(server: Server) -> Finding:
    made = server.bash(
        "mkdir -p a/b/c .hidden/deep locked/in && : > a/b/c/file && : > .dot && : > .hidden/deep/file && "
        ": > 'a b' && : > -f && : > \"$(printf 'line\\nbreak')\" && : > locked/in/file && "
        "ln -s /nowhere dangling && ln -s a/b/c link && mkfifo fifo && chmod 555 locked/in && chmod 500 locked"
    )
    if not made.success:
        raise NotMeasured(f"the files to remove could not be made: {made}")
    result = server.client.reset(server.slot())
    left = server.bash("ls -A")
    listed = server.client.artifact("list", server.slot(), ".", recursive=True).get("entries")
    usable = server.bash("echo usable > file && cat file && rm file")
    if left.output.strip():
        server.bash("chmod -R u+rwx . ; find . -mindepth 1 -delete")
    return expect(
        result.success
        and left.success
        and not left.output.strip()
        and listed == []
        and usable.output.strip() == "usable",
        f"reset: {result}; left: {left}; listed: {str(listed)[:200]}; a command that writes: {usable}",
    )


_OPEN = re.compile(r"^drwx", re.MULTILINE)
_TMP = '"${TMPDIR:-/tmp}"'
_WORKS = f"""
ls -ld . && echo usable > file && cat file && rm file
if [ -e kept ]; then echo "still there: kept"; fi
if : > {_TMP}/kept; then rm -f {_TMP}/kept; else echo "/tmp can't be written to"; fi
"""
_ROUNDS = (("000", "bash"), ("000", "bash_stateful"), ("000", ""), ("100", ""), ("555", "bash"))
"""Modes that a command gives to its directories, and the tool of the next command, where one comes before the reset."""


@check(
    "reset.closed",
    "After a command closed its slot's directory, or its `/tmp` where it has one of its own (`chmod 000 .`), the next "
    "command runs, and after a reset both are open for reading and writing, and the directory is empty; so they are "
    "where a command made them read-only.",
    why="One `chmod -R` that goes wrong would else cost a slot, for its agent and for all after it, while `/health` "
    "says ok.",
    todo="Before each command see that the slot's directories can be entered, and let a reset give them their first "
    "mode.",
)
def closed(server: Server) -> Finding:
    # If it is lost, not the one that all the other checks use.
    slot = server.slots - 1
    seen: dict[str, object] = {}
    shell = (
        server.client.execute(server.slot(slot), "bash_stateful", {"command": "exit"}).metadata.get("exit_code") == 0
    )
    own_tmp = has_own_tmp(server, slot)
    with opened_in_the_end(server, slot):
        for mode, tool in _ROUNDS:
            if tool == "bash_stateful" and not shell:
                continue
            made = server.bash(f": > kept; {close(mode, own_tmp=own_tmp)}", slot=slot)
            if not made.success:
                raise NotMeasured(f"a command can't change the mode of its directory: {made}")
            word = f"after `chmod {mode} .`"
            if tool:
                # By its exit code: an answer may be a whole screen.
                after = server.client.execute(server.slot(slot), tool, {"command": "exit 7"})
                if after.exit_code != 7:
                    seen[f"{word} a command of {tool}"] = after
            result = server.client.reset(server.slot(slot))
            works = server.bash(_WORKS, slot=slot)
            if not result.success:
                seen[f"{word} a reset"] = result
            elif "usable" not in works.output or not _OPEN.search(works.output) or _spoilt(works.output, own_tmp):
                seen[f"{word} and a reset"] = works
            if seen:
                break
    return expect(not seen, "; ".join(f"{what}: {saw}" for what, saw in seen.items()) or f"at last: {works}")


def _spoilt(output: str, own_tmp: bool) -> bool:
    return "still there" in output or (own_tmp and "can't be written to" in output)


def close(mode: str = "000", *, own_tmp: bool) -> str:
    """A command that closes its slot's directory, and its /tmp where that is no other's."""
    return f"chmod {mode} {_TMP}; chmod {mode} ." if own_tmp else f"chmod {mode} ."


def has_own_tmp(server: Server, slot: int) -> bool:
    """Whether a command of the slot may close its /tmp, and hurts none but the slot by it."""
    if server.slots < 2:
        return False
    name, other = nonce(), 0 if slot else 1
    made = server.bash(f"[ -O {_TMP} ] && : > {_TMP}/{name} && echo own", slot=slot)
    seen = server.bash(f"[ -e {_TMP}/{name} ] || echo apart", slot=other)
    server.bash(f"rm -f {_TMP}/{name}", slot=slot)
    return made.output.strip() == "own" and seen.output.strip() == "apart"


@contextmanager
def opened_in_the_end(server: Server, slot: int) -> Iterator[None]:
    """Open the slot's directories, which a command closes meanwhile; from the node where the server can't."""
    try:
        yield
    finally:
        with suppress(SifproofError, NotMeasured):
            command = f"chmod 755 . && if ! [ -w {_TMP} ]; then chmod 755 {_TMP}; fi"
            if not server.bash(command, slot=slot).success:
                folder = f'"$NOMAD_ALLOC_DIR"/../../{quote(server.placed.allocation.id)}/alloc/data'
                # find(1) takes no link for a directory: a slot may have put one in the place of its own.
                server.placed.node.run(
                    f"find {folder}/{quote(server.workspace(slot))} {folder} -xdev -maxdepth 3 -type d ! -perm -u+w "
                    "-exec chmod 755 {} ';'"
                )


@check(
    "reset.tmp",
    "After a reset nothing is left of what the slot's commands wrote to `/tmp`, `/var/tmp`, `/dev/shm` and the like, "
    "or to a cache: no hidden file, no closed directory, no FIFO.",
    why="The next agent would find the last one's keys, or build with what it left there.",
    todo="Give each slot a `/tmp` of its own and empty it too; where slots share one, remove what the slot's "
    "user owns.",
)
def tmp(server: Server) -> Finding:
    seen = [_left_after_reset(server, slot) for slot in dict.fromkeys((0, server.slots - 1))]
    if not any(left for left, _, _ in seen):
        raise NotApplicable(f"a command can write to none of {TEMPORARY}, and to no cache")
    problems = [problem for _, _, problem in seen if problem]
    gone = list(dict.fromkeys(place for left, _, _ in seen for place in left))
    return expect(not problems, "; ".join(problems) or f"reset: {seen[0][1]}; gone from {', '.join(gone)}")


def _left_after_reset(server: Server, slot: int) -> tuple[list[str], Result, str]:
    """Where the slot could leave something, the answer to the reset, and what is wrong; nothing where all is gone."""
    name = nonce()
    places = f'for d in {TEMPORARY} {CACHES}; do f="$d/{name}"; if ! [ "$d" -ef . ]'
    # Beside a directory that is closed, what a pattern or the kind of a file passes over; and work in the workspace.
    leave = 'mkdir "$f" && echo x > "$f/file" && ln -s / "$f/link" && chmod 500 "$f"'
    more = f'echo x > "$d/.{name}"; mkfifo "$f.fifo"'
    left = server.bash(
        f'echo x > {name}; {places} && {leave}; then echo "$d"; {more}; fi; done 2>/dev/null; :', slot=slot
    )
    if not left.success:
        raise NotMeasured(f"whether a slot can write there could not be seen: {left}")
    result = server.client.reset(server.slot(slot))
    look = 'if [ -e "$f" ]; then echo "$d"; chmod 700 "$f"; rm -rf "$f"; fi'
    every = f'for f in "$f" "$d/.{name}" "$f.fifo"; do {look}; done'
    seen = server.bash(f"{places}; then {every}; fi; done 2>/dev/null; :", slot=slot)
    found = list(dict.fromkeys(seen.output.split()))
    wrong = not result.success or not seen.success or found
    problem = f"{server.slot(slot)}: reset: {result}; left in {', '.join(found) or seen}" if wrong else ""
    return list(dict.fromkeys(left.output.split())), result, problem


@check(
    "reset.only-that-slot",
    "A reset leaves the files of other slots, also where links lead to them, and the commands that run there alone.",
    why="The slots of one server belong to different agents.",
    todo="Look at what the reset removes and ends: only what belongs to the one slot. It must follow no link.",
    waits_s=0.4,
)
def only_that_slot(server: Server) -> Finding:
    name, word = nonce(), nonce()
    server.write(f"{name}/file", word, slot=1)
    told = next((e.get("workspace_dir") for e in server.client.slots() if e.get("slot_id") == server.slot(1)), "")
    server.bash(
        f"mkdir -p {name}/deep; ln -s ../{server.slot(1)} {name}.up; for l in {name} {name}/deep/link; do "
        f"ln -s {quote(str(told))}/{name} $l.there; ln -s {quote(str(told))} $l.all; done"
    )
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(server.bash, f"sleep 0.4; cat {name}/file", slot=1)
        server.wait_until_busy(1)
        result = server.client.reset(server.slot())
        ended = running.result()
    kept = server.read(f"{name}/file", slot=1)
    server.bash(f"rm -rf {name}", slot=1)
    return expect(
        result.success and ended.output.strip() == word and kept.output == word,
        f"reset: {result}; a command of another slot meanwhile: {ended}; its file: {kept}",
    )


_LINGERING = """\
p=$(pwd)/{name}
sh -c 'trap "" HUP TERM; n=0
 while [ $n -lt 400 ]; do n=$((n+1)); date >> "$0"; sleep 0.05; done' "$p" </dev/null >/dev/null 2>&1 &
n=0; until [ -s "$p" ] || [ $n -ge 200 ]; do n=$((n+1)); sleep 0.02; done"""
"""Leaves a process behind, for some 20 s, that writes to a file of the workspace; ends when it has begun.

The file's name is in its arguments, too.
"""


@check(
    "reset.processes",
    "After a reset no process of the slot goes on: what was left in the background by `bash`, or by the shell of "
    "`bash_stateful` where there is one, writes no more, and that shell has forgotten its variables.",
    why="A process of the last agent goes on using the node, and can write into the work of the next.",
    todo="End every process of the slot before its directory is emptied.",
    waits_s=0.5,
)
def processes(server: Server) -> Finding:
    name, word, client, slot = nonce(), nonce(), server.client, server.slot()
    left_by_bash = server.bash(_LINGERING.format(name=f"{name}-bash"))
    script = f"export sifproof_word={word}\n{_LINGERING.format(name=f'{name}-stateful')}"
    left_by_shell = client.execute(slot, "bash_stateful", {"command": script})
    has_shell = left_by_shell.success
    before, unseen = _on_node(server, name)
    if not (before or unseen) and _goes_on(server, name):
        unseen = "the node does not show the sandbox's processes"
    result = client.reset(slot)
    # A while, so that a process that goes on has written again.
    left = server.bash("sleep 0.5; ls -A")
    # One whose directory was removed and made anew writes where nobody sees it.
    after, unseen = _on_node(server, name) if before else (before, unseen)
    # Told by words that only the shell puts together: an answer may be a whole screen, with the command on it.
    ask = 'test "${sifproof_word-}" && echo "remem""bered" || echo "forg""otten"'
    remembered = client.execute(slot, "bash_stateful", {"command": ask}) if has_shell else None
    if has_shell:
        client.reset(slot)
    kept = (
        left_by_bash.success
        and result.success
        and left.success
        and not left.output.strip()
        and not after
        and (remembered is None or ("forgotten" in remembered.output and "remembered" not in remembered.output))
    )
    if kept and unseen:
        raise NotMeasured(f"whether a process goes on where nobody sees it write can't be told: {unseen}")
    on_node = f"seen from the node: {', '.join(sorted(after)) or 'none'} of {len(before)}"
    return expect(
        kept,
        f"reset: {result}; 0.5 s later in the workspace: {left}; {unseen or on_node}; "
        + (f"a variable of the shell: {remembered}" if has_shell else f"bash_stateful: {left_by_shell}"),
    )


def _goes_on(server: Server, name: str) -> bool:
    """Whether a process that :data:`_LINGERING` left still writes, as the slot sees it."""
    sizes = f"cat {name}-* 2>/dev/null | wc -c"
    first, _, second = server.bash(f"{sizes}; sleep 2; {sizes}").output.strip().partition("\n")
    return first != second


def _on_node(server: Server, name: str) -> tuple[set[str], str]:
    """Which of what :data:`_LINGERING` left the node's Nomad client sees, and why it can't look where it can't."""
    files = f"$(grep -ls '[{name[0]}]{name[1:]}' /proc/[0-9]*/cmdline)"
    try:
        said = server.placed.node.run(f"for file in {files}; do tr '\\0' '\\n' < $file; done; :")
    except (SifproofError, NotMeasured) as reason:
        return set(), str(reason)
    seen = {line.rpartition("/")[2] for line in said.splitlines() if line.startswith("/") and name in line}
    return seen, ""


@check(
    "reset.again",
    "An empty slot can be reset, and again at once.",
    why="Clients reset a slot to be sure, whatever state it is in.",
    todo="Don't take an empty or missing directory for a failure.",
)
def again(server: Server) -> Finding:
    results = [server.client.reset(server.slot()) for _ in range(2)]
    usable = server.bash("pwd")
    return expect(
        all(result.success for result in results) and usable.success,
        f"{'; '.join(map(str, results))}; afterwards: {usable}",
    )
