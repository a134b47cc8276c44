#!/usr/bin/env bash
# Style, types and docstrings.
EXTRAS="dev"
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
mypy
