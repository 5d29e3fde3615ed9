#!/usr/bin/env bash
# One command for a machine with an NVIDIA card: is lacuna right on it, and how fast is it beside PyTorch on the same card?
# Less than nine minutes. Needs the driver, Python with PyTorch (with transformers too, the paper's loop runs on its modules)
# and the lacuna binary; no Rust, no CUDA toolkit. What is missing is skipped, and the report says so.
#
#   tools/gpu_check.sh OUTDIR              the parts of inference; then OUTDIR/report.md and OUTDIR/results.jsonl
#   tools/gpu_check.sh --parts training OUTDIR
#   tools/gpu_check.sh --dry-run           what would run here and what would be skipped, and why; runs and writes nothing
#   tools/gpu_check.sh --parts kernels,denoise OUTDIR
#   tools/gpu_check.sh --tiny OUTDIR       the parts in Python on the CPU with tiny sizes: whether they run; no numbers of use
#
# Parts, in this order, each in a file of its own that grows as it goes:
#   facts      card, driver, versions, date, commit
#   selftest   lacuna selftest --device cuda: every kernel against the CPU, forward and backward
#   sanitizer  compute-sanitizer where it is found: memcheck, racecheck, initcheck on the quick self-test, and memcheck on a
#              training step of the bundled model
#   ceilings   bytes a second of a copy and FLOP a second of a large product, by PyTorch
#   kernels    lacuna bench kernels, and PyTorch's operations at the same sizes
#   backward   the same for what only training asks for: gradients, the masked loss, AdamW
#   denoise    whole generations: the paper's loop in PyTorch against lacuna bench generate, with token-by-token decoding
#              beside it; the most telling sizes first, as many as there is time for
#   train      whole training steps: PyTorch, compiled, against lacuna bench train; likewise
#   retrain    on request: the bundled model anew from a text, by lacuna alone
#   smollm2    on request: SmolLM2-135M adapted to diffusion on a text, by lacuna alone
# Together: inference (facts to denoise, without backward; the default), training (facts, ceilings, backward, train) and all
# (both). tools/gpu/report.py OUTDIR OTHER... makes one report of several folders.
#
# Options:
#   --parts A,B     only these parts
#   --minutes N     time for everything, 1 to 60 (default 9); parts are cut to fit, the last ones share what is left
#   --python FILE   the Python to use (default: python3 or python, the first that has PyTorch)
#   --retrain "..." for that part: --text FILE, --model DIR (a left-to-right model to adapt), --steps N, --batch N, --length N
#   --smollm2 "..." for that part: --text FILE, --model DIR (of tools/fetch_smollm2.py), and the others
#   --dry-run, --tiny, --help
#
# LACUNA names the binary; else target/release/lacuna, then one beside this script, then PATH. LACUNA_CUBLASLT, which names
# cuBLASLt, is set to the one that came with PyTorch where the loader finds none: lacuna multiplies by it then, as PyTorch does.
#
# Ctrl-C or SIGTERM ends the part that runs and writes the report of what there is. A second run into the same folder is
# refused. The machine should be idle: other work on the card is in the numbers.
#
# Exit codes: 0 the parts ran or were skipped; 1 a kernel is wrong: the self-test failed or the sanitizer found something;
# 2 wrong usage; 8 no card (the report says why); 130 or 143 stopped.
set -uo pipefail

tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
scripts="$tools/gpu"
inference=(facts selftest sanitizer ceilings kernels denoise)
training=(facts ceilings backward train)
all=(facts selftest sanitizer ceilings kernels backward denoise train retrain smollm2)
whole=(denoise train retrain smollm2) # those that share the time that is left

usage() { # WORDS
  printf 'gpu_check.sh: %s; --help explains\n' "$1" >&2
  exit 2
}

out='' dry='' tiny='' minutes=9 asked_python='' words_retrain='' words_smollm2='' parts=("${inference[@]}")
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --dry-run) dry=1 ;;
    --tiny) tiny=1 ;;
    --parts | --minutes | --python | --retrain | --smollm2)
      [ $# -ge 2 ] || usage "$1 needs a value"
      case "$1" in
        --parts) IFS=, read -r -a parts <<<"$2" ;;
        --minutes) minutes="$2" ;;
        --python) asked_python="$2" ;;
        --retrain) words_retrain="$2" ;;
        --smollm2) words_smollm2="$2" ;;
      esac
      shift
      ;;
    -*) usage "unknown option $1" ;;
    *)
      [ -z "$out" ] || usage "one folder, and there are two: $out and $1"
      out="$1"
      ;;
  esac
  shift
