# shellcheck shell=bash
# Shared by the scripts in cluster/ and by .ci/run. To be sourced, by bash, with `set -euo pipefail` on.
#
# It decides where things are, installs system packages that are missing, builds, and finds free ports.
# It says what it does on stderr, so that a script's stdout stays its own. Works as root, or through sudo.

QUORATE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export QUORATE_ROOT

# Ports below the kernel's range for outgoing connections, so that none of those can take one in between.
QUORATE_PORT_MIN=20000
QUORATE_PORT_MAX=30000

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  q_bold=$'\e[1m' q_dim=$'\e[2m' q_red=$'\e[31m' q_green=$'\e[32m' q_yellow=$'\e[33m' q_off=$'\e[0m'
else
  q_bold='' q_dim='' q_red='' q_green='' q_yellow='' q_off=''
fi

# say TEXT: progress.   step TEXT: a heading.   warn TEXT: goes on, but look.   ok TEXT: it worked.
say() { printf '%s%s%s\n' "$q_dim" "$*" "$q_off" >&2; }
step() { printf '%s== %s%s\n' "$q_bold" "$*" "$q_off" >&2; }
warn() { printf '%swarning: %s%s\n' "$q_yellow" "$*" "$q_off" >&2; }
ok() { printf '%s%s%s\n' "$q_green" "$*" "$q_off" >&2; }

# fail ERROR [HINT...]: says what failed, then what to do, and ends the script.
fail() {
  printf '%s%s: error: %s%s\n' "$q_red" "${0##*/}" "$1" "$q_off" >&2
  shift
  for hint in "$@"; do printf '%s: hint: %s\n' "${0##*/}" "$hint" >&2; done
  exit 1
}

# elapsed SINCE: seconds since a `date +%s`, as "1 min 05 s" or "7 s".
elapsed() {
  local seconds=$(($(date +%s) - $1))
  if [ "$seconds" -ge 60 ]; then
    printf '%d min %02d s' $((seconds / 60)) $((seconds % 60))
  else
    printf '%d s' "$seconds"
  fi
}

# missing_packages: the Debian packages without which the mesh does not build or run here, one a line.
# It asks for the files, not for dpkg's word: what was built by hand counts too.
missing_packages() {
  has swtpm || echo swtpm
  has swtpm_setup && has swtpm_cert || echo swtpm-tools
  has cc || has gcc || echo gcc
  has c++ || has g++ || echo g++
  has make || echo make
  has ip || echo iproute2
  has nft || echo nftables
  has openssl || echo openssl
  has ssh-keygen || echo openssh-client
  # TLS stacks that the tests send keyed requests to.
  if [ -n "${QUORATE_TESTS:-}" ]; then
    has nginx || echo nginx-light
    has javac || echo default-jdk-headless
    # Vendors' SDKs are installed into an environment of their own, from the package registries; Node comes the same way.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    # A browser, and a font for it, that the tests look at audit reports with.
    has chromium || has google-chrome || printf '%s\n' chromium fonts-dejavu-core
  fi
  if ! has pkg-config; then
    echo pkg-config
    has_headers || echo libtss2-dev
  elif ! pkg-config --exists tss2-sys tss2-esys tss2-mu tss2-tctildr 2>/dev/null; then
    echo libtss2-dev
  fi
}

