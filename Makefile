# Everything runs in .venv, made from the pins of constraints.txt; PYTHON may name another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEB_STAMP := $(VENV)/.installed-web
DOCS_STAMP := $(VENV)/.installed-docs
RELEASE_STAMP := $(VENV)/.installed-release
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
OUT ?= out/demo
DEVICE ?= cuda
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REACH := $(BIN)/python -m lift_benchmarks.reach
DOWNSTREAM := $(BIN)/python -m lift_benchmarks.downstream
PUBLIC := $(BIN)/python -m lift_benchmarks.public

.PHONY: demo demo-ct brats synthrad federation demo-artefacts demo-left-out few-patients demo-unconditional real-hippocampus test test-fast test-federation test-federation-full test-fuzz test-fuzz-full test-web lint bench bench-crop bench-gpu bench-federation bench-privacy reach rivals rivals-demo rivals-lgg downstream real real-lgg real-lgg-left-out docs wheel wheel-check images image-server-cpu image-site-cpu image-site-gpu clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $(STAMP)

demo: $(STAMP)  ## the embedded demo: a federation on phantom volumes, with its report
	$(BIN)/lift-simulate --output $(OUT)

federation: $(STAMP)  ## a real federation on this machine: a server and three sites, TLS, live page, phantoms
	$(BIN)/lift-server try out/federation

demo-artefacts: $(STAMP)  ## phantom slices with strong faults, one in ten lost: filters repair them too
	$(BIN)/lift-simulate --config configs/presets/demo-artefacts.yaml --output out/demo-artefacts

demo-ct: $(STAMP)  ## phantom heads with skull, MR to CT: errors in HU, bone in the report
	$(BIN)/lift-simulate --config configs/presets/demo-ct.yaml --output out/demo-ct

brats: $(STAMP)  ## BraTS 2023, DATA=FOLDER: a missing contrast (MISSING=t2f), beside published figures; resumable
	$(PUBLIC) brats --data "$(DATA)" --output "$(or $(RESULT),out/brats)" \
	  $(if $(MISSING),--missing $(MISSING)) $(if $(SITES),--sites "$(SITES)") $(if $(QUICK),--quick)

synthrad: $(STAMP)  ## SynthRAD2023 or 2025, DATA=FOLDER: MR to CT (REGION=brain), beside published figures; resumable
	$(PUBLIC) synthrad --data "$(DATA)" --output "$(or $(RESULT),out/synthrad)" \
	  $(if $(REGION),--region $(REGION)) $(if $(SITES),--sites "$(SITES)") $(if $(QUICK),--quick)

few-patients: $(STAMP)  ## phantom: from how many patients a site on joining still pays; with a figure
	$(BIN)/python -m lift_benchmarks.few_patients

demo-left-out: $(STAMP)  ## phantom: every hospital left out once, then calibrated from three pairs
	$(BIN)/lift-simulate --config configs/presets/demo-left-out.yaml --output out/demo-left-out

demo-unconditional: $(STAMP)  ## new phantom volumes by drifting statistics of three sites
	$(BIN)/lift-simulate --config configs/presets/phantom-t1.yaml --output out/phantom-t1

test: lint test-fast  ## lint, types, import contracts, tests

test-fast: $(STAMP)  ## the tests alone, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-federation: $(STAMP)  ## real federations: kill -9 of every process at every step of a round
	$(BIN)/python -m pytest -m slow -n 2 --dist loadscope tests/federation

test-federation-full: $(STAMP)  ## the same, each process at each step in a federation of its own
	$(BIN)/python -m pytest -m full tests/federation

test-fuzz: $(STAMP)  ## mutated messages, damaged files, scripts of rounds, planted faults: minutes
	$(BIN)/python -m pytest -m fuzz -n 2 --dist loadscope

test-fuzz-full: $(STAMP)  ## the same for the night, in the full sizes of tests/scale.py
	LIFT_SCALE=full $(BIN)/python -m pytest -m fuzz -n 2 --dist loadscope -o timeout=7200

$(WEB_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,test-web]"
	@touch $(WEB_STAMP)

test-web: $(WEB_STAMP)  ## report, viewer and live page in a real Chromium; pictures in out/screenshots
	command -v chromium || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q chromium; }
	$(BIN)/python -m pytest -m web -n 2 --dist loadscope tests/web

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)  ## the documentation in out/docs, offline; it runs the tutorial: about a minute
	$(BIN)/python docs/figures/make.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build --strict --quiet

$(RELEASE_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,release]"
	@touch $(RELEASE_STAMP)

wheel: $(RELEASE_STAMP)  ## wheel, source archive, list of components and SHA256SUMS in dist/
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m tools.release dist

