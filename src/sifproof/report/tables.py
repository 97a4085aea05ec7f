"""``checks.tsv`` and ``summary.tsv``: pandas frames made from the recorded verdicts, and their text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from sifproof.records import Plan, Verdict
from sifproof.report.decision import Decision, Standing
from sifproof.report.facts import Timing, image_facts, timings
from sifproof.report.recorded import Recorded
from sifproof.report.terms import FAILED
from sifproof.text import tsv_escape, tsv_unescape

CHECK_COLUMNS = [name for name in Verdict.model_fields if name not in ("fault", "hindered")]
LEFT_OUT = "plan.left-out"
"""The check id of the row that stands for a sandbox that the run left out."""


class SummaryRow(BaseModel):
    """One sandbox of the run: a row of ``results/summary.tsv``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    run: str = Field(description="id of the run")
    sandbox: str = Field(description="name of the sandbox in the config")
    driver: str = Field(description="singularity or docker")
    verdict: Standing = Field(
        description="accepted, rejected, configuration, infrastructure or incomplete; not-measured where left out"
    )
    required: bool = Field(description="whether the run's decision counts it: False where it was left out")
    reason: str = Field(description="why it was not accepted, or was left out")
    checks: int = Field(description="verdicts in all")
    passed: int = Field(alias="pass", description="checks that passed")
    fail: int = Field(description="checks that failed")
    flaky: int = Field(description="checks that passed only sometimes")
    waived: int = Field(description="checks that failed and are waived by the config")
    measured: int = Field(description="checks that measured something, without a limit to judge it by")
    not_measured: int = Field(alias="not-measured", description="checks that were not measured")
    advisory: int = Field(description="checks that failed, or passed only sometimes, and are not required")
    off: int = Field(description="checks of its suites that the config turned off")
    waivers: str = Field(description="waivers of the config with their states")
    allocations: int = Field(description="allocations that were checked")
    expected: int = Field(description="allocations that the plan asks for")
    nodes: str = Field(description="names of the Nomad nodes, separated by spaces")
    image: str = Field(description="the image as the config names it")
    digest: str = Field(description="digest of the source image")
    sif: str = Field(description="path of the Apptainer image")
    sif_sha256: str = Field(description="SHA-256 of the Apptainer image, hexadecimal")
    sif_bytes: int | None = Field(description="size of the Apptainer image in bytes")
    image_s: float | None = Field(description="seconds that the image took, in the run that converted it")
    job_s: float | None = Field(description="seconds from the job's submission to its first healthy answer")
    checks_s: float | None = Field(description="seconds that the checks took, teardown among them")
    waited_s: float | None = Field(description="seconds of them that checks waited on purpose")
    command: str = Field(description="the command of the run, as a shell takes it: it tests the same once more")


