"""Servers that let somebody in who has no token of theirs."""

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
