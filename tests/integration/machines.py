"""A Nomad cluster of two machines on this one: a server, and a node in a network namespace of its own on a bridge.

What happens between machines can be made to happen: the node's agent is killed, its cable pulled. Needs root.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nomad_payload import clear_away, wait_until

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.nomad.client import Client, connect
from sifproof.nomad.ports import MARK

_AGENT = {"disable_update_check": True, "leave_on_interrupt": False, "leave_on_terminate": False}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machines:
    """The server at ``address``, whose node ``node`` is found in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number = os.getpid() % 250
        self._name, self._net = f"sfm{number}", f"198.18.{number}"
        self.address = f"http://{self._net}.1:4646"
        self.server: subprocess.Popen[bytes] | None = None
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the network, and start both agents."""
        name, net = self._name, self._net
        _ip("link", "add", name, "type", "bridge")
        _ip("addr", "add", f"{net}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}v", "master", name, "up")
        for words in (f"addr add {net}.2/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", name, *words.split())
        # A node is down some seconds after it was heard of last.
        beats = {"enabled": True, "bootstrap_expect": 1, "heartbeat_grace": "3s", "min_heartbeat_ttl": "2s"}
        self.server = self._agent("server", [], {"bind_addr": f"{net}.1", "server": beats})
        self.start_agent()

    def start_agent(self) -> None:
        """Start the node's agent, and return when the node is ready."""
        self.agent = self._node("node", ["nsenter", f"--net=/run/netns/{self._name}"], f"{self._net}.2", "eth0")

    @contextmanager
    def another(self) -> Iterator[None]:
        """A second node, beside the server."""
        _ip("addr", "add", f"{self._net}.3/24", "dev", self._name)
        agent = self._node("other", [], f"{self._net}.3", self._name)
        try:
            yield
        finally:
            agent.kill()
            agent.wait()
            _ip("addr", "del", f"{self._net}.3/24", "dev", self._name)

    def _node(self, name: str, way: list[str], address: str, interface: str) -> subprocess.Popen[bytes]:
        """The agent of a node, once that is ready."""
        client = {"enabled": True, "servers": [f"{self._net}.1:4647"], "network_interface": interface}
        additions = {
            "bind_addr": address,
            "client": {**client, "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean"}},
            "plugin": {"raw_exec": {"config": {"enabled": True}}},
        }
        agent = self._agent(name, way, additions)

        def ready() -> bool:
            with contextlib.suppress(SifproofError), self.connect() as nomad:
                return any((node["Name"], node["Status"]) == (name, "ready") for node in nomad.get("nodes"))
            return False

        wait_until(ready)
        return agent

    def _agent(self, name: str, way: list[str], additions: dict[str, object]) -> subprocess.Popen[bytes]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "agent.json").write_text(json.dumps({**_AGENT, "name": name, "data_dir": f"{home}/data", **additions}))
        environment = {k: v for k, v in host_tools.environment().items() if not k.startswith("NOMAD_")}
        with (home / "log").open("ab") as log:
            return subprocess.Popen(
                [*way, host_tools.require("nomad").path, "agent", f"-config={home / 'agent.json'}"],
                env={**environment, MARK: f"{self.folder}/"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_agent(self) -> None:
        """End the node's agent as a crash does: what it started runs on."""
        assert self.agent
        self.agent.kill()
        self.agent.wait()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The node without a network."""
        _ip("link", "set", f"{self._name}v", "down")
        try:
            yield
        finally:
            _ip("link", "set", f"{self._name}v", "up")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The cluster without its server: it takes connections, and answers none."""
        assert self.server
        self.server.send_signal(19)
        try:
            yield
        finally:
            self.server.send_signal(18)

    def connect(self) -> Client:
        """A client of the server."""
        return connect(self.address, environment={})

    def close(self) -> None:
        """End all of it."""
        for agent in (self.agent, self.server):
            if agent:
                agent.kill()
                agent.wait()
        clear_away(self.folder)
        for words in (("netns", "del", self._name), ("link", "del", self._name)):
            subprocess.run(["ip", *words], capture_output=True, check=False)
