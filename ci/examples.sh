#!/usr/bin/env bash
# Runs every example at its quick size.
EXTRAS="test,examples"
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export MPLBACKEND=Agg
python examples/recover_attention.py --out "$work/recovered_attention.png"
python examples/overparametrisation.py --quick --out "$work/overparametrisation.png"
python examples/network_regression.py --quick --out "$work/network_regression.png"
python examples/theory_check.py --quick --out "$work/theory_check.png"
for example in mixture theory digits; do
    python "examples/diffusion_$example.py" --quick --out "$work"
done
