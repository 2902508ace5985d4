"""``python -m tests.soak PART``: run the trials of a part that its log does not hold yet."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.harness import (
    REPOSITORY,
    append_result,
    describe_facts,
    read_log,
    run_trials,
    spread,
    summary,
    use_scratch,
)
from tests.soak.parts import PARTS

LOGS = REPOSITORY / "soak"


def main() -> int:
    """Return the exit code: 1 where a trial of the part failed, now or before."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], metavar="PART", help="parts to run; default: all")
    parser.add_argument("--trials", type=int, help="how many trials; default: the full count of the part")
    parser.add_argument("--log", type=Path, help="log of one part; default: soak/PART.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: 1")
    parser.add_argument("--failed", action="store_true", help="run trials again that failed")
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument("--report", action="store_true", help="print a Markdown table of all logs")
    arguments = parser.parse_args()
    if arguments.list:
        for part in PARTS.values():
            print(f"{part.name:24}{part.trials:6}  {part.description}")
        return 0
    if arguments.report:
        print(report(LOGS))
        return 0
    if arguments.log and len(arguments.part) != 1:
        parser.error("--log takes the results of exactly one PART")
    failed = False
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        use_scratch(Path(scratch))
        for name in arguments.part or PARTS:
            log = arguments.log or LOGS / f"{name}.jsonl"
            failed |= not run_part(name, arguments.trials, log, arguments.jobs, arguments.failed)
    return int(failed)


def run_part(name: str, trials: int | None, log: Path, jobs: int, again: bool) -> bool:
    """Run what is missing in a log, print a summary of all of it, and return whether no trial failed."""
    part = PARTS[name]
    wanted = part.trials if trials is None else trials
    known = {trial for trial, result in read_log(log).items() if result.ok or not again}
    for result in run_trials(part, [trial for trial in range(wanted) if trial not in known], jobs):
        append_result(log, result)
        if not result.ok:
            print(f"{name}: trial {result.trial} failed:\n{result.error}", file=sys.stderr, flush=True)
    results = read_log(log).values()
    print(summary(name, results), flush=True)
    return all(result.ok for result in results)


def report(folder: Path) -> str:
    """Return a Markdown table with a row for each part: how much was tried, and what came of it."""
    lines = [
        "| part | trials | failures | seconds min/median/max | facts | commits | last |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in PARTS.values():
        results = list(read_log(folder / f"{part.name}.jsonl").values())
        if not results:
            lines.append(f"| {part.name} | 0 of {part.trials} | | | | | |")
            continue
        failures = sum(not result.ok for result in results)
        cells = [
            part.name,
            f"{len(results)} of {part.trials}",
            str(failures),
            spread([result.seconds for result in results]),
            "; ".join(describe_facts(results)),
            ", ".join(sorted({result.commit for result in results})),
            max(result.date for result in results)[:10],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
