# What a call looks at before its jobs, and notes after them. Included last: it needs all rules.
import sys

from snakemake.cli import parse_args

from pusa.data.listed import (
    bring_back,
    edited_files,
    lost_files,
    note_files,
    take_away,
)
from pusa.processes import describe, end_orphans, find_workflows
from pusa.report.plan import describe_memory, describe_plan
from pusa.slurm import be_patient

# Tables, figures and pages: single files that take seconds to make.
DRAWN = [
    Path(file)
    for file in (
        *rules.measure_costs.output,
        *rules.make_tables.output,
        *rules.audit.output,
        *rules.claims.output,
        *rules.price.output,
        *rules.record_provenance.output,
        *rules.make_overview.output,
        *expand(rules.measure_effects.output, study=["tables", "effects"]),
        *expand(rules.gallery_page.output, page=VIDEO_PAGES),
        *FIGURE_FILES,
    )
]
DRAWN_NOTE = Path(FILES.path("drawn"))


def note_contents():
    """What was made is noted, to be told from what takes its place later."""
    for listing in map(Path, FILES.lists):
        if listing.exists():
            lost_files(listing)
    note_files(DRAWN, DRAWN_NOTE)


onsuccess:
    note_contents()


onerror:
    note_contents()


if workflow.is_main_process:
    # Whether jobs will run is not known yet while rules are read, but for the command line.
    _, arguments = parse_args(sys.argv[1:])
    if arguments.dryrun:
        print(describe_plan(FILES), file=sys.stderr)
    if arguments.executor == "slurm":
        be_patient()

    if arguments.unlock and (others := find_workflows()):
        raise WorkflowError(
            f"{describe(others[0])} is at work here, so that its lock is not taken away"
        )
    # Where something that a list stands for was deleted or overwritten, its job runs again; that of
    # a list of videos makes just these.
    # Nothing is taken away or ended by a call that only looks, or runs no job.
    looks = (
        *("lint", "report", "summary", "detailed_summary", "list_rules", "archive"),
        *("list_target_rules", "list_changes", "list_untracked", "print_compilation"),
        *("dag", "rulegraph", "filegraph", "d3dag", "containerize", "unlock", "touch"),
        *("cleanup_metadata", "delete_all_output", "delete_temp_output"),
    )
    if not any(getattr(arguments, mode) for mode in looks):
        trains = not all(Path(f).exists() for f in FILES.trained_files("tables"))
        if CONFIG.device == "cuda" and (arguments.dryrun or trains):
            try:
                memory = describe_memory(FILES)
            except ValueError as error:
                raise WorkflowError(str(error))
            if arguments.dryrun:
                print(memory, file=sys.stderr)
        if not arguments.dryrun and not find_workflows():
            try:
                end_orphans()
            except OSError as error:
                raise WorkflowError(str(error))
        for file in DRAWN:
            bring_back(file)
        for file in edited_files(DRAWN, DRAWN_NOTE):
            print(f"{file}: no longer what was made", file=sys.stderr)
            take_away(file, [file], for_good=not arguments.dryrun)
        for listing in map(Path, FILES.lists):
            bring_back(listing)
            if listing.exists() and (lost := lost_files(listing)):
                if listing.name == "run.json":  # days of work, perhaps
                    raise WorkflowError(
                        f"{lost[0]} is no longer what was trained; put it back, or delete it to have "
                        "it trained again"
                    )
                print(
                    f"{listing}: {len(lost)} of its files missing or changed, such as {lost[0]}",
                    file=sys.stderr,
                )
                take_away(listing, lost, for_good=not arguments.dryrun)
