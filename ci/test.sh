#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest:
#   bash ci/test.sh                     everything that this machine can run
#   bash ci/test.sh --backend numpy     one backend
#   XPREG_REQUIRE_GPU=1 bash ci/test.sh fail when there is no GPU
EXTRAS="${EXTRAS:-test,plot,progress,sklearn}"
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python -m pytest "$@"