# need_packages: installs what is missing, or says plainly what to install by hand.
need_packages() {
  local missing=() package
  while read -r package; do missing+=("$package"); done < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0

  has apt-get || fail "these are missing, and there is no apt-get to install them: ${missing[*]}" \
    "install what your system calls them, then run this again"
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || fail "these packages are missing, and installing them needs root: ${missing[*]}" \
      "as root: apt-get install ${missing[*]}"
    sudo=(sudo)
    [ -t 0 ] || sudo=(sudo -n)
  fi
  step "installing ${missing[*]}"
  local log begun
  log=$(mktemp) begun=$(date +%s)
  if ! { "${sudo[@]}" apt-get update -q &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    rm -f "$log"
    fail "apt-get could not install ${missing[*]}" "as root: apt-get update && apt-get install ${missing[*]}"
  fi
  rm -f "$log"
  hash -r
  missing=()
  while read -r package; do missing+=("$package"); done < <(missing_packages)
  [ ${#missing[@]} -eq 0 ] || fail "still missing after installing: ${missing[*]}"
  say "installed in $(elapsed "$begun")"
}

# need_cargo: Rust, from PATH or from where rustup puts it.
need_cargo() {
  if ! has cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  fi
  local rust="install Rust 1.90 or newer (https://rustup.rs), then run this again" version
  has cargo || fail "cargo is not here" "$rust"
  version=$(cd "$QUORATE_ROOT" && cargo --version | cut -d' ' -f2)
  if [ "$(printf '%s\n' 1.90.0 "$version" | sort -V | head -n 1)" != 1.90.0 ]; then
    fail "cargo $version is too old" "$rust"
  fi
}

# build [--release] [CARGO ARGUMENTS...]: builds every binary, with one line before and one after. Sets
# QUORATE_BIN to the folder that holds them. The dev profile is the default: it is optimised enough for a demo.
build() {
  local profile=debug arguments=()
  while [ $# -gt 0 ]; do
    if [ "$1" = --release ]; then profile=release; fi
    arguments+=("$1")
    shift
  done
  need_cargo
  local begun target
  begun=$(date +%s)
  target=$(target_dir)
  step "building ($profile; the first build takes some minutes)"
  if [ -t 2 ]; then
    # On a terminal cargo shows its own progress bar.
    (cd "$QUORATE_ROOT" && cargo build --workspace --bins --locked "${arguments[@]}") || fail "the build failed"
  else
    build_quietly "$begun" "${arguments[@]}"
  fi
  QUORATE_BIN=$target/$profile
  export QUORATE_BIN
  say "built in $(elapsed "$begun"): $QUORATE_BIN"
}

# build_quietly BEGUN [CARGO ARGUMENTS...]: for logs: a line twice a minute rather than one for each crate.
build_quietly() {
  local begun=$1 log cargo_pid
  shift
  log=$(mktemp)
  (cd "$QUORATE_ROOT" && exec cargo build --workspace --bins --locked "$@") >"$log" 2>&1 &
  cargo_pid=$!
  local next=$((SECONDS + 30))
  while kill -0 "$cargo_pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$next" ]; then
      say "building: $(grep -c '^ *Compiling' "$log" || true) crates after $(elapsed "$begun")"
      next=$((SECONDS + 30))
    fi
    sleep 0.2
  done
  if ! wait "$cargo_pid"; then
    grep -vE '^ *(Compiling|Downloaded|Downloading|Locking|Updating) ' "$log" | tail -n 60 >&2
    rm -f "$log"
    fail "the build failed"
  fi
  rm -f "$log"
}

# target_dir: where cargo builds to.
target_dir() {
  local target=${CARGO_TARGET_DIR:-$QUORATE_ROOT/target}
  case $target in /*) echo "$target" ;; *) echo "$QUORATE_ROOT/$target" ;; esac
}

# free_ports COUNT: prints the first of COUNT consecutive TCP ports on which nothing listens on loopback. A software
# TPM wants a pair: its control port must be the one after its command port.
free_ports() {
  local count=$1 span base port tries=0
  span=$((QUORATE_PORT_MAX - QUORATE_PORT_MIN - count))
  while [ "$tries" -lt 500 ]; do
    tries=$((tries + 1))
    base=$((QUORATE_PORT_MIN + (RANDOM * 32768 + RANDOM) % span))
    for ((port = base; port < base + count; port++)); do
      # A connection that is accepted means that somebody is there; refused means free.
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
    done
    echo "$base"
    return 0
  done
  fail "no $count consecutive free ports between $QUORATE_PORT_MIN and $QUORATE_PORT_MAX"
}

# wait_for WHAT SECONDS COMMAND...: runs COMMAND until it succeeds; fails, naming WHAT, when time is up.
wait_for() {
  local what=$1 limit=$2 until
  shift 2
  until=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || fail "waited ${limit} s for $what"
    sleep 0.1
  done
}

# stop_pid PID [SECONDS]: SIGTERM, then SIGKILL when it does not end in time. Silent when it is already gone.
stop_pid() {
  local pid=$1 limit=${2:-5} until
  until=$((SECONDS + limit))
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$until" ]; then
      kill -KILL "$pid" 2>/dev/null || true
      return 0
    fi
    sleep 0.05
  done
}

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
has_headers() { [ -e /usr/include/tss2/tss2_esys.h ] || [ -e /usr/local/include/tss2/tss2_esys.h ]; }