done
[[ "$minutes" =~ ^[0-9]+$ ]] && [ "$minutes" -ge 1 ] && [ "$minutes" -le 60 ] || usage "--minutes $minutes: expected 1 to 60"
[ ${#parts[@]} -gt 0 ] || usage "--parts needs at least one part"
asked=("${parts[@]}") parts=()
for part in "${asked[@]}"; do
  case "$part" in
    inference) parts+=("${inference[@]}") ;;
    training) parts+=("${training[@]}") ;;
    all) parts+=("${inference[@]}" "${training[@]}") ;;
    *)
      case " ${all[*]} " in *" $part "*) ;; *) usage "--parts $part: expected some of ${all[*]}, inference, training, all" ;; esac
      parts+=("$part")
      ;;
  esac
done
[ -n "$out" ] || [ -n "$dry" ] || usage "a folder for the results is missing"
if [ -z "$dry" ]; then
  mkdir -p "$out" || exit 2
  out="$(cd "$out" && pwd)"
  if compgen -G "$out/*.jsonl" >/dev/null; then usage "$out holds results already: name another folder"; fi
fi

# ---------------------------------------------------------------- what is there

no_card='' no_binary='' no_torch='' python='' lacuna=''

find_python() {
  local candidate first='' why=''
  local candidates=(python3 python)
  [ -z "$asked_python" ] || candidates=("$asked_python")
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 || continue
    [ -n "$first" ] || first="$candidate"
    if why="$("$candidate" "$scripts/facts.py" --torch 2>/dev/null)"; then
      python="$candidate"
      return
    fi
  done
  python="$first"
  no_torch="no PyTorch${why:+ ($why)}"
  [ -n "$python" ] || no_torch="no Python 3.8 or later"
}

find_lacuna() {
  local candidate
  if [ -n "${LACUNA:-}" ]; then
    lacuna="$(command -v -- "$LACUNA" 2>/dev/null)" || no_binary="no binary: LACUNA names $LACUNA, which cannot be run"
    return
  fi
  for candidate in "$tools/../target/release/lacuna" "$tools/lacuna"; do
    [ -x "$candidate" ] && lacuna="$candidate" && return
  done
  lacuna="$(command -v lacuna 2>/dev/null)" || no_binary="no lacuna binary (LACUNA=FILE names one)"
}

find_card() {
  case "${CUDA_VISIBLE_DEVICES-0}" in
    '' | -1) no_card="no card: CUDA_VISIBLE_DEVICES hides all" && return ;;
  esac
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then return; fi
  local words="neither nvidia-smi nor Python to ask for one"
  if [ -n "$python" ] && words="$("$python" "$scripts/facts.py" --card 2>/dev/null)"; then return; fi
  no_card="no card: ${words:-the driver cannot be asked}"
}

find_sanitizer() {
  local candidate
  candidate="$(command -v compute-sanitizer 2>/dev/null)" && printf '%s' "$candidate" && return
  for candidate in "${CUDA_HOME:-/usr/local/cuda}"/bin /usr/local/cuda*/bin /usr/local/cuda*/compute-sanitizer /opt/cuda/bin; do
    [ -x "$candidate/compute-sanitizer" ] && printf '%s' "$candidate/compute-sanitizer" && return
  done
  [ -z "$python" ] || "$python" "$scripts/facts.py" --sanitizer 2>/dev/null
}

export PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
find_python
find_lacuna
find_card
if [ -n "$python" ] && [ -z "${LACUNA_CUBLASLT:-}" ]; then
  found="$("$python" "$scripts/facts.py" --cublaslt 2>/dev/null)"
  [ -z "$found" ] || export LACUNA_CUBLASLT="$found"
fi

# ---------------------------------------------------------------- running a part

started=$SECONDS
limit=$((minutes * 60))
child='' wrong=0

left() { echo $((limit - (SECONDS - started) - 15)); } # with time for the report kept back