images: image-server-cpu image-site-cpu image-site-gpu  ## images of a release; PYTHON_IMAGE: the base, by its digest

image-server-cpu image-site-cpu image-site-gpu: image-%: $(STAMP)
	$(BIN)/python -m tools.images $(PYTHON_IMAGE)
	podman build --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --target $(word 1,$(subst -, ,$*)) \
	  --file deploy/containers/Containerfile.$(word 2,$(subst -, ,$*)) \
	  --ignorefile deploy/containers/Containerfile.$(word 2,$(subst -, ,$*)).dockerignore --tag lift-$*:$(VERSION) .
	mkdir -p dist
	podman run --rm --entrypoint cat lift-$*:$(VERSION) /opt/lift/lift.cdx.json > dist/lift-$*.cdx.json

wheel-check: wheel  ## builds again and compares the bytes
	rm -rf out/wheel-again
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d out/wheel-again
	$(BIN)/python -m tools.release out/wheel-again
	cmp dist/SHA256SUMS out/wheel-again/SHA256SUMS

lint: $(STAMP)  ## style, types and import contracts alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## cost against cWDM, cache, memory, bytes, overhead: a table and bench.json
	$(BIN)/python -m lift_benchmarks.bench

bench-gpu: $(STAMP)  ## one GPU (DEVICE, cuda): seconds, memory, share of the roof, quality; 9 minutes at most
	$(BIN)/python -m lift_benchmarks.gpu --device $(DEVICE)

bench-crop: $(STAMP)  ## PSNR of a narrow, cropped generator beside a wide one, on phantoms; resumable
	$(BIN)/python -m lift_benchmarks.crop_quality

bench-federation: $(STAMP)  ## real processes: overhead of a round, start, memory, commands
	$(BIN)/python -m tests.federation.measure

bench-privacy: $(STAMP)  ## gains by epsilon, mode and cohort, on phantoms; hours, resumable
	$(BIN)/python -m lift_benchmarks.utility

reach: $(STAMP)  ## PSNR against parameters, beside a plain 3D U-Net: demo and LIFT_TEST_DATA; resumable
	$(BIN)/lift pretrain --config configs/presets/real/lgg/generator.yaml -o out/real-lgg-generator
	$(REACH) --config configs/presets/real-lgg.yaml --output out/reach/real-lgg
	$(REACH) --config configs/presets/real-flair.yaml --output out/reach/real-flair
	$(REACH) --config deploy/lift_simulation/demo.yaml --output out/reach/demo
	$(REACH) --output out/reach --beside out/reach/demo --beside out/reach/real-flair --beside out/reach/real-lgg

rivals: $(STAMP)  ## plain 3D and 2.5D U-Nets beside the mixer, with costs: demo and LIFT_TEST_DATA; resumable
	$(MAKE) --jobs 2 --output-sync=target rivals-demo rivals-lgg

rivals-demo: $(STAMP)
	$(BIN)/lift-simulate --config configs/presets/rivals-demo.yaml --output out/rivals-demo

rivals-lgg: $(STAMP)
	$(BIN)/lift pretrain --config configs/presets/real/lgg/generator.yaml -o out/real-lgg-generator
	$(BIN)/lift-simulate --config configs/presets/rivals-lgg.yaml --output out/rivals-lgg

downstream: $(STAMP)  ## do new volumes help a segmenter: phantoms and LIFT_TEST_DATA; resumable
	$(DOWNSTREAM) --output out/downstream/phantom
	$(DOWNSTREAM) --config configs/presets/real-hippocampus.yaml --output out/downstream/real-hippocampus

real: $(STAMP)  ## the federation on the real volumes that LIFT_TEST_DATA names
	$(BIN)/lift-simulate --config configs/presets/real-flair.yaml --output out/real-flair

real-lgg: $(STAMP)  ## four hospitals, thick slices: real data that LIFT_TEST_DATA names
	$(BIN)/lift pretrain --config configs/presets/real/lgg/generator.yaml -o out/real-lgg-generator
	$(BIN)/lift-simulate --config configs/presets/real-lgg.yaml --output out/real-lgg

real-lgg-left-out: $(STAMP)  ## every hospital of real-lgg left out once, then calibrated from three pairs
	$(BIN)/lift pretrain --config configs/presets/real/lgg/generator.yaml -o out/real-lgg-generator
	$(BIN)/lift-simulate --config configs/presets/real-lgg-left-out.yaml --output out/real-lgg-left-out

real-hippocampus: $(STAMP)  ## new hippocampus volumes; real data that LIFT_TEST_DATA names
	$(BIN)/lift-simulate --config configs/presets/real-hippocampus.yaml --output out/real-hippocampus

clean:  ## remove results, not the environment
	rm -rf out bench.json
