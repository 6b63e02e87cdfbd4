# What a call looks at before its jobs, and notes after them. Included last: it needs all rules.
import sys

from snakemake.cli import parse_args

from pusa.data.listed import (
    bring_back,
    edited_files,
    keep_edited,
    lost_files,
    note_files,
    take_away,
)
from pusa.data.noted import locked_files
from pusa.made_from import check_made_from
from pusa.processes import describe, end_orphans, find_workflows
from pusa.report.plan import describe_memory, describe_plan
from pusa.slurm import be_patient

# Single files that are made again if they were edited: tables, figures, pages, prompts' embeddings.
SINGLE = [
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
        FILES.path("cache/prompts.safetensors"),
        *([] if CONFIG.is_trained else [FILES.main_weights]),  # converted, in minutes
    )
]
SINGLE_NOTE = Path(FILES.path("single"))


def note_contents():
    """What was made is noted, to be told from what takes its place later."""
    for listing in map(Path, FILES.lists):
        if listing.exists():
            lost_files(listing)
    note_files(SINGLE, SINGLE_NOTE)


def remake_changed(lists, single, dryrun):
    """Take away what was deleted or overwritten in part, so that its job runs again.

    The job of a list of videos makes just these.
    """
    for file in edited_files(single, SINGLE_NOTE):
        told = f"{file}: no longer what its job wrote"
        if dryrun:
            take_away(file, [], for_good=False)
        else:
            told += f", kept as {keep_edited(file)}"
        print(told, file=sys.stderr)
    for listing in filter(Path.exists, lists):
        if not (lost := lost_files(listing)):
            continue
        if listing.name == "run.json":  # days of work, perhaps
            raise ValueError(
                f"{lost[0]} is no longer what was trained; put it back, or move all of "
                f"{listing.parent} away to have it trained again"
            )
        print(
            f"{listing}: {len(lost)} of its files missing or changed, such as {lost[0]}",
            file=sys.stderr,
        )
        take_away(listing, lost, for_good=not dryrun)


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
    # What a dry run took away comes back, if it was killed; another call's files are left alone.
    locked = locked_files()
    lists = [Path(listing) for listing in FILES.lists if listing not in locked]
    single = [file for file in SINGLE if str(file) not in locked]
    for file in (*lists, *single):
        bring_back(file)
    # Nothing is taken away or ended by a call that only looks, or runs no job.
    looks = (
        *("lint", "report", "summary", "detailed_summary", "list_rules", "archive"),
        *("list_target_rules", "list_changes", "list_untracked", "print_compilation"),
        *("dag", "rulegraph", "filegraph", "d3dag", "containerize", "unlock", "touch"),
        *("cleanup_metadata", "delete_all_output", "delete_temp_output"),
        *("list_conda_envs", "conda_create_envs_only", "conda_cleanup_envs"),
        *("cleanup_shadow", "generate_unit_tests"),
        *("container_cleanup_images", "list_input_changes", "list_params_changes"),
    )
    if not any(getattr(arguments, mode) for mode in looks):
        trains = not all(Path(f).exists() for f in FILES.trained_files("tables"))
        try:
            if CONFIG.device == "cuda" and (arguments.dryrun or trains):
                memory = describe_memory(FILES)
                if arguments.dryrun:
                    print(memory, file=sys.stderr)
            if not arguments.dryrun and not find_workflows():
                end_orphans()
            check_made_from(FILES)
            remake_changed(lists, single, arguments.dryrun)
        except (OSError, ValueError) as error:
            raise WorkflowError(str(error))
