#!/usr/bin/env bash
# Makes .venv with everything longshort needs on a CPU machine: about 3 minutes and 4 GB the first time, under a second when nothing changed.
# Packages come from wherever pip is configured to look; the versions are those of launch/requirements-cpu.txt.
# On a GPU machine make your own environment instead: pip install -e '.[gpu,dev]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
LOCK=launch/requirements-cpu.txt
LOG=$VENV/setup.log
STAMP=$VENV/longshort-stamp       # what was installed, and for which folder: scripts inside a venv hold its absolute path
UNFINISHED=$VENV/longshort-unfinished
UNWANTED=(torchvision torchaudio torchcodec)
NEEDED_GIB=6

say() { printf '[setup] %s\n' "$*"; }

fail() {
    printf '\n[setup] FAILED: %s\n' "$1" >&2
    if [[ -s $LOG ]]; then
        printf '[setup] the last lines of %s:\n' "$LOG" >&2
        tail -n 15 "$LOG" | sed 's/^/    /' >&2
    fi
    printf '[setup] what to do: %s\n' "$2" >&2
    exit 1
}

fingerprint() { { pwd -P; cat "$LOCK" pyproject.toml launch/setup.sh; } | sha256sum | cut -d' ' -f1; }

# The first Python 3.11 that can make a virtual environment.
find_python() {
    local candidate
    for candidate in python3.11 python3 /usr/bin/python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

packages_present() { find "$VENV/lib" -maxdepth 3 -name '*.dist-info' 2>/dev/null | wc -l; }

# Deletes the record of each package that was being unpacked when a set-up was interrupted, so that pip unpacks it again.
# pip writes RECORD last.
forget_half_installed() {
    local info
    for info in "$VENV"/lib/*/site-packages/*.dist-info; do
        [[ ! -d $info || -e $info/RECORD ]] || rm -rf "$info"
    done
}

# Runs a command with its output in the log, a line about it every 5 seconds and its time at the end; stops with it on Ctrl-C.
watched() {
    local title=$1 started=$SECONDS pid
    shift
    say "$title"
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    for ((tick = 1; ; tick++)); do
        sleep 0.5
        kill -0 "$pid" 2>/dev/null || break
        if ((tick % 10 == 0)); then
            say "  $((SECONDS - started)) s: $(progress)"
        fi
    done
    trap - INT TERM
    wait "$pid" || return
    say "  took $((SECONDS - started)) s"
}

# pip first fetches everything, then unpacks everything.
progress() {
    local total fetched
    total=$(grep -c == "$LOCK")
    fetched=$(grep -cE '^(Collecting|Processing|Requirement already satisfied)' "$LOG" || true)
    if grep -q '^Installing collected packages' "$LOG"; then
        echo "$(packages_present) packages in place, $((total + 1)) wanted"
    else
        echo "$fetched of $total packages fetched"
    fi
}

remedy() {
    if grep -qi 'no space left' "$LOG"; then
        echo "free ${NEEDED_GIB} GB on this disk (or set TMPDIR to a larger one) and run this again"
    elif grep -qE 'No matching distribution|Could not find a version' "$LOG"; then
        echo "pip cannot see that package: check the network and pip's index settings (pip config list), then run this again"
    elif grep -qiE 'libcud|libnv|libtorch_cuda' "$LOG"; then
        echo "pip took torch's CUDA build: point pip at the CPU builds of torch (PIP_EXTRA_INDEX_URL), delete $VENV, run this again"
    else
        echo "read $LOG; when the cause is gone, run this again (delete $VENV first to start from nothing)"
    fi
}

WANTED=$(fingerprint)
if [[ -f $STAMP && $(<"$STAMP") == "$WANTED" ]]; then
    say "$VENV is up to date"
    exit 0
fi

if [[ -e $UNFINISHED && -x $VENV/bin/python ]]; then
    say "an earlier set-up was interrupted: going on with its $(packages_present) packages"
    forget_half_installed
elif [[ -e $UNFINISHED ]]; then
    rm -rf "$VENV"
fi
if [[ -d $VENV ]] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    fail "$VENV holds no working Python" "delete $VENV and run this again"
fi
free_gib=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1048576))
if [[ ! -d $VENV ]] && ((free_gib < NEEDED_GIB)); then
    fail "this disk has ${free_gib} GB free, the packages need ${NEEDED_GIB} GB" "free some space and run this again"
fi

if [[ ! -d $VENV ]]; then
    python=$(find_python) || fail "no Python 3.11 with venv was found (looked for python3.11 and python3)" \
        "install Python 3.11 (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) and run this again"
    say "making $VENV with $("$python" --version)"
    mkdir "$VENV"
    touch "$UNFINISHED"
    "$python" -m venv "$VENV" >"$LOG" 2>&1 || fail "python -m venv did not work" "$(remedy)"
fi
touch "$UNFINISHED"
: >"$LOG"

pip=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input)
watched "installing $(grep -c == "$LOCK") pinned packages (about 2 minutes, 4 GB); log: $LOG" "${pip[@]}" install --no-deps --no-compile -r "$LOCK" ||
    fail "pip could not install the packages" "$(remedy)"
watched "leaving out ${UNWANTED[*]}" "${pip[@]}" uninstall --yes "${UNWANTED[@]}" ||
    fail "pip could not remove ${UNWANTED[*]}" "$(remedy)"
watched "installing longshort itself" "${pip[@]}" install --no-deps --no-build-isolation --editable . ||
    fail "pip could not install this folder" "$(remedy)"
watched "checking that torch, ray and vLLM import" "$VENV/bin/python" -c '
import ray, torch, transformers
from vllm.platforms import current_platform
assert current_platform.device_type, "vLLM found no device it can use"
print("torch", torch.__version__, "- vLLM device:", current_platform.device_type)' ||
    fail "the packages are installed but do not import" "$(remedy)"

rm "$UNFINISHED"
echo "$WANTED" >"$STAMP"
say "done in ${SECONDS} s: $(packages_present) packages in $VENV"
