#!/usr/bin/env bash
# Packs finished runs:  make/pack.sh ARCHIVE RESULTS 'RUNS THAT END IN _tmp' FILE…
#
# Whatever lies in RESULTS goes into ARCHIVE.tar.gz, but for unfinished runs, the masks of single epochs, and the networks
# of single epochs (--keep_every), each of which is as large as the last; so do the FILEs. No archive is overwritten: the
# next one is ARCHIVE-NO=02.tar.gz. RESULTS, or RESULTS/study, may be a study, whose runs lie deeper: in seed0/<run>. The
# tables and the page of a study are made of what is in its archive, and of nothing else. Until it is whole it has a hidden name with the number of this process, and the next
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
left_out=()
for runs_in in "$results" "$results"/seed[0-9]* "$results"/study/seed[0-9]*; do
  left_out+=(--exclude="$runs_in/*/candidates/epoch_[0-9]*.pkl")
  for epoch in iter[0-9][0-9][0-9] iter[0-9][0-9][0-9][0-9]; do left_out+=(--exclude="$runs_in/*/$epoch/val"); done
done
for study in "$results" "$results"/study; do
  [ -e "$study/study.json" ] || continue
  for left in "$study"/seed[0-9]*/*_tmp; do  # what a run left that is not finished bears its mark
    [ ! -e "$left/.of-main.py" ] || left_out+=(--exclude="$left")
  done
  for left in "$study"/.[!.]* "$study"/seed[0-9]*/.[!.]*; do left_out+=(--exclude="$left"); done
done

find "$results" -mindepth 1 -maxdepth 1 ! -name '.*' ! -name '*.part' \( ! -name '*_tmp' "${named[@]}" \) -print0 | LC_ALL=C sort -z |
  tar cf - --sort=name --anchored --no-wildcards-match-slash "${left_out[@]}" --null -T - -- "${files[@]}" |
  "$(command -v pigz || echo gzip)" > "$part"
chmod a=r "$part"
for number in '' -NO={02..99}; do
  mv -n "$part" "$archive$number.tar.gz" 2>/dev/null || true
  [ -e "$part" ] || exit 0
done
echo "$archive has 99 archives of today; move some away." >&2
exit 1
