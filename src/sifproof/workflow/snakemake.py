"""Snakemake as ``sifproof run`` starts it: ``python -m sifproof.workflow.snakemake ARGUMENTS…``.

Snakemake itself ends with 1 for all that goes wrong and with 0 for all else, a dry run among it. This process says
more: :data:`RAN`, :data:`FAILED`, :data:`LOOKED`, or by the codes of :class:`~sifproof.errors.Fault` whose an end is.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

from sifproof.errors import Fault
from sifproof.exit_codes import guarded, of_error

RAN = 10
"""Jobs were to run, and all did."""
FAILED = 11
"""Jobs were to run, and not all did."""
LOOKED = 0
"""No job was to run: a dry run, a list, a graph."""

_OF_THE_MACHINE = frozenset(
    {
        *(errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOLCK),
        *(errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE),
    }
)


def main() -> int:
    """Snakemake with the arguments of this process; returns its exit code."""
    from snakemake import api, cli  # noqa: PLC0415 - guarded
    from snakemake.scheduling.job_scheduler import JobScheduler  # noqa: PLC0415

    from snakemake_logger_plugin_sifproof import UNWRITTEN  # noqa: PLC0415

    errors: list[BaseException] = []
    asked: list[bool] = []
    begun: list[bool] = []

    def noted(show: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(show)
        def print_exception(error: BaseException, *rest: Any) -> None:
            errors.append(error)
            show(error, *rest)

        return print_exception

    def execute(dag: Any, *arguments: Any, **words: Any) -> Any:
        asked.append(words.get("pseudo_executor") is None)
        return execute_workflow(dag, *arguments, **words)

    def schedule(scheduler: Any) -> Any:
        begun.extend(asked)
        return schedule_jobs(scheduler)

    execute_workflow, schedule_jobs = api.DAGApi.execute_workflow, JobScheduler.schedule
    api.DAGApi.execute_workflow, JobScheduler.schedule = execute, schedule
    api.print_exception, cli.print_exception = noted(api.print_exception), noted(cli.print_exception)
    sys.argv[0] = "snakemake"
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code == 0 and UNWRITTEN and not any(asked):
            return of_error(UNWRITTEN[0])  # to be looked at is all that was asked for
        if ended.code == 0:
            return RAN if any(asked) else LOOKED
        if ended.code != 1:
            raise
    code = whose(errors[-1]) if errors else Fault.INCOMPLETE.exit_code
    return FAILED if any(begun) and code == Fault.CONFIGURATION.exit_code else code


def whose(error: BaseException) -> int:
    """The exit code for ``error``, which Snakemake has told already."""
    chain, behind = [error], error.__cause__ or error.__context__
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    machine = any(
        isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno in _OF_THE_MACHINE) for one in chain
    )
    if machine:
        return Fault.INFRASTRUCTURE.exit_code
    if type(error).__module__.startswith("snakemake") or (isinstance(error, ValueError) and _is_snakemakes(error)):
        # What it has words for before anything ran: targets, options, files that are not there.
        return Fault.CONFIGURATION.exit_code
    return of_error(error)


def _is_snakemakes(error: BaseException) -> bool:
    """Whether Snakemake itself raised ``error``."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("snakemake.")


if __name__ == "__main__":
    sys.exit(guarded(main))
