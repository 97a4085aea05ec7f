"""Children of a command, which live on in every way there is, and whether they are still there after it."""

from __future__ import annotations

from dataclasses import dataclass

from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Server

_KEPT_S = 0.4
"""How long children that are kept on purpose are looked at."""

_ENDED_S = 4.0
"""How long others may take to end: a server may answer as soon as it has told them to."""

_PLACE = "p={word}; test -p $p.shell || p=${{TMPDIR:-/tmp}}/{word}"
"""Where the FIFOs lie: in the workspace, or where that takes none, beside other temporary files."""


_KINDS = ("child", "deaf-to-SIGTERM", "orphan", "other-group", "daemon", "shell")


@dataclass(frozen=True)
class Children:
    """Children of a command that live on, each of which holds a FIFO open, and what can be seen of them afterwards.

    What somebody writes to a FIFO stays in it as long as anybody else holds it open, and is gone otherwise: so it tells
    for certain, and at once, whether a process is there, in whatever name space. The command's shell does the same.
    """

    word: str

    @property
    def start(self) -> str:
        """Starts one of each kind. They end by themselves after ten seconds, or when their files are taken away."""
        stay = f"n=0; while test -e {self.word}.go && test $n -lt 200; do n=$((n+1)); sleep 0.05 9>&-; done"
        fifos = " ".join(f"$p.{kind}" for kind in _KINDS)
        return "\n".join(
            [
                f"p={self.word}; mkfifo {fifos} 2>/dev/null || {{ rm -f {fifos}; p=${{TMPDIR:-/tmp}}/{self.word}; "
                f"mkfifo {fifos}; }} || : > {self.word}.no-fifo",
                f": > {self.word}.go; export p",
                f"stay='exec 9<> $p.$0 && : > {self.word}.$0.began; {stay}'",
                # Each lets go of the command's output by itself: some servers wait for whoever holds it.
                'sh -c "$stay" child </dev/null >/dev/null 2>&1 &',
                '(trap "" TERM HUP INT; exec sh -c "$stay" deaf-to-SIGTERM </dev/null >/dev/null 2>&1) &',
                '( (sh -c "$stay" orphan </dev/null >/dev/null 2>&1 &) & )',
                'set -m; sh -c "$stay" other-group </dev/null >/dev/null 2>&1 & set +m',
                "if command -v setsid >/dev/null; then",
                "(setsid sh -c \"trap '' TERM HUP; $stay\" daemon </dev/null >/dev/null 2>&1 &) fi",
                f"exec 9<> $p.shell && : > {self.word}.shell.began",
            ]
        )

    @property
    def wait(self) -> str:
        """Waits until each of them is there, and says so; where no FIFO can be made there is nothing to wait for."""
        kinds = " && ".join(f"test -e {self.word}.{kind}.began" for kind in _KINDS if kind != "daemon")
        daemon = f"{{ test -e {self.word}.daemon.began || ! command -v setsid >/dev/null; }}"
        until = f"test -e {self.word}.no-fifo || {{ {kinds} && {daemon}; }}"
        return f"until {until}; do sleep 0.02 9>&-; done; : > {self.word}.started"

    @property
    def go_on(self) -> str:
        """Goes on as the children do."""
        return f"n=0; while test -e {self.word}.go && test $n -lt 200; do n=$((n+1)); sleep 0.05 9>&-; done"

    def look(self, server: Server, *, kept: bool = False) -> tuple[set[str], set[str]]:
        """Which had begun, and which live on; afterwards nothing is left of them."""
        # What was written before into a FIFO that somebody else holds comes out first.
        held = 'exec 8<> "$f" && echo held >&8; exec 8>&-; exec 8<> "$f" && echo free >&8 || continue; said='
        held += "; while read -r l <&8 && test $l != free; do said=$l; done; exec 8>&-"
        tries = int((_KEPT_S if kept else _ENDED_S) / 0.05)
        result = server.bash(
            f"{_PLACE.format(word=self.word)}\n"
            f'for f in {self.word}.*; do echo "made ${{f#*.}}"; done\n'
            f"n=0; while :; do alive=; for f in $p.*; do test -p $f || continue; {held}\n"
            '  test "$said" = held && alive="$alive ${f##*.}"; done\n'
            f'  n=$((n+1)); test "$alive" && test $n -lt {tries} || break; sleep 0.05\n'
            f'done; for a in $alive; do echo "alive $a"; done; rm -f {self.word}.* $p.*'
        )
        lines = [line.split() for line in result.output.splitlines()]
        made = {words[1] for words in lines if len(words) == 2 and words[0] == "made"}
        if "no-fifo" in made:
            raise NotMeasured("no FIFO can be made in the workspace or in /tmp, and a process can't be told by one")
        began = {name.removesuffix(".began") for name in made if name.endswith(".began")}
        if "started" not in made:
            began.discard("shell")
        return began, {words[1] for words in lines if len(words) == 2 and words[0] == "alive"}