box() { # SECONDS: of nine minutes, cut to what there is; never less than 5
  local seconds=$(($1 * minutes / 9)) rest
  rest=$(left)
  [ "$minutes" -le 9 ] || seconds=$1
  [ "$seconds" -le "$rest" ] || seconds=$rest
  [ "$seconds" -ge 5 ] || seconds=5
  echo "$seconds"
}

share() { # PART: of the parts that share what is left, this one's seconds
  local part later=0 reached=''
  for part in "${whole[@]}"; do
    [ "$part" != "$1" ] || reached=1
    [ -z "$reached" ] || case " ${parts[*]} " in *" $part "*) later=$((later + 1)) ;; esac
  done
  echo $(($(left) / (later > 0 ? later : 1)))
}

boxed() { # SECONDS COMMAND...: in the background, so that signals are answered at once
  local code
  timeout --kill-after=5 "$1" "${@:2}" &
  child=$!
  wait "$child"
  code=$?
  child=''
  return "$code"
}

json() { # TEXT as a JSON string
  local text="$1"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "$(printf '%s' "$text" | tr '\000-\037' ' ')"
}

line() { # FILE PART FIELDS
  printf '{"part": "%s", %s}\n' "$2" "$3" >>"$out/$1"
}

skip() { # FILE PART WORDS
  printf '%s: skipped: %s\n' "$2" "$3"
  [ -n "$dry" ] || line "$1" "$2" "\"skipped\": $(json "$3")"
}

would() { # PART SECONDS COMMAND
  printf '%s: would run: %s (at most %s s)\n' "$1" "$3" "$2"
}

ended() { # FILE PART CODE START STDERR-FILE MORE-FIELDS: how a program ended, for the report
  local words='' more="${6:+, $6}"
  [ "$3" -ne 124 ] && [ "$3" -ne 137 ] || words="stopped: its time was over"
  [ "$3" -eq 0 ] || [ -n "$words" ] || words="exit code $3: $(grep -v '^[[:space:]]*$' "$5" 2>/dev/null | tail -n 1 | cut -c 1-300)"
  # A file that was cut in the middle of a line gets its end first.
  [ ! -s "$out/$1" ] || [ -z "$(tail -c 1 "$out/$1")" ] || echo >>"$out/$1"
  line "$1" "$2" "\"exit_code\": $3, \"seconds\": $((SECONDS - $4))${words:+, \"error\": $(json "$words")}$more"
  printf '%s: %s\n' "$2" "${words:-done in $((SECONDS - $4)) s}"
}

join() { # WORDS...: those that are there, with semicolons
  local words='' word
  for word in "$@"; do
    [ -z "$word" ] || words="$words${words:+; }$word"
  done
  printf '%s' "$words"
}

part_facts() {
  local file=1-facts.jsonl start=$SECONDS
  [ -z "$dry" ] || {
    if [ -n "$python" ]; then would facts 30 "facts.py"; else skip "$file" facts "$no_torch"; fi
    return
  }
  line "$file" facts "\"bash\": $(json "$BASH_VERSION"), \"host_card\": $(json "${no_card:-there is one}")${tiny:+, \"tiny\": true}"
  [ -n "$python" ] || { skip "$file" facts "$no_torch"; return; }
  boxed 30 "$python" "$scripts/facts.py" --output "$out/$file" ${lacuna:+--lacuna "$lacuna"} 2>"$out/1-facts.err"
  ended "$file" facts $? "$start" "$out/1-facts.err"
}

part_selftest() {
  local file=2-selftest.jsonl start=$SECONDS seconds why code
  why="$(join "$no_card" "$no_binary" "${tiny:+--tiny runs the parts in Python only}")"
  [ -z "$why" ] || { skip "$file" selftest "$why"; return; }
  seconds=$(box 90)
  [ -z "$dry" ] || { would selftest "$seconds" "lacuna selftest --device cuda --json"; return; }
  boxed "$seconds" "$lacuna" selftest --device cuda --json >>"$out/$file" 2>"$out/2-selftest.err"
  code=$?
  [ "$code" -ne 8 ] || wrong=1
  ended "$file" selftest "$code" "$start" "$out/2-selftest.err"
}

