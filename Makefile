# Short names for the commands in README.md and CONTRIBUTING.md.
.PHONY: study quick test soak check bench pictures site

study:
	uv run python -m mktsim

quick:
	uv run python -m mktsim --quick

test:
	uv run pytest

soak:
	uv run pytest -m soak -n 0 -s

check:
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

bench:
	uv run python -m benchmarks

pictures:
	uv run python -m benchmarks.pictures

site:
	MKTSIM_SITE_RUN=1 uv run python -m sphinx -W --keep-going -b html docs out/site
