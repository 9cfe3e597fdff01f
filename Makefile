# make run    install, then execute the demo profile (what is done is skipped)
# make test   install, sync check, the notebooks' own tests, pytest
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test install sync readme docs clean
run: install
	$(BIN)/t2igen run --profile demo --run-dir runs/demo

test: install sync
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

install: .venv/installed
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "t2igen needs Python 3.10 or newer; this is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Cannot make .venv: install Python's venv module (on Debian: python3-venv)." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# A copy of the checkout is cleaned and exported by nbdev; it must come out as it went in. The checkout itself is not touched.
sync: install
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -r settings.ini nbs t2igen README.md "$$copy" && bin="$$PWD/$(BIN)" && cd "$$copy" \
	&& find . -name .ipynb_checkpoints -prune -exec rm -rf {} + && find t2igen -name '*.py' -delete \
	&& "$$bin/nbdev_clean" && "$$bin/nbdev_export" && "$$bin/python" -m nbconvert --log-level=ERROR --to markdown --output-dir . --output README nbs/index.ipynb && cd "$(CURDIR)" \
	&& for part in nbs t2igen README.md; do diff -rq -x __pycache__ -x .ipynb_checkpoints $$part "$$copy/$$part" || bad=1; done \
	&& if [ "$$bad" ]; then echo "Out of step, as listed above: run nbdev_clean, nbdev_export and make readme in $(BIN), and commit what they write." >&2; exit 1; fi \
	&& echo "Notebooks, modules and README agree."

readme: install      # nbdev_readme needs Quarto; the index has no code cells, so nbconvert gives the same
	$(BIN)/python -m nbconvert --log-level=ERROR --to markdown --output-dir . --output README nbs/index.ipynb

docs: install        # nbdev's processed notebooks, with our one _quarto.yml beside them
	$(BIN)/python -c "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)"
	cp _quarto.yml _proc/
	@if command -v quarto >/dev/null; then cd _proc && quarto render --no-execute && rm -rf ../_docs && mv _docs ..; \
	else echo "The notebooks are processed into _proc; Quarto is not installed, so no pages were made of them (https://quarto.org)."; fi

clean:               # what make made, but for runs/
	rm -rf .venv _proc _docs build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
