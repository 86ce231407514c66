# Every target sets up what it needs, and says so; a repeated run starts its actual work at once.
.DEFAULT_GOAL := help
TRACES ?= $(wildcard $(or $(TESSERA_TRACES),../shared/traces)/*.jsonl)
.PHONY: help setup demo test test-long bench book gpu-check sanitize lint format

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Install everything that demo and test need, without running them
	@scripts/setup.sh package cxx test torch jax transformers browser

demo: ## Align the standard workload, or a file of routing: make demo TRACE=FILE OPTIONS=...
	@scripts/setup.sh package
	@.venv/bin/tessera align --time $(if $(TRACE),"$(TRACE)") $(OPTIONS)
	@.venv/bin/python examples/python/fused_experts.py

test: ## Run all C++ and Python tests; TORCH=none BROWSER=none skip large downloads
	@TORCH="$(TORCH)" BROWSER="$(BROWSER)" scripts/test.sh

test-long: ## Run what takes longer than make test waits: thousands of random cases, whole models
	@scripts/test_long.sh

bench: ## Run the benchmark on the CPU, and write bench/results/ and docs/performance.md
	@scripts/setup.sh package torch bench
	@scripts/build.sh bench
	@.venv/bin/tessera bench --device cpu --preset report --force --json bench/results $(if $(TRACES),--log $(TRACES))
	@.venv/bin/python bench/inspection.py --json bench/results/inspection.json
	@.venv/bin/python bench/performance_page.py

book: ## Build the book of docs/ in build/book/; LINKS=external also checks links to other sites
	@LINKS="$(LINKS)" scripts/book.sh

gpu-check: ## Build for the GPU here, test, sanitize, benchmark; STAGE="NAME ..." runs some stages
	@WHEELS="$(WHEELS)" scripts/gpu_check.sh $(STAGE)

sanitize: ## Run the C++ tests under the sanitizers, then the fuzz target for 30 s
	@scripts/ctest.sh asan
	@scripts/ctest.sh tsan
	@scripts/fuzz.sh 30

lint: ## Check format, types, names, lengths, links
	@scripts/lint.sh

format: ## Rewrite C++ and Python files in the house format
	@scripts/format.sh
