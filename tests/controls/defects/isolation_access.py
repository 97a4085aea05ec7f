"""Servers that let somebody in who has no token of theirs."""

import socket

from defects import is_call, turns_red

SLOT, HOST = "isolation.slot.server", "isolation.host.strangers"


def lets_in(known):
    """Let in whom ``known`` says beside those who have a token; it gets the request."""
    from slotserver.access import Access

    allows = Access.allows
    Access.allows = lambda self, request: allows(self, request) or known(request)


@turns_red(SLOT, HOST, nomad=True)
def asks_for_a_token_at_execute_alone(arguments):
    """Only `/execute` asks for a token."""
    lets_in(lambda request: request.path != "/execute")


@turns_red(SLOT, HOST, nomad=True)
def takes_any_token(arguments):
    """A token is asked for and not compared."""
    lets_in(lambda request: request.headers.get("Authorization", "").startswith("Bearer "))


@turns_red(SLOT, nomad=True)
def resets_for_strangers(arguments):
    """`/reset` asks for no token."""
    lets_in(lambda request: request.path == "/reset")


@turns_red(SLOT, HOST, nomad=True)
def asks_for_no_token_in_ipv6(arguments):
    """The server listens in IPv6 too, and asks for no token there."""
    arguments[arguments.index("--host") + 1] = ""
    lets_in(lambda request: ":" in request.remote and not request.remote.startswith("::ffff:"))


@turns_red(SLOT, nomad=True)
def trusts_its_own_address(arguments):
    """Who comes from the address of the server's own container needs no token."""
    lets_in(
        lambda request: (
            request.remote == request.transport.get_extra_info("sockname")[0] and not request.remote.startswith("127.")
        )
    )


@turns_red(SLOT, HOST, nomad=True)
def believes_whom_a_request_comes_from(arguments):
    """A request that says that it was forwarded for the loopback (`X-Forwarded-For`) needs no token."""
    lets_in(lambda request: request.headers.get("X-Forwarded-For") == "127.0.0.1")


@turns_red(SLOT, HOST, nomad=True)
def takes_an_empty_token(arguments):
    """`Authorization: Bearer` with nothing after it is as good as a token."""
    lets_in(lambda request: request.headers.get("Authorization", "").strip().lower() == "bearer")


@turns_red(SLOT, HOST, nomad=True)
def asks_for_a_token_by_the_path(arguments):
    """A token is asked for at `/execute` and not at `/execute/`, which does the same."""
    with_routes(lambda router, path, handler: router.add_post(f"{path}/", handler))
    lets_in(lambda request: request.path.endswith("/"))


@turns_red(SLOT, HOST, nomad=True)
def asks_for_a_token_by_the_method(arguments):
    """`/execute` takes PUT as well, and asks for no token then."""
    with_routes(lambda router, path, handler: router.add_put(path, handler))
    lets_in(lambda request: request.method == "PUT")


def with_routes(add):
    """Let ``add`` register more ways to what answers POST."""
    from slotserver.api import Api

    application = Api.application

    def more(self):
        app = application(self)
        for route in [route for route in app.router.routes() if route.method == "POST"]:
            add(app.router, route.resource.canonical, route.handler)
        return app

    Api.application = more


@turns_red(SLOT, HOST, nomad=True)
def another_port_without_a_token(arguments):
    """The server listens on a second port of the loopback as well, and asks for no token there."""
    from aiohttp import web

    listen_too(lambda runner: web.TCPSite(runner, "127.0.0.1", 0))
    own = int(arguments[arguments.index("--port") + 1])
    lets_in(lambda request: request.transport.get_extra_info("sockname")[1] != own)


@turns_red(SLOT, HOST, nomad=True)
def a_unix_socket_without_a_token(arguments):
    """The server listens on an abstract Unix socket as well, and asks for no token there."""
    from aiohttp import web

    name = f"\0sandbox-server-{arguments[arguments.index('--port') + 1]}"
    listen_too(lambda runner: web.UnixSite(runner, name))
    lets_in(lambda request: request.transport.get_extra_info("socket").family == socket.AF_UNIX)


def listen_too(site):
    """Listen at ``site``, made of the runner, beside the server's port."""
    from aiohttp import web

    setup = web.AppRunner.setup

    async def and_there(self):
        await setup(self)
        await site(self).start()

    web.AppRunner.setup = and_there
    web.AppRunner.addresses = ()  # the server logs what it listens on, and knows of no other kind


@turns_red(SLOT, nomad=True)
def token_in_the_environment(arguments):
    """Commands find the header of the last request in their environment, and in it the token."""
    from slotserver.containment import Containment

    given, environment = remembered(), Containment.environment
    Containment.environment = lambda self, place: environment(self, place) | given


@turns_red(SLOT, nomad=True)
def token_in_a_log(arguments):
    """The server writes the headers of each request into a file in the slot's `/tmp`."""
    from slotserver.slots import Slot

    given, start = remembered(), Slot.start

    def logged(self, *args, **options):
        with (self.place.tmp / "server.log").open("a") as log:
            print("POST /execute", *given.values(), file=log)
        return start(self, *args, **options)

    Slot.start = logged


def remembered():
    """The last header by which somebody was let in."""
    from slotserver.access import Access

    allows, given = Access.allows, {}

    def remember(self, request):
        allowed = allows(self, request)
        if allowed and "Authorization" in request.headers:
            given["REQUEST_AUTHORIZATION"] = request.headers["Authorization"]
        return allowed

    Access.allows = remember
    return given


@turns_red(HOST, nomad=True)
def no_network_for_slots(arguments):
    """The server asks for no token; its slots have no network."""
    from defects.isolation_slot import in_bubblewrap

    in_bubblewrap(lambda words, place: [words[0], "--unshare-net", *words[1:]])


@turns_red(SLOT, HOST, nomad=True)
async def network_in_the_session_alone(path, body, go):
    """The server asks for no token; commands of `bash_stateful` have network, those of `bash` none."""
    if is_call(body, "bash"):
        body["args"]["allow_network"] = False
    return await go(body)


@turns_red(SLOT, HOST, nomad=True)
async def network_where_a_sandbox_is_required(path, body, go):
    """The server asks for no token; commands have network where `require_sandbox` is given, and else none."""
    if "command" in body.get("args", {}) and not body["args"].get("require_sandbox"):
        body["args"]["allow_network"] = False
    return await go(body)
