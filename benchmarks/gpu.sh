#!/bin/sh
# Measure a machine with a GPU, in at most six minutes, and write the records into a folder. Nothing is installed.
#
#     sh benchmarks/gpu.sh FOLDER [PYTHON]
#
# The folder is given as one word; copy its files into results/speed and draw the page with benchmarks/page.py. Methods
# for which there is no time are left out, and the tables say so. A program that fails does not keep the others from
# running.
set -u
folder=${1:?expected a folder for the records}
python=${2:-python}
here=$(cd "$(dirname "$0")" && pwd)
begin=$(date +%s)
failed=0
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"

# run SECONDS PROGRAM ARGUMENTS: run it for at most so many seconds
run() {
    most=$1 program=$2
    shift 2
    echo "== $program, after $(($(date +%s) - begin)) s"
    timeout "$most" "$python" "$here/$program" --device cuda --dtype bfloat16 --record "$folder" "$@" \
        || { echo "$program: failed or ran out of time ($?)" >&2; failed=1; }
}

run 45 calibrate.py --rounds 5
run 60 passes.py
left=$((345 - ($(date +%s) - begin)))
run "$left" regimes.py --rounds 7 --seconds $((left - 45)) # a row that has begun takes up to 45 s
echo "== done after $(($(date +%s) - begin)) s"
exit $failed
