#!/bin/sh
# What every host runs: sh deploy/host.sh PIPELINE
# The first one makes the pipeline, its trainings together with the others; those wait to join them.
set -eu

if [ "${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-0}}" = 0 ]; then
    exec dagster asset materialize -m pipelines --select "group:$1"
fi
exec python -m millrace join "$1"
