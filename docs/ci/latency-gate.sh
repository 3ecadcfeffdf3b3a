#!/usr/bin/env bash
# A latency gate for any CI system that runs a shell on the device. Its exit code is the verdict: 0 PASS, 1 FAIL,
# 5 INCONCLUSIVE. Writes gate/junit.xml and gate/summary.md, and appends to gate/history.jsonl.
#
#   BUNDLE=out/bundle BASELINE_BUNDLE=accepted/bundle bash latency-gate.sh
set -euo pipefail

: "${BUNDLE:?set BUNDLE to the bundle folder or .onnx file to judge}"
mkdir -p gate

arguments=(--time "${GATE_TIME:-60}" --on-inconclusive "${ON_INCONCLUSIVE:-fail}")
if [ -n "${BASELINE:-}" ]; then arguments+=(--baseline "$BASELINE"); fi
if [ -n "${BASELINE_BUNDLE:-}" ]; then arguments+=(--baseline-bundle "$BASELINE_BUNDLE"); fi
if [ -n "${BASELINE:-}${BASELINE_BUNDLE:-}" ]; then arguments+=(--max-regression "${MAX_REGRESSION:-2%}"); fi
if [ -n "${MAX_LATENCY_MS:-}" ]; then arguments+=(--max-latency-ms "$MAX_LATENCY_MS"); fi

# One gate at a time on this device: two would measure each other.
exec 9> "${GATE_LOCK:-/tmp/edgekd-gate.lock}"
if command -v flock > /dev/null; then flock 9; fi

code=0
edgekd gate "$BUNDLE" "${arguments[@]}" --format markdown --junit gate/junit.xml --history gate/history.jsonl \
  > gate/summary.md || code=$?
cat gate/summary.md
exit "$code"
