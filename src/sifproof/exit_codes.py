"""The exit codes of the command: 0 and 1 are said on purpose, never by default.

A Python that dies of an exception ends with 1, and one that has nothing to do with 0. Of a gate these mean "the image
is rejected" and "accepted". So every process of the command runs under :func:`guarded`, and only the gate's own record
makes a run end with 0 or 1 (see :mod:`sifproof.report.gate`):

====  ==================================================================================================
0     accepted; of what is no run: done as asked
1     rejected: the gate says so
2     wrong usage or configuration
3     infrastructure at fault: a cluster, a node, or this machine, which has no room, no memory, no access
4     incomplete or interrupted; or sifproof failed in a way that it did not foresee
141   whoever read its output went away (`sifproof checks | head`)
====  ==================================================================================================

Imports nothing at its head but ``sys``: a site's own modules may stand before those of Python.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

INFRASTRUCTURE, INCOMPLETE, PIPE_CLOSED = 3, 4, 141


def guarded(command: "Callable[[], int]") -> int:
    """What ``command`` returns or exits with; whatever it raises is told, and has a code of its own.

    An exit with 1 is nobody's word here, so it is told as incomplete, unless ``command`` returned it.
    """
    try:
        code = command()
    except SystemExit as ended:
        code = INCOMPLETE
        if ended.code in (None, 0, 2, 3, 4):
            code = int(ended.code or 0)
        else:
            _say(ended.code if isinstance(ended.code, str) else f"it ended with {ended.code}, which says nothing")
    except BaseException as error:
        code = of_error(error)
    return _flushed(code)


def of_error(error: BaseException) -> int:
    """Tell ``error`` on standard error; the exit code that fits it."""
    if fault := getattr(error, "fault", None):
        _say(str(error))
        return int(fault.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return INCOMPLETE
    if isinstance(error, BrokenPipeError):  # whoever reads has enough
        _drop(sys.stdout)
        return PIPE_CLOSED
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    place = _loading(error)
    if place and not isinstance(error, MemoryError):
        _say(
            f"this Python can't load a module: {what} ({place}). Look at PYTHONPATH and at the modules of the site; "
            "`make setup` puts the checkout's own in order."
        )
        return INFRASTRUCTURE
    if isinstance(error, (OSError, MemoryError)):
        _say(f"this machine does not let it work: {what}. See to its disks, memory and limits, then run it again.")
        return INFRASTRUCTURE
    import traceback  # noqa: PLC0415

    try:
        traceback.print_exception(error)
    except OSError:
        _drop(sys.stderr)
    _say(f"it failed in a way that it did not foresee: {what}. Please report it, with the lines above.")
    return INCOMPLETE


def _loading(error: BaseException) -> str:
    """File and line at which ``error`` arose, where that was while a module was loaded; else empty."""
    place, loads, trace = "", isinstance(error, (ImportError, SyntaxError)), error.__traceback__
    while trace is not None:
        code, names = trace.tb_frame.f_code, trace.tb_frame.f_globals
        # Python takes its own frames of an import away. A Snakefile is run by a module, and is none.
        loads |= code.co_name == "<module>" and (
            names.get("__name__") != "__main__" and names.get("__file__") == code.co_filename
        )
        place, trace = f"{code.co_filename}, line {trace.tb_lineno}", trace.tb_next
    return place if loads else ""


def _say(text: str) -> None:
    try:
        print(f"sifproof: {text}", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _flushed(code: int) -> int:
    """``code``, once all that was printed is out; another where it can't get out and the code promises that it is."""
    try:
        sys.stdout.flush()
    except OSError as error:
        told = of_error(error)
        _drop(sys.stdout)
        code = told if code == 0 else code
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    return code


def _drop(stream: "TextIO") -> None:
    """Let what ``stream`` still holds go nowhere: Python writes it out at its end, and would end with 120."""
    import os  # noqa: PLC0415

    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
