#!/usr/bin/env bash
# Makes VENV ready to train: system packages, both frameworks, hvdtrain itself, and a Horovod built for them.
# Does only what is missing, so a second run takes seconds. Called by `make setup` from the top of the project.
set -euo pipefail

venv=${1:?usage: setup.sh VENV}
torch=${TORCH_REQUIREMENT:?set by the Makefile}
tensorflow=${TENSORFLOW_REQUIREMENT:?set by the Makefile}

say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# TensorFlow has wheels for 3.11 to 3.13 only.
usable_python() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
        if usable_python "$candidate"; then command -v "$candidate"; return; fi
    done
}

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() {
    "$1" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))'
}

# Debian packages whose purpose is not met yet, whoever may have met it: first what a build needs ...
missing_needed() {
    local python=$1
    if [ -z "$python" ]; then
        echo python3 python3-venv python3-dev
    else
        has_venv "$python" || echo python3-venv
        has_headers "$python" || echo python3-dev
    fi
    command -v g++ >/dev/null || echo g++
    command -v make >/dev/null || echo make
    command -v cmake >/dev/null || echo cmake
}

# ... then what MPI and other hosts need.
missing_wanted() {
    command -v mpirun >/dev/null || echo openmpi-bin
    command -v mpicxx >/dev/null || echo libopenmpi-dev
    command -v ssh >/dev/null || echo openssh-client
    # Hosts emulated on this machine, for tests.
    if [ -n "${EMULATED_HOSTS:-}" ]; then
        [ -x /usr/sbin/sshd ] || echo openssh-server
        command -v ip >/dev/null || echo iproute2
    fi
}

install_system_packages() {
    local needed wanted
    needed=$(missing_needed "$(find_python)" | xargs)
    wanted=$(missing_wanted | xargs)
    [ -n "$needed$wanted" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian packages: $needed $wanted"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq </dev/null
        # shellcheck disable=SC2086  # the lists are words on purpose
        apt-get install -y -qq --no-install-recommends $needed $wanted </dev/null >/dev/null
    elif [ -n "$needed" ]; then
        fail "missing system packages. As root run: apt-get install $needed $wanted"
    else
        say "going on without $wanted (MPI or ssh launches will not work). As root: apt-get install $wanted"
    fi
}

# What the environment was made from; a different answer means that pip has work to do.
fingerprint() {
    { echo "$torch $tensorflow $PWD"; "$venv/bin/python" --version; cat pyproject.toml "$0"; } | sha256sum
}

install_python_packages() {
    local stamp=$venv/.hvdtrain-setup python
    if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(fingerprint)" = "$(cat "$stamp")" ]; then return 0; fi
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.11 to 3.13 found; install one or say PYTHON=/path/to/python"
    if ! [ -x "$venv/bin/pip" ]; then
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    say "installing $torch, $tensorflow and hvdtrain into $venv (the first time: minutes)"
    # pip would compile all 18,000 modules, which takes longer than installing them; jobs import a fifth.
    "$venv/bin/python" -m pip install -qq --no-compile "$torch" "$tensorflow" -e '.[all,dev]'
    compile_what_jobs_import
    fingerprint >"$stamp"
}

# Here, because with PYTHONDONTWRITEBYTECODE set every later start would compile them again.
compile_what_jobs_import() {
    local modules
    for modules in "torch, transformers.models.bert.modeling_bert" "tensorflow, keras_hub"; do
        env -u PYTHONDONTWRITEBYTECODE TF_CPP_MIN_LOG_LEVEL=3 "$venv/bin/python" -c "import $modules" 2>/dev/null &
    done
    wait
}

install_system_packages
install_python_packages
"$venv/bin/hvdtrain" engine build --install
