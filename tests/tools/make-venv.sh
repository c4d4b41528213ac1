#!/bin/sh
# make-venv.sh PYTHON VENV: a virtual environment with vdisk (editable) and all it needs.
set -eu

python=$1
venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "vdisk needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2
    exit 1
fi

# Debian keeps what venv needs in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Python's venv module is missing; on Debian: sudo apt-get install python3-venv" >&2
        exit 1
    fi
    echo "Installing python3-venv"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        python3-venv >/dev/null
fi

[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"

for attempt in 1 2 3; do
    echo "Installing vdisk and its dependencies in $venv"
    if "$venv/bin/pip" install --quiet --retries 5 --disable-pip-version-check -e '.[dev]'; then
        touch "$venv/.complete"
        exit 0
    fi
    echo "pip failed (attempt $attempt of 3)" >&2
    sleep 5
done
exit 1
