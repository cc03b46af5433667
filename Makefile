# make demo    a policy before and after finetuning, on any CPU
# make test    the tests, and how much of the library they reach; OPTIONS go to pytest
# make lint    style, types, and that imports only go down
# make docs    the documentation as a site, build/site; fails at any warning
# make clean   forgets .venv and every cache; keeps runs/
#
# The first of them installs everything into .venv. Another Python: make PYTHON=/path/to/python3.12

SUITABLE := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
INSTALLED := .venv/.installed

.PHONY: demo test lint docs clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	.venv/bin/dtune demo

test: $(INSTALLED)
	.venv/bin/python -m pytest $(OPTIONS) --cov=dtune --cov-branch --cov-report=term:skip-covered --cov-fail-under=90

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: $(INSTALLED)
	.venv/bin/mkdocs build --strict --quiet

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -x .venv/bin/pip ]; then exit 0; fi; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$python -c '$(SUITABLE)' 2>/dev/null; then exec $$python -m venv .venv; fi; \
	done; \
	echo "dtune needs Python 3.11, 3.12 or 3.13 with its venv module: install one" \
		"(Debian, Ubuntu: apt install python3-venv), or say make PYTHON=/path/to/python3.12" >&2; \
	exit 1
	.venv/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .coverage .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
