# Set up, test, demonstrate. Every target can be run again; nothing is installed outside .venv
# but Debian packages (see tests/tools/install-peers.sh), and those only where root runs make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= auto
TIME   ?= 60
SEED   ?=

.PHONY: help setup peers lint test guests demo bench fuzz cuts soak together clean

help:
	@echo "make demo    set up, then make, change, check and compare a real disk image"
	@echo "make test    set up, install the peers, lint, type-check, run every test"
	@echo "make guests  the guests that take minutes: an installed Debian, a 32-bit kernel, /dev/nbdN"
	@echo "make bench   vdisk beside qemu-img: seconds and ratios"
	@echo "make fuzz    hostile input to every parser, each for TIME=$(TIME) seconds"
	@echo "make cuts    loss of power at any point of any operation, for TIME=$(TIME) seconds"
	@echo "make soak    random lives of disks with crashes and faults, for TIME=$(TIME) seconds"
	@echo "make together  servers and processes killed under load, for TIME=$(TIME) seconds"
	@echo "make setup   the virtual environment in $(VENV), with all dependencies"
	@echo "make peers   QEMU's and libnbd's tools, that the tests are held against (as root)"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove what the others made"

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml tests/tools/make-venv.sh
	@sh tests/tools/make-venv.sh $(PYTHON) $(VENV)

peers:
	@sh tests/tools/install-peers.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup peers lint
	$(BIN)/pytest -n $(JOBS)

guests: setup peers
	VDISK_TEST_GUESTS=1 $(BIN)/pytest tests/vm/test_guests.py tests/vm/test_linux.py tests/vm/test_installed.py \
		tests/vm/test_kvm_guests.py tests/interop/test_nbd_kernel.py

demo: setup peers
	@$(BIN)/python examples/demo.py

bench: setup peers
	$(BIN)/python bench/images.py
	$(BIN)/python bench/nbd.py
	$(BIN)/python bench/nbd_client.py
	$(BIN)/python bench/emu_blockdev.py
	$(BIN)/python bench/boot.py

# Without atheris (there is none for this Python or system) inputs are chosen by chance alone.
$(VENV)/.fuzz: $(VENV)/.complete
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]' || true
	@touch $@

fuzz: setup peers $(VENV)/.fuzz
	$(BIN)/python -m fuzz run --time $(TIME) $(if $(SEED),--seed $(SEED))

cuts: setup peers
	$(BIN)/python -m fuzz.cuts --time $(TIME) $(if $(SEED),--seed $(SEED))

soak: setup peers
	$(BIN)/python -m fuzz.soak --time $(TIME) $(if $(SEED),--seed $(SEED))

together: setup peers
	$(BIN)/python -m fuzz.together --time $(TIME) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .fuzz .guests $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
