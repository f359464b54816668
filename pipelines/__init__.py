"""Everything Dagster loads (`-m pipelines`): every folder here with a defs.yaml is one pipeline."""

from pathlib import Path

import dagster as dg

from millrace.spec_file import check_folder
from pipelines.environments import build_resources

# Before Dagster reads them: its own error for a wrong key is two hundred lines long.
check_folder(Path(__file__).parent)

defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    dg.Definitions(resources=build_resources(), executor=dg.in_process_executor),
)
