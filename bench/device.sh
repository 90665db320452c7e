#!/usr/bin/env bash
# Measure this checkout on a machine with an NVIDIA GPU, in less than ten minutes: bench/device.sh FOLDER [python -m bench.device options]
# Runs the GPU tests, the kernels' benchmarks and one whole MetaNTK-NAS search; FOLDER gets tests.json, kernels.jsonl and search.json.
# Every part has its own time limit and runs whatever became of the others; the exit status is 1 if one failed.
# A rehearsal without a GPU: bench/device.sh FOLDER --device cpu --smoke
set -u
if [ $# -lt 1 ]; then
  echo "usage: bench/device.sh FOLDER [--device cpu --smoke]" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0
for part in "tests 200" "kernels 180" "search 200"; do
  read -r name limit <<<"$part"
  timeout "$limit" "$python" -m bench.device "$name" --out "$out" "$@" >"$out/$name.log" 2>&1
  code=$?
  tail -n 12 "$out/$name.log"
  echo "$name: exit status $code"
  [ "$code" -eq 0 ] || status=1
done
exit $status
