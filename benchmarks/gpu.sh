#!/usr/bin/env bash
# All that is to be known of one GPU, in at most eight minutes: see benchmarks/gpu.py.
#
#     benchmarks/gpu.sh [--out FOLDER] [--mnist DIR] [--small]
#
# Needs vae_jax's dependencies and PyTorch; `PYTHON` names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false TORCHINDUCTOR_COMPILE_THREADS=2
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
