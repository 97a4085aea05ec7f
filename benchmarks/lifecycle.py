"""How long a sandbox takes from its submission until it is proven stopped, phase by phase.

    python benchmarks/lifecycle.py [--rounds 7] [SIF]

Starts a local Nomad agent, then in each round: submits the job of the SIF (that of the latest run where none is named),
waits for its port, for `/health`, runs a command, writes a file, reads it back, stops and purges the job, and looks for
its port, processes and mounts. Prints the median of each phase over the rounds after a first that isn't counted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import statistics
import tempfile
import threading
import time
from pathlib import Path

from sifproof.nomad import job, submit, teardown
from sifproof.nomad.agent import local
from sifproof.nomad.node.userns import needs_userns
from sifproof.nomad.static_port import pick_static_port
from sifproof.sandbox import SandboxClient, ServerError

TARGET_S = 1.5
STORE = Path("results/images/sif")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a sandbox from submission to proven stop.")
    parser.add_argument("sif", nargs="?", type=Path, help="default: the newest in results/images/sif")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sif = options.sif or max(STORE.glob("*.sif"), key=lambda path: path.stat().st_mtime, default=None)
    if sif is None:
        parser.error(f"there is no SIF in {STORE}: name one, or run `make run` first")
    with tempfile.TemporaryDirectory() as folder:
        name = f"lifecycle-{os.getpid()}"
        agent = local.start(name, local.DIRECTORY, os.getpid(), log=Path(folder) / "agent.log")
        try:
            rounds = [one_round(agent, sif.resolve(), number, Path(folder)) for number in range(options.rounds + 1)][1:]
        finally:
            local.stop(name)
    for phase in rounds[0]:
        print(f"{phase:44} {statistics.median(r[phase] for r in rounds):6.3f} s")
    total = statistics.median(sum(r.values()) for r in rounds)
    print(f"{'submitted to proven stopped':44} {total:6.3f} s   (target {TARGET_S} s: {total / TARGET_S:.2f} of it)")


def one_round(agent: local.LocalAgent, sif: Path, number: int, folder: Path) -> dict[str, float]:
    """Seconds of each phase."""
    seconds: dict[str, float] = {}
    job_id = f"lifecycle-{number}"
    token = secrets.token_urlsafe()
    with agent.connect() as client:
        rendered = job.create_sandbox_job(
            job_id,
            str(sif),
            port=pick_static_port(client, "dc1"),
            singularity_image=str(sif),
            userns=needs_userns(),
            token_sha256=[hashlib.sha256(token.encode()).hexdigest()],
        )
        begin = time.monotonic()

        def lap(phase: str) -> None:
            nonlocal begin
            now = time.monotonic()
            seconds[phase], begin = now - begin, now

        submit.submit(client, rendered)
        allocations = submit.wait_for_allocations(client, job_id, 1, 30, started=False)
        lap("submitted, placed, port known")
        server = SandboxClient(allocations[0].url, token=token)
        pause = threading.Event()
        while True:
            try:
                server.health()
                break
            except ServerError:
                pause.wait(0.005)
        lap("healthy")
        assert server.bash("slot_0", "echo hello").output == "hello"
        assert server.write_file("slot_0", "file", "content").success
        assert server.read_file("slot_0", "file").output == "content"
        lap("command run, file written and read")
        ended = teardown.stop_and_verify(client, job_id, allocations, collect=folder, local=True)
        lap("stopped, purged, nothing of it left")
        (allocation,) = ended.allocations
        assert ended.purged
        assert allocation.port_closed_s is not None
        assert not allocation.processes + allocation.mounts, ended
    return seconds


if __name__ == "__main__":
    main()
