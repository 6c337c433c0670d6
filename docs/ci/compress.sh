#!/bin/sh
# Compress a model, hold it to its limits, and gather what a CI job keeps.
#
#   sh compress.sh RECIPE OUTPUT [LIMIT...]        for example
#   sh compress.sh quickstart runs/ci 'gmacs>0.26' 'efficiency.32<0.9'
#
# RECIPE and OUTPUT are those of `madtp prune`; every LIMIT is a --fail-if of `madtp profile`.
#   PRUNE_OPTIONS  more options of prune, as in '--set training.steps=100'
#   MAX_LOSS       how many points the main metric may lose, as in 2
# OUTPUT-artifacts gets report.html, README.md and the JSON of both commands, whatever happens. A job that was stopped
# goes on where it was if OUTPUT.partial is there again.
# Ends with the first of: prune's exit code (5: budget not reached), 6 if MAX_LOSS is exceeded, profile's (6: a limit hit).
set -eu

recipe=${1:?usage: compress.sh RECIPE OUTPUT [LIMIT...]}
output=${2:?usage: compress.sh RECIPE OUTPUT [LIMIT...]}
shift 2
artifacts=$output-artifacts
case ${MAX_LOSS:-0} in *[!0-9.]* | *.*.*) echo "compress.sh: MAX_LOSS=$MAX_LOSS is no number of points, such as 1.5" >&2; exit 2 ;; esac
mkdir -p "$artifacts"

# Each LIMIT becomes a --fail-if of its own.
count=$#
while [ "$count" -gt 0 ]; do
  set -- "$@" --fail-if "$1"
  shift
  count=$((count - 1))
done

resume=
if [ -d "$output.partial/state" ]; then resume=--resume; fi
pruned=0
# shellcheck disable=SC2086  # options are words
madtp prune --recipe "$recipe" --output "$output" --json $resume ${PRUNE_OPTIONS:-} >"$artifacts/prune.json" || pruned=$?
# With any other code than these there is no checkpoint of this run.
if [ "$pruned" -ne 0 ] && [ "$pruned" -ne 5 ]; then
  if [ ! -s "$artifacts/prune.json" ]; then rm "$artifacts/prune.json"; fi
  exit "$pruned"
fi
for file in report.html README.md; do
  if [ -f "$output/$file" ]; then cp "$output/$file" "$artifacts/"; fi
done

lost=0
if [ -n "${MAX_LOSS:-}" ]; then
  python3 - "$output/profile.json" "$MAX_LOSS" <<'PYTHON' || lost=$?
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    run = json.load(file)
names = ("accuracy", "cider", "cider_javafree", "mean")
name = next(name for name in names if name in run["pruned"]["metrics"])
points = 100 * (run["dense"]["metrics"][name] - run["pruned"]["metrics"][name])
print(f"{name}: {points:.1f} points lost, {sys.argv[2]} allowed", file=sys.stderr)
sys.exit(0 if points <= float(sys.argv[2]) else 6)
PYTHON
fi

profiled=0
madtp profile "$output" --json "$@" >"$artifacts/profile.json" || profiled=$?

for code in "$pruned" "$lost" "$profiled"; do
  if [ "$code" -ne 0 ]; then exit "$code"; fi
done