part_sanitizer() {
  local file=3-sanitizer.jsonl start tool seconds end why code sanitizer found name work
  sanitizer="$(find_sanitizer)"
  why="$(join "$no_card" "$no_binary" "${tiny:+--tiny runs the parts in Python only}")"
  [ -n "$sanitizer" ] || why="$(join "$why" "no compute-sanitizer (it is part of the CUDA toolkit)")"
  [ -z "$why" ] || { skip "$file" sanitizer "$why"; return; }
  seconds=$(box 90)
  local selftest=(selftest --device cuda --quick)
  local training=(bench train --device cuda --dtype bf16 --batch 2 --length 64 --repeat 1 --warmup 2 --no-ceilings)
  [ -z "$dry" ] || { would sanitizer "$seconds" "compute-sanitizer lacuna ${selftest[*]}; lacuna ${training[*]}"; return; }
  end=$((SECONDS + seconds))
  for name in memcheck memcheck-training racecheck initcheck; do
    tool="${name%%-*}" work=("${selftest[@]}")
    [ "$name" = "$tool" ] || work=("${training[@]}")
    start=$SECONDS
    seconds=$((end - SECONDS))
    if [ "$seconds" -lt 5 ]; then
      line "$file" sanitizer "\"tool\": \"$name\", \"error\": \"no time left\""
      continue
    fi
    # Our kernels only: what NVIDIA's library does is not ours to mend.
    boxed "$seconds" env LACUNA_CUBLASLT=none "$sanitizer" --tool "$tool" --error-exitcode 99 \
      "$lacuna" "${work[@]}" >"$out/3-$name.txt" 2>&1
    code=$?
    case "$code" in 8 | 99) wrong=1 ;; esac
    found="$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/3-$name.txt" | tail -n 1 | sed 's/^=* *//')"
    ended "$file" sanitizer "$code" "$start" "$out/3-$name.txt" "\"tool\": \"$name\", \"summary\": $(json "$found")"
  done
}

in_python() { # PART SECONDS FILE SCRIPT ARGUMENTS...: writes FILE
  local start=$SECONDS part="$1" seconds="$2" file="$3" errors="$out/${3%.jsonl}.err"
  boxed "$seconds" "$python" "$scripts/$4" --output "$out/$file" --seconds $((seconds > 14 ? seconds - 8 : 6)) \
    ${tiny:+--tiny} "${@:5}" 2>"$errors"
  ended "$file" "$part" $? "$start" "$errors" '"who": "PyTorch"'
}

part_ceilings() {
  local file=4-ceilings.jsonl why seconds
  why="$(join "$([ -n "$tiny" ] || printf '%s' "$no_card")" "$no_torch")"
  [ -z "$why" ] || { skip "$file" ceilings "$why"; return; }
  seconds=$(box 40)
  [ -z "$dry" ] || { would ceilings "$seconds" "ceilings.py"; return; }
  in_python ceilings "$seconds" "$file" ceilings.py
}

both_kernels() { # PART NUMBER KERNELS LACUNA-SECONDS SCRIPT TORCH-SECONDS
  local file="$2-$1-lacuna.jsonl" start=$SECONDS why_lacuna why_torch seconds
  local command=(bench kernels --device cuda --json --filter "$3")
  why_lacuna="$(join "$no_card" "$no_binary" "${tiny:+--tiny runs the parts in Python only}")"
  why_torch="$(join "$([ -n "$tiny" ] || printf '%s' "$no_card")" "$no_torch")"
  if [ -n "$why_lacuna" ] && [ -n "$why_torch" ]; then
    if [ "$why_lacuna" = "$why_torch" ]; then why_torch=''; else why_torch="; PyTorch: $why_torch"; fi
    skip "$file" "$1" "$why_lacuna$why_torch"
    return
  fi
  seconds=$(box "$4")
  if [ -n "$why_lacuna" ]; then
    skip "$file" "$1" "lacuna: $why_lacuna"
  elif [ -n "$dry" ]; then
    would "$1" "$seconds" "lacuna ${command[*]}"
  else
    boxed "$seconds" "$lacuna" "${command[@]}" >>"$out/$file" 2>"$out/${file%.jsonl}.err"
    ended "$file" "$1" $? "$start" "$out/${file%.jsonl}.err" '"who": "lacuna"'
  fi
  file="$2-$1-torch.jsonl"
  if [ -n "$why_torch" ]; then
    skip "$file" "$1" "PyTorch: $why_torch"
  elif [ -n "$dry" ]; then
    would "$1" "$(box "$6")" "$5"
  else
    in_python "$1" "$(box "$6")" "$file" "$5"
  fi
}

