# The commands of the house.  meson does the work; these are the names people type.
#
#   make               build build/hv
#   make demo          boot a real Debian guest on our own CPU engine (installs what is missing)
#   make check         build and run the tests; closes with 'N passed, N failed, N skipped'
#   make check-long    the long suites: a million instruction cases, sanitizers, stress, transfers
#   make bench         measure
#   make fuzz          run every fuzz target for FUZZ_S seconds each (600)
#   make install       PREFIX=/usr/local by default
BUILD   ?= build
PREFIX  ?= /usr/local
FUZZ_S  ?= 600
MESON   ?= meson

.PHONY: all demo check check-long check-asan check-style bench fuzz install clean

all: $(BUILD)/build.ninja
	@ninja -C $(BUILD) hv

.PHONY: everything
everything: $(BUILD)/build.ninja
	@ninja -C $(BUILD)

$(BUILD)/build.ninja:
	@scripts/install-deps.sh build
	@$(MESON) setup $(BUILD) --prefix=$(PREFIX) >/dev/null

demo:
	@scripts/install-deps.sh build demo
	@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) scripts/demo.sh

check:
	@scripts/install-deps.sh check
	@$(MAKE) --no-print-directory check-style everything
	@scripts/boot-assets.sh $(BUILD)/assets
	@scripts/nested-assets.sh $(BUILD)/assets
	@tests/harness/run.py $(BUILD) --no-suite long

check-long:
	@scripts/install-deps.sh check bench
	@$(MAKE) --no-print-directory check-style everything check-asan
	@scripts/boot-assets.sh $(BUILD)/assets long
	@scripts/boot-workload.sh $(BUILD)/assets
	@scripts/bench-assets.sh $(BUILD)/assets
	@scripts/nested-assets.sh $(BUILD)/assets
	@tests/harness/run.py $(BUILD) --timeout-multiplier 4

# The unit, instruction and guest rings under AddressSanitizer and UBSan.
check-asan:
	@scripts/install-deps.sh check demo
	@test -f $(BUILD)-asan/build.ninja || $(MESON) setup $(BUILD)-asan \
		-Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=debugoptimized >/dev/null
	@ninja -C $(BUILD)-asan
	@scripts/boot-assets.sh $(BUILD)-asan/assets
	@scripts/nested-assets.sh $(BUILD)-asan/assets
	@tests/harness/run.py $(BUILD)-asan --no-suite long --timeout-multiplier 6

check-style:
	@tools/check_layers.py src docs/layers.txt
	@tools/check_headers.py src
	@tools/check_format.sh

bench: everything
	@scripts/install-deps.sh bench
	@scripts/boot-assets.sh $(BUILD)/assets
	@scripts/bench-assets.sh $(BUILD)/assets
	@scripts/nested-assets.sh $(BUILD)/assets
	@meson test -C $(BUILD) --benchmark --verbose

fuzz:
	@scripts/install-deps.sh fuzz
	@test -f $(BUILD)-fuzz/build.ninja || CC=clang-14 $(MESON) setup $(BUILD)-fuzz -Dfuzz=true \
		-Db_sanitize=address,undefined -Db_lundef=false >/dev/null
	@ninja -C $(BUILD)-fuzz
	@scripts/fuzz.sh $(BUILD)-fuzz $(FUZZ_S)

install: everything
	@ninja -C $(BUILD) install

clean:
	@rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-fuzz
