# All stages, in two lanes: `dvc repro` runs one stage after another, and most of those of a small model take one core.
# Several of it may run at once, as long as none touches what another one writes: each of these is told its stages.

LANE_1 := token2wav thinker talker
LANE_2 := frontend encoder projection
DVC := python -m dvc
STAGES := $(or $(shell $(DVC) stage list --name-only),$(error DVC lists no stages))
BUILD := pull@% export@%
REPRO := $(DVC) --wait-for-lock repro --single-item

.PHONY: all inputs snapshot
all: judge-1 judge-2 # and now whatever is left
	$(DVC) repro

judge-%: inputs
	$(REPRO) $(filter-out $(BUILD),$(foreach name,$(LANE_$*),$(filter %@$(name),$(STAGES))))

snapshot:
	$(REPRO) snapshot

inputs: build-1 build-2
	$(REPRO) inputs

build-%: snapshot
	$(REPRO) $(filter $(BUILD),$(foreach name,$(LANE_$*),$(filter %@$(name),$(STAGES))))
