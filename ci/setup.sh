#!/usr/bin/env bash
# Source this: makes the virtual environment .venv (or $XPREG_VENV) with xpreg and the given extras, and activates it.
#   EXTRAS="test,plot" . ci/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${XPREG_VENV:-.venv}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
. "$venv/bin/activate"
python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xpreg needs Python 3.11 or newer; set PYTHON=...")'
python -m pip install --quiet --disable-pip-version-check --editable ".[${EXTRAS:-test,plot,progress}]"
