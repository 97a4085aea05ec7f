"""What the tests of Nomad run: a SIF of a few kilobytes with a small server, and jobs of one line of shell."""

import contextlib
import os
import subprocess
import textwrap
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import requests

from sifproof import host_tools
from sifproof.nomad.agent import local
from sifproof.nomad.job import create_sandbox_job
from sifproof.nomad.node import leftovers

SERVER = """
import argparse, http.server, json, os

options = argparse.ArgumentParser()
for name in ("--host", "--port", "--slots", "--data-dir"):
    options.add_argument(name)
known, rest = options.parse_known_args()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"words": rest, "environment": dict(os.environ), "cwd": os.getcwd()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with open(os.path.join(known.data_dir, "started"), "w") as mark:
    mark.write("by the server")
http.server.ThreadingHTTPServer((known.host, int(known.port)), Handler).serve_forever()
"""

# The file system of this machine's Python, from outside: the SIF itself needs none.
BINDS = ["/usr:/usr:ro"]
COMMAND = ["/usr/bin/python3", "/app/sandbox_server.py"]


def _root(folder: Path) -> Path:
    """A root file system with the server above at /app, and nothing else."""
    root = folder / "root"
    for name in ("usr", "app", "data", "tmp", "etc", "dev", "proc", "sys", "root", "home", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("resolv.conf", "hosts", "passwd", "group"):
        (root / "etc" / name).touch()
    (root / "app" / "sandbox_server.py").write_text(SERVER)
    return root


def build_sif(folder: Path) -> Path:
    """The server as a SIF."""
    sif = folder / "payload.sif"
    subprocess.run(
        [host_tools.require("apptainer").path, "-q", "build", sif, _root(folder)],
        env=host_tools.environment(),
        check=True,
        capture_output=True,
    )
    return sif


def import_image(folder: Path, name: str) -> None:
    """The server as an image of the Docker engine."""
    archive = folder / "payload.tar"
    subprocess.run(["tar", "-C", _root(folder), "-cf", archive, "."], check=True)
    subprocess.run([host_tools.require("docker").path, "import", archive, name], check=True, capture_output=True)


def shell_job(job_id: str, line: str, port=None, **arguments) -> dict:
    """A raw_exec job that runs ``line``, all else as that of a sandbox."""
    job = create_sandbox_job(job_id, "/no.sif", port=port, cpu=50, memory=64, **arguments)
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["args"][-1] = textwrap.dedent(line)
    return job


LISTEN = 'exec /usr/bin/python3 -m http.server --bind "$NOMAD_IP_http" "$NOMAD_PORT_http"'


def new_id(prefix: str = "t") -> str:
    """An id that no other test has."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@contextmanager
def local_agent(folder: Path, **arguments):
    """A local agent of its own; gone afterwards, with everything of it, or the test fails."""
    run = new_id("test")
    agent = local.start(run, folder, os.getpid(), log=folder / f"{run}.log", **arguments)
    try:
        yield agent
    finally:
        local.stop(run, folder)
        assert_gone(agent)


def bootstrap(address: str, agent: subprocess.Popen[bytes]) -> str:
    """The management token of ``agent``, once it has come up and taken it.

    The token is our own: where the answer to the request is lost, the agent heeds it all the same.
    """
    token = str(uuid.uuid4())

    def heeded() -> bool:
        assert agent.poll() is None, f"the agent ended with exit code {agent.returncode}"
        with contextlib.suppress(requests.RequestException):
            requests.post(f"{address}/v1/acl/bootstrap", json={"BootstrapSecret": token}, timeout=5)
            return requests.get(f"{address}/v1/acl/token/self", headers={"X-Nomad-Token": token}, timeout=5).ok
        return False

    wait_until(heeded)
    return token


def end_agent(agent: subprocess.Popen[bytes]) -> None:
    """End an agent that was started by hand, whether it does so by itself or not."""
    agent.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        agent.wait(60)
    agent.kill()
    agent.wait()


def clear_away(folder: Path) -> list[leftovers.Process]:
    """End and unmount what ended agents left whose data lies in ``folder``.

    Returns the processes that did not go by themselves, without Nomad's own helpers: an agent that ends just after a
    purge may forget one.
    """
    home = f"{folder}/"

    def there() -> list[leftovers.Process]:
        return leftovers.find_processes([home])[home]

    left = leftovers.wait_none(lambda: [p for p in there() if not p.is_nomad], 30)
    leftovers.end_processes(there(), 30)
    for point in leftovers.find_mounts(home):
        subprocess.run(["umount", "--lazy", point], check=True)
    return left


def assert_gone(agent: local.LocalAgent) -> None:
    """Nothing of ``agent`` is left: no process, no mount, no directory."""
    home = f"{agent.directory}/"
    assert leftovers.find_processes([home])[home] == []
    assert leftovers.find_mounts(home) == []
    assert not agent.directory.exists()
    assert not runs(agent.agent)
    wait_until(lambda: not runs(agent.supervisor))  # removing the directory is the last that it does


def runs(pid: int) -> bool:
    """Whether process ``pid`` runs; one that only waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, deadline_s: float = 60.0):
    """What ``condition`` returns once it is true; fails after ``deadline_s`` seconds."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s:g} s"
        time.sleep(0.01)
    return value
