#!/usr/bin/env bash
# Notebooks, modules and README must agree: a copy is cleaned and exported, and compared.
set -euo pipefail
here=$PWD
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r settings.ini pyproject.toml docs nbs t2igen README.md "$copy"
cd "$copy"
find . \( -name .ipynb_checkpoints -o -name __pycache__ \) -prune -exec rm -rf {} +
find t2igen -name '*.py' ! -path t2igen/__init__.py -delete
nbdev_clean
nbdev_export
python docs/readme.py
bad=0
for part in nbs t2igen README.md; do
    diff -rq -x __pycache__ -x .ipynb_checkpoints "$here/$part" "$copy/$part" || bad=1
done
if [ $bad = 1 ]; then
    echo "Out of step, as listed above: run 'make export' and commit what it writes." >&2
    exit 1
fi
echo "Notebooks, modules and README agree."
