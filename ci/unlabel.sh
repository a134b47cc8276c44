#!/usr/bin/env bash
# Take a label off a pull request, so that the next GPU run needs a new decision. Needs GH_TOKEN.
#
#   bash ci/unlabel.sh REPOSITORY PULL_REQUEST LABEL
set -euo pipefail
gh pr edit "$2" --repo "$1" --remove-label "$3"
