"""What starts a pipeline by itself: its job, a schedule, and a sensor for changed source files."""

import dagster as dg

from assets.step import PipelineFolder
from millrace.data.listing import list_source
from millrace.errors import SourceError
from millrace.frozen import digest

SENSOR_SECONDS = 60


def build_automation(pipeline: PipelineFolder) -> dg.Definitions:
    """The job that makes the whole pipeline in one run, so that its gates gate, and its starters.

    A cron line in the YAML becomes a schedule that is on from the start; the sensor is on where
    the YAML says `watch: true`, and can be switched on in the UI elsewhere.
    """
    job = dg.define_asset_job(
        pipeline.name,
        dg.AssetSelection.groups(pipeline.name),
        description=pipeline.spec.description,
    )
    schedules = [
        dg.ScheduleDefinition(
            name=f"{pipeline.name}_schedule",
            job=job,
            cron_schedule=cron,
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        for cron in [pipeline.spec.schedule]
        if cron
    ]
    return dg.Definitions(jobs=[job], schedules=schedules, sensors=[_build_sensor(pipeline)])


def _build_sensor(pipeline: PipelineFolder) -> dg.SensorDefinition:
    """A sensor that lists the source and starts a run whenever its files have changed."""
    status = dg.DefaultSensorStatus
    default_status = status.RUNNING if pipeline.spec.watch else status.STOPPED

    @dg.sensor(
        name=f"{pipeline.name}_source_files",
        job_name=pipeline.name,
        minimum_interval_seconds=SENSOR_SECONDS,
        default_status=default_status,
        description=f"Starts {pipeline.name} when its source files change.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            files = list_source(pipeline.spec.source, pipeline.folder)
        except SourceError as error:
            return dg.SensorResult(skip_reason=str(error))
        state = digest([(file.path, file.fingerprint) for file in files])
        last, _, count = (context.cursor or ":0").partition(":")
        if state == last:
            return dg.SensorResult(skip_reason=f"the {len(files)} source files are unchanged")
        # Counted, because a run key is taken once for ever and files may return to a former state.
        cursor = f"{state}:{int(count) + 1}"
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=cursor)], cursor=cursor)

    return sensor
