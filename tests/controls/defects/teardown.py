"""A server that is told to go."""

import asyncio
import signal

from defects import turns_red


@turns_red("teardown.graceful", nomad=True)
def ignores_sigterm(arguments):
    """The server ignores SIGTERM, and is killed when its time to end is over."""
    loop = asyncio.SelectorEventLoop
    handle = loop.add_signal_handler

    def add_signal_handler(self, number, *rest):
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        else:
            handle(self, number, *rest)

    loop.add_signal_handler = add_signal_handler