part_kernels() { both_kernels kernels 5 inference 55 kernels.py 60; }
part_backward() { both_kernels backward 7 training 50 backward.py 110; }

both_whole() { # PART NUMBER
  local file="$2-$1.jsonl" why seconds flags=()
  local why_lacuna why_torch
  why_lacuna="$(join "$no_card" "$no_binary" "${tiny:+--tiny runs the parts in Python only}")"
  why_torch="$(join "$([ -n "$tiny" ] || printf '%s' "$no_card")" "$no_torch")"
  # Without PyTorch, but with some Python, lacuna is measured alone.
  why="$(join "$([ -n "$tiny" ] || printf '%s' "$no_card")" "$no_torch" "$no_binary")"
  if [ -n "$why_torch" ] && { [ -n "$why_lacuna" ] || [ -z "$python" ]; }; then
    skip "$file" "$1" "$why"
    return
  fi
  seconds=$(share "$1")
  if [ "$seconds" -lt 20 ]; then skip "$file" "$1" "no time left"; return; fi
  if [ -n "$why_torch" ]; then skip "$file" "$1" "PyTorch: $why_torch" && flags+=(--without); fi
  if [ -n "$why_lacuna" ]; then skip "$file" "$1" "lacuna: $why_lacuna"; else flags+=(--lacuna "$lacuna"); fi
  [ -z "$dry" ] || { would "$1" "$seconds" "$1.py ${flags[*]}"; return; }
  in_python "$1" "$seconds" "$file" "$1.py" "${flags[@]}"
}

part_denoise() { both_whole denoise 6; }
part_train() { both_whole train 8; }

training_run() { # PART NUMBER WORDS
  local file="$2-$1.jsonl" why seconds words=()
  read -r -a words <<<"$3"
  why="$(join "$no_card" "$no_binary" "${tiny:+--tiny runs no training}" "$([ -n "$python" ] || printf 'no Python 3.8 or later')")"
  [ -z "$why" ] || { skip "$file" "$1" "$why"; return; }
  words=(--part "$1" --lacuna "$lacuna" "${words[@]}")
  why="$("$python" "$scripts/adapt.py" --check --output none "${words[@]}" 2>&1)" || {
    skip "$file" "$1" "$(printf '%s' "$why" | tail -n 1)"
    return
  }
  seconds=$(share "$1")
  if [ "$seconds" -lt 60 ]; then skip "$file" "$1" "no time left: --minutes N gives more"; return; fi
  [ -z "$dry" ] || { would "$1" "$seconds" "adapt.py ${words[*]}"; return; }
  in_python "$1" "$seconds" "$file" adapt.py "${words[@]}"
}

part_retrain() { training_run retrain 9 "$words_retrain"; }
part_smollm2() { training_run smollm2 10 "$words_smollm2"; }

# ---------------------------------------------------------------- the report

report() { # WORDS: why it was cut short, or nothing
  [ -z "$dry" ] || return 0
  [ -z "$1" ] || line 11-end.jsonl end "\"error\": $(json "$1")"
  if [ -n "$python" ] && timeout 30 "$python" "$scripts/report.py" "$out"; then
    printf 'report: %s\n' "$out/report.md"
    return 0
  fi
  # Without Python: what there is, as it is.
  cat "$out"/[0-9]*.jsonl >"$out/results.jsonl"
  {
    printf '# lacuna on this card\n\nNo Python wrote this report, so that there are no tables: the lines follow.\n\n```text\n'
    cat "$out/results.jsonl"
    printf '```\n'
  } >"$out/report.md"
  printf 'report: %s (lines only)\n' "$out/report.md"
}

stop() { # NAME CODE
  trap '' INT TERM
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null
    wait "$child" 2>/dev/null
  fi
  printf 'stopped by SIG%s\n' "$1"
  [ -n "$dry" ] || for file in "$out"/[0-9]*.jsonl; do
    [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || echo >>"$file"
  done
  report "stopped by SIG$1"
  exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM

for part in "${all[@]}"; do
  case " ${parts[*]} " in *" $part "*) "part_$part" ;; esac
done

if [ -n "$no_card" ] && [ -z "$dry" ] && [ -z "$tiny" ]; then
  report "$no_card"
  printf 'gpu_check.sh: %s\n' "$no_card" >&2
  exit 8
fi
report ''
exit "$wrong"
