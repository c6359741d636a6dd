# Portreeve's tasks. `make` alone prints them.
SHELL := /bin/bash
export PATH := $(CURDIR)/target/tools/bin:$(PATH):$(HOME)/.cargo/bin

# Each folder in tests/ with a main.rs is a test program, but for the benchmarks.
waiting := consul vault
others := $(filter-out bench $(waiting),$(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)))

.PHONY: help setup envoys build demo demo-nomad demo-mesh test lint unit deny growth bench bench-full bench-quick bench-instructions fuzz fuzz-smoke chaos soak docs clean

help: ## Print these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: ## Fetch the programs that the tests and the demo start (Envoy, Consul, OpenBao) into target/tools
	@tests/setup.sh

envoys: ## Fetch every supported Envoy into target/tools, for the tests of the main path on each
	@tests/setup.sh envoy 1.36 1.37 1.38 1.39 1.40

build: ## Build the portreeve program (debug)
	cargo build --locked

demo: setup build ## Run a gateway on this machine and send requests through it
	@tests/demo.sh

demo-nomad: setup build ## Run the gateway as a Nomad job on this machine, with the nomad in your PATH
	@tests/demo-nomad.sh

demo-mesh: setup build ## Run a mesh ingress on this machine, flip an intention and see it explained
	@tests/demo-mesh.sh

test: setup envoys lint deny ## Everything that CI checks
	cargo test --locked --no-run
	@# The optimised build for `growth` takes what the tests leave idle: they wait for programs more than they compute.
	@mkdir -p target; nice -n 19 cargo bench --locked --profile count --bench suite --no-run >target/growth.log 2>&1 & \
	build=$$!; $(MAKE) --no-print-directory unit; status=$$?; \
	if ((status)); then kill $$build 2>/dev/null; exit $$status; fi; wait $$build || cat target/growth.log
	@tests/bench/instructions.sh count

lint: ## Check formatting and lints
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

deny: ## Check licences, bans, sources and advisories of all dependencies
	@tests/setup.sh deny
	cargo deny --locked --log-level error check --hide-inclusion-graph licenses bans sources
	@if timeout 120 cargo deny --locked --log-level off fetch db; then \
	    cargo deny --locked --offline --log-level error check --hide-inclusion-graph advisories; \
	else \
	    echo "deny: advisories NOT checked: their database cannot be reached from this machine"; \
	fi

unit: ## Run every test; the programs must be there (make setup envoys)
	@# The tests wait for programs more than they compute: four at once on two cores, and twice as many where they hardly compute.
	@status=0; threads=$${RUST_TEST_THREADS:-4}; \
	RUST_TEST_THREADS=$$threads cargo test --locked --no-fail-fast --lib --bins $(addprefix --test ,$(others)) || status=$$?; \
	RUST_TEST_THREADS=$$((2 * threads)) cargo test --locked --no-fail-fast $(addprefix --test ,$(waiting)) || status=$$?; \
	cargo test --locked --doc || status=$$?; exit $$status

bench: setup ## Run every benchmark, three rounds
	cargo bench --locked --bench suite
	@tests/bench/instructions.sh

bench-full: setup ## Run the benchmarks that take hours too, going on where an earlier run ended; AGAIN=1 begins anew
	cargo bench --locked --bench suite -- --full $(if $(AGAIN),--again)
	@RESUME=$(if $(AGAIN),,1) tests/bench/instructions.sh
	@RESUME=$(if $(AGAIN),,1) tests/bench/instructions.sh bench long

bench-quick: setup ## Run every benchmark once, with small sizes; results in target/bench/quick
	cargo bench --locked --bench suite -- --quick

growth: ## The same check as bench-instructions, by a build that takes a fraction of the time: counts are higher, growth is the same
	@tests/bench/instructions.sh count

bench-instructions: ## Check that one change costs the same among 1,000 and 10,000 objects (needs valgrind, else says so)
	@tests/bench/instructions.sh

chaos: setup ## Let everything go wrong under load, one fault after the other; results in target/chaos (20 minutes)
	rm -f target/chaos/{summary,details}.json target/chaos/table.md
	CHAOS=long cargo test --locked --profile faults --test chaos -- --test-threads 1 --nocapture --skip soak::
	CHAOS=long CHAOS_PLAYED=1 cargo test --locked --profile faults --test chaos -- record::the_suite_is_whole

soak: setup ## Change everything for an hour under load (SOAK_MINUTES=60): nothing fails, nothing grows; results in target/chaos/soak.json
	CHAOS=long SOAK_MINUTES=$${SOAK_MINUTES:-60} cargo test --locked --profile faults --test chaos -- --nocapture soak::

fuzz: ## Fuzz every parser, guided by the code that inputs reach: FUZZ_SECONDS=60 for each, TARGET=name for one; findings in target/fuzz/crashes
	@status=0; tests/fuzz/run.sh $(TARGET) || status=$$?; UPDATE_REFERENCE=1 cargo test --locked --quiet --lib fuzz_page && exit $$status

fuzz-smoke: ## Feed every parser, and the model of xDS, many more random inputs than `make test` does
	PROPTEST_CASES=20000 cargo test --locked fuzz
	PROPTEST_CASES=20000 cargo test --locked --test xds -- model:: keyless::

docs: ## Build the API documentation, warnings being errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

clean: ## Remove what cargo built; the fetched programs stay
	rm -rf target/{debug,release,faults,count,doc,criterion,tmp} target/fuzz/{fuzz,*-linux-*}
