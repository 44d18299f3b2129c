#!/bin/sh
# Writes the two lock files from pyproject.toml: names, versions and hashes only. Needs `uv` on the PATH.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url -q pyproject.toml "$@"; }
lock --extra build -o requirements.lock
lock --extra build --extra dev -c requirements.lock -o requirements-dev.lock
