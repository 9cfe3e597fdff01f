# make run    install, then execute the demo profile (what is done is skipped)
# make test   install, lint, sync check, the notebooks' own tests, pytest
PYTHON ?= python3
BIN := .venv/bin
CODE := t2igen nbs tests benchmarks docs setup.py
# One thread a worker, and threads that sleep while they wait: two workers share the cores.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: run test lint install sync export readme notebooks docs preview hooks clean
run: install
	$(BIN)/t2igen run --profile demo --run-dir runs/demo

test: install lint sync
	$(QUIET) $(BIN)/nbdev_test --n_workers 2 --file_re '^([0-9]+[a-z]_|[a-z])'
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install        # the writing rules, and types where they are promised
	$(BIN)/ruff check $(CODE)
	$(BIN)/basedpyright --level error

install: .venv/installed
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" \
	|| { echo "t2igen needs Python 3.10 or newer; this is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	|| { rm -rf .venv; echo "Cannot make .venv: install Python's venv module (on Debian: python3-venv)." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(MAKE) --no-print-directory hooks; fi
	@touch $@

hooks:               # before a commit: notebooks clean and exported, ruff content
	@mkdir -p "$$(git rev-parse --git-common-dir)/hooks"
	@install -m 755 tests/pre-commit "$$(git rev-parse --git-common-dir)/hooks/pre-commit"

export: install      # from the notebooks: the modules, and README from index.ipynb
	$(BIN)/nbdev_clean
	find t2igen -name '*.py' ! -path t2igen/__init__.py -delete
	$(BIN)/nbdev_export
	$(MAKE) --no-print-directory readme

notebooks: install   # the course's chapters executed, their outputs kept: the same bytes each time
	$(QUIET) $(BIN)/python tests/make_notebooks.py $(CHAPTERS)

# A copy of the checkout is cleaned and exported by nbdev; it must come out as it went in.
# The checkout itself is not touched.
sync: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/in_sync.sh

readme: install      # README.md is index.ipynb, its links leading into nbs/
	$(BIN)/python docs/readme.py

# The pages: processed for Quarto, or rendered without it for looking at. With RUN=runs/demo
# they show that run: its executed stage notebooks and its report.
RUN ?= runs/demo
docs: install
	$(BIN)/python -m docs.build --run $(RUN)
	@if command -v quarto >/dev/null; then cd _proc && quarto render --no-execute && rm -rf ../_docs && mv _docs ..; \
	else echo "Quarto is not installed, so no pages were made of them (https://quarto.org); make preview needs none."; fi

preview: install
	$(BIN)/python -m docs.build --preview --run $(RUN)

clean:               # what make made, but for runs/
	rm -rf .venv _proc _docs _preview build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
