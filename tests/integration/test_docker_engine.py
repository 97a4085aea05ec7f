"""The private Docker engine: it answers, and nothing of it outlives the command, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ENGINE = [sys.executable, str(Path(__file__).resolve().parents[2] / "tools/docker_engine.py"), "--private", "--"]
ROOT = os.geteuid() == 0


def remains(address: str) -> list[str]:
    """What is left of the engine at ``address``: its folder, its bridge, its processes."""
    folder = Path(address.removeprefix("unix://")).parent
    bridge = Path("/sys/class/net") / f"sif{folder.suffix[1:]}"
    processes = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in command.read_bytes():
                processes.append(command.parent.name)
        except OSError:
            continue
    return [str(p) for p in (folder, bridge) if p.exists()] + processes


def wait_until(condition: Callable[[], bool], limit_s: float = 120) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def start(script: str) -> tuple[subprocess.Popen[str], str]:
    """A command under an engine, once it printed the engine's address."""
    process = subprocess.Popen([*ENGINE, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_exit_code_is_the_commands_and_the_engine_ends_with_it() -> None:
    ended = subprocess.run(
        [*ENGINE, "sh", "-c", 'echo "$DOCKER_HOST"; docker version --format "{{.Server.Version}}" || exit 9; exit 7'],
        capture_output=True,
        text=True,
        check=False,
    )
    if not ROOT:
        assert ended.returncode == 1
        assert "needs root" in ended.stderr
        return
    address, version = ended.stdout.split()
    assert ended.returncode == 7
    assert version[0].isdigit()
    assert remains(address) == []


def test_engine_ends_with_a_caller_that_is_killed() -> None:
    process, address = start('echo "$DOCKER_HOST"; exec sleep 1000')
    if not ROOT:
        assert process.wait() == 1
        return
    assert remains(address)
    process.kill()
    assert wait_until(lambda: not remains(address)), remains(address)


def test_signal_reaches_the_command_and_its_answer_counts() -> None:
    process, address = start("trap 'exit 5' TERM; echo \"$DOCKER_HOST\"; while :; do sleep 0.1; done")
    if not ROOT:
        assert process.wait() == 1
        return
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 5
    assert remains(address) == []
