#!/usr/bin/env bash
# An EAGLE drafter trained with specdec, serving in vLLM: exported, then named to `vllm serve`.
#
#   bash examples/drafter_in_vllm.sh DRAFTER VERIFIER [OUT]
#
# DRAFTER is a folder that `specdec distill --recipe eagle-hidden` wrote, VERIFIER the model that it
# was trained for, OUT a folder that is not there yet (default: exported). Needs vLLM, and a GPU, for
# the last step only.
set -euo pipefail

drafter=${1:?folder of an EAGLE drafter}
verifier=${2:?folder or hub id of the model it drafts for}
out=${3:-exported}

specdec export "$drafter" --to vllm --out "$out" --verifier "$verifier"

if ! command -v vllm >/dev/null; then
	echo "exported to $out; there is no vllm here to serve it" >&2
	exit 0
fi
exec vllm serve "$verifier" --speculative-config \
	"{\"method\": \"eagle3\", \"model\": \"$out\", \"num_speculative_tokens\": 3}"
