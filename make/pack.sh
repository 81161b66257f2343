#!/usr/bin/env bash
# Packs finished runs:  make/pack.sh ARCHIVE RESULTS 'RUNS THAT END IN _tmp' FILE…
#
# Whatever lies in RESULTS goes into ARCHIVE.tar.gz, but for unfinished runs, the masks of single epochs, and the networks
# of single epochs (--keep_every), each of which is as large as the last; so do the FILEs. No archive is overwritten: the
# next one is ARCHIVE-NO=02.tar.gz. Until it is whole it has a hidden name with the number of this process, and the next
# start removes what a killed one left.
set -euo pipefail
archive=$1 results=$2 runs=$3
shift 3
folder=$(dirname "$archive")
mkdir -p "$folder"
for left in "$folder"/.packing-"$HOSTNAME"-*; do
  [ ! -e "$left" ] || kill -0 "${left##*-}" 2>/dev/null || rm -f "$left"
done
part=$folder/.packing-$HOSTNAME-$$
trap 'rm -f "$part"' EXIT

files=()  # a prior that no run asked for was never made
for file in "$@"; do [ ! -e "$file" ] || files+=("$file"); done
named=()
for run in $runs; do named+=(-o -path "$run"); done
single=(--exclude="$results/*/candidates/epoch_[0-9]*.pkl")
for epoch in iter[0-9][0-9][0-9] iter[0-9][0-9][0-9][0-9]; do single+=(--exclude="$results/*/$epoch/val"); done

find "$results" -mindepth 1 -maxdepth 1 ! -name '.*' ! -name '*.part' \( ! -name '*_tmp' "${named[@]}" \) -print0 | LC_ALL=C sort -z |
  tar cf - --sort=name --anchored --no-wildcards-match-slash "${single[@]}" --null -T - -- "${files[@]}" |
  "$(command -v pigz || echo gzip)" > "$part"
chmod a=r "$part"
for number in '' -NO={02..99}; do
  mv -n "$part" "$archive$number.tar.gz" 2>/dev/null || true
  [ -e "$part" ] || exit 0
done
echo "$archive has 99 archives of today; move some away." >&2
exit 1