def checks_table(plan: Plan, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row per verdict of this run in the plan's order, and one per sandbox left out; fields of :class:`Verdict`."""
    order = {sandbox.name: (number, sandbox.suites) for number, sandbox in enumerate(plan.sandboxes)}

    def place(row: Verdict) -> tuple[int, int]:
        number, suites = order.get(row.sandbox, (len(order), []))
        return number, suites.index(row.suite) if row.suite in suites else len(suites)

    shown = sorted((row for row in verdicts if row.run == plan.run), key=place)
    measured = {row.sandbox for row in shown}
    for sandbox in plan.sandboxes:
        if sandbox.left_out and sandbox.name not in measured:
            shown.append(
                Verdict(
                    run=plan.run,
                    sandbox=sandbox.name,
                    driver=sandbox.driver,
                    suite="plan",
                    check=LEFT_OUT,
                    verdict="not-measured",
                    required=False,
                    attempts=0,
                    message=sandbox.left_out,
                )
            )
    frame = pd.DataFrame([row.model_dump(mode="json") for row in shown], columns=list(Verdict.model_fields))
    return frame.astype(
        {"required": bool, "value": float, "limit": float, "duration_s": float, "waited_s": float, "attempts": int}
    )


def summary_table(recorded: Recorded, decision: Decision) -> pd.DataFrame:
    """A row per sandbox of the plan; columns as in :class:`SummaryRow`."""
    checks = checks_table(recorded.plan, recorded.verdicts)
    seconds = pd.DataFrame(timings(recorded), columns=list(Timing._fields))
    sums = seconds.groupby(["sandbox", "stage"])["seconds"].sum().to_dict()
    waited = seconds.groupby(["sandbox", "stage"])["waited"].sum().to_dict()
    decided = {sandbox.name: sandbox for sandbox in decision.sandboxes}
    made = []
    for sandbox in recorded.plan.sandboxes:
        own = checks[checks["sandbox"] == sandbox.name]
        counts = own["verdict"].value_counts()
        facts = image_facts(recorded.images.get(sandbox.name, {}))
        terms = decision.terms.of(sandbox.name)
        row = SummaryRow(
            run=recorded.plan.run,
            sandbox=sandbox.name,
            driver=sandbox.driver,
            verdict=decided[sandbox.name].verdict,
            required=not sandbox.left_out,
            reason=decided[sandbox.name].reason,
            checks=len(own),
            passed=int(counts.get("pass", 0)),
            fail=int(counts.get("fail", 0)),
            flaky=int(counts.get("flaky", 0)),
            waived=int(counts.get("waived", 0)),
            measured=int(counts.get("measured", 0)),
            not_measured=int(counts.get("not-measured", 0)),
            advisory=int((own["verdict"].isin(list(FAILED)) & ~own["required"]).sum()),
            off=len(terms.off),
            waivers="; ".join(f"{term.check}: {term.said()}" for term in terms.waivers),
            allocations=own["allocation"].loc[lambda ids: ids != ""].nunique(),
            expected=sandbox.count,
            nodes=" ".join(node for node in own["node"].unique() if node),
            image=sandbox.image,
            digest=facts.digest,
            sif=facts.sif,
            sif_sha256=facts.sha256,
            sif_bytes=facts.size_bytes,
            image_s=sums.get((sandbox.name, "image")),
            job_s=sums.get((sandbox.name, "job")),
            checks_s=sums.get((sandbox.name, "checks")),
            waited_s=waited.get((sandbox.name, "checks")),
            command=recorded.plan.command,
        )
        made.append(row.model_dump(by_alias=True))
    columns = [field.alias or name for name, field in SummaryRow.model_fields.items()]
    return pd.DataFrame(made, columns=columns).astype({"sif_bytes": "Int64"})


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of ``frame`` as named tuples, whose fields no type checker can know."""
    return iter(frame.itertuples(index=False))


def to_tsv(frame: pd.DataFrame) -> str:
    """``frame`` as TSV, one line per row whatever its texts hold: :func:`~sifproof.text.tsv_escape`."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    safe = frame.assign(**{name: frame[name].map(lambda text: tsv_escape(str(text))) for name in texts})
    return safe.to_csv(sep="\t", index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


def read_tsv(path: Path) -> pd.DataFrame:
    """The frame that :func:`to_tsv` wrote to ``path``, its texts as they were recorded.

    ``pandas.read_csv(path, sep="\\t")`` reads it too, with escaped texts and missing values where a text is empty.
    """
    dtypes = _dtypes()
    missing = {name: [""] for name, dtype in dtypes.items() if dtype in {"float64", "Int64"}}
    frame = pd.read_csv(path, sep="\t", dtype=dtypes, keep_default_na=False, na_values=missing)
    texts = [name for name in frame.columns if dtypes.get(name) == "str"]
    return frame.assign(**{name: frame[name].map(tsv_unescape).astype("str") for name in texts})


def _dtypes() -> dict[str, str]:
    """What pandas reads each column of both tables as."""
    named: dict[object, str] = {
        bool: "bool",
        int: "int64",
        float: "float64",
        float | None: "float64",
        int | None: "Int64",
    }
    return {
        field.alias or name: named.get(field.annotation, "str")
        for model in (Verdict, SummaryRow)
        for name, field in model.model_fields.items()
    }
