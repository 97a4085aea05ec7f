"""A server in trouble."""

import dataclasses
import functools
import os
import signal
import socket
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from defects import ANSWERED, failure, is_call, turns_red
from defects.persistence import AFTER_A_KILL, data


@turns_red("resilience.killed", nomad=True, not_measured=AFTER_A_KILL)
def stale_lock(arguments):
    """The server makes a lock file that only a clean end removes, and does not start where there is one."""
    import sandbox_server

    lock = data(arguments) / "lock"
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        sys.exit(f"{lock} exists: another server is running")
    leave = os._exit

    def unlock(code):
        lock.unlink()
        leave(code)

    sandbox_server.os._exit = unlock


@turns_red("resilience.killed-isolation", nomad=True)
def tries_in_the_first_slot(arguments):
    """The server tries at its start what it can do, in the first slot's directory, which a command may have closed."""
    try_in(lambda first, last: first)


@turns_red("resilience.killed-isolation", nomad=True)
def tries_in_the_last_slot(arguments):
    """The server tries at its start what it can do, in the last slot's directory, which a command may have closed."""
    try_in(lambda first, last: last)


@turns_red("resilience.killed-isolation", nomad=True)
def tries_in_a_slots_tmp(arguments):
    """The server tries at its start what it can do, in the first slot's `/tmp`, which a command may have closed."""
    try_in(lambda first, last: dataclasses.replace(first, workspace=first.tmp))


def try_in(place):
    """Try what commands can be locked into in the ``place`` that is made of the first slot's and the last's."""
    from slotserver import containment, directories
    from slotserver.containment import Place

    async def choose(reaper, data, slots, *, user_per_slot):
        chosen = place(Place.of_slot(data, 0), Place.of_slot(data, slots - 1))
        give, directories._give = directories._give, lambda *_, **more: None
        try:
            return await containment._best(reaper, chosen, data, user_per_slot=user_per_slot)
        finally:
            directories._give = give

    containment.choose = choose
    containment.hold_to = lambda *_, **options: None


@turns_red("resilience.stopped", nomad=True)
def health_of_another_process(arguments):
    """A process in front of the server answers `/health` by itself, whether the server behind it works or hangs."""
    where = arguments.index("--host") + 1, arguments.index("--port") + 1
    front = arguments[where[0]], int(arguments[where[1]])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listening = ThreadingHTTPServer(front, BaseHTTPRequestHandler)
    if not os.fork():
        listening.server_close()
        arguments[where[0]], arguments[where[1]] = "127.0.0.1", str(port)
        return
    kept = {}

    class Front(BaseHTTPRequestHandler):
        def answer(self):
            if self.path == "/health" and "health" in kept:
                status, body = 200, kept["health"]
            else:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
                request = urllib.request.Request(f"http://127.0.0.1:{port}{self.path}", sent, method=self.command)
                with urllib.request.urlopen(request) as answered:
                    status, body = answered.status, answered.read()
                if self.path == "/health":
                    kept["health"] = body
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    listening.RequestHandlerClass = Front
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listening.serve_forever()


@turns_red("resilience.port-taken", nomad=True)
def shares_its_port(arguments):
    """The server sets SO_REUSEPORT, and starts beside another on the same port."""
    from aiohttp import web

    web.TCPSite.__init__ = functools.partialmethod(web.TCPSite.__init__, reuse_port=True)


@turns_red("resilience.disk-full", nomad=True)
async def lost_on_a_full_disk(path, call, go):
    """The server says that it wrote what did not fit on the disk."""
    answer = await go(call)
    return ANSWERED if is_call(call, "write_file") and "No space left" in answer["error"] else answer


CALLED: list[bool] = []


@turns_red("resilience.first-call", "persistence.after-restart", nomad=True)
async def first_call_comes_too_early(path, call, go):
    """`/health` says ok when the first call after a start still fails."""
    if path == "/execute" and not CALLED:
        CALLED.append(True)
        return failure("the slots are being set up")
    return await go(call)


STARTED = time.monotonic()


@turns_red("resilience.first-call", nomad=True)
async def shells_come_later(path, call, go):
    """`/health` says ok two seconds before `bash_stateful` works."""
    if is_call(call, "bash_stateful") and time.monotonic() < STARTED + 2:
        return failure("the shells are being set up")
    return await go(call)


@turns_red("resilience.disk-full-kept", nomad=True)
async def emptied_before_the_disk_is_found_full(path, call, go):
    """Writing empties the file, and then finds that the disk is full."""
    answer = await go(call)
    if is_call(call, "write_file") and "No space left" in answer["error"]:
        await go(call | {"args": call["args"] | {"content": ""}})
    return answer
