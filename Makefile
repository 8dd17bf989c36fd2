# Every target makes its own .venv and installs what it needs; nothing else has to be on the machine but Python 3.11+
# and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cpp_ext/*)

# Processes that run tests at once: on two cores one more, as many of them wait for others.
TESTERS ?= 3

# Tests start hundreds of interpreters, and what these would compile each time is kept beside the sources.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo engine packages test slow fresh faults geometries check compiled lint bench clean site wheels lock

# Where no GPU runs it, the CUDA module is compiled for one kind of them: all five take a minute more than the rest.
ifeq ($(shell command -v nvidia-smi),)
.venv/run engine: export CMAKE_ARGS += -DCMAKE_CUDA_ARCHITECTURES=90-real
endif

.venv/run: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --editable .
	touch $@

# On one core the engine is compiled, on the other its packages and those of the tests are unpacked: no file is written by
# both, as the engine comes without what it needs. The pip of an older Python takes three times as long to choose versions
# among so many packages; without a newer one it goes on as it is.
.venv/dev: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	-$(BIN)/pip install -q --upgrade 'pip>=25.1'
	$(MAKE) -j2 engine packages
	touch .venv/run $@

engine:
	$(BIN)/pip install -q --no-deps --editable .

# torch comes first and by version, so that no other package pulls in a build for GPUs. Other people's networks ask for
# packages, and so for another torch, that they do not use; without them the tests of those networks are skipped.
# What is never imported is never compiled: the first import does that.
NEEDED := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = p["optional-dependencies"]; \
	print(*p["dependencies"], *extras["test"], *extras["dev"], sep="\n")

packages:
	$(BIN)/pip install -q --no-compile torch==2.13.0
	$(BIN)/python -c '$(NEEDED)' > .venv/needed.txt
	$(BIN)/pip install -q --no-compile -r .venv/needed.txt
	$(BIN)/pip install -q --no-compile --no-deps dynamic-network-architectures
	-$(BIN)/pip install -q --no-compile einops huggingface-hub tqdm
	-$(BIN)/pip install -q --no-compile --no-deps segmentation-models-pytorch timm torchvision==0.28.0
	-$(BIN)/pip install -q --no-compile --no-deps ome-zarr-models pydantic-zarr

demo: .venv/run
	$(BIN)/unet-engine demo demo

# Files in the order in which tests/support/turns.py puts them, not by how many tests they hold.
FILES := --dist loadfile --no-loadscope-reorder

# All but what is marked slow, of which `make slow` is the rest.
test: .venv/dev
	$(BIN)/python -m pytest -n $(TESTERS) $(FILES) -m "not slow"

slow: .venv/dev
	$(BIN)/python -m pytest -n $(TESTERS) $(FILES) -m slow

# The property tests alone, each with a thousand examples that were never drawn before.
fresh: .venv/dev
	$(BIN)/python -m pytest -n $(TESTERS) -m hypothesis --hypothesis-profile fresh

# Two thousand random geometries against a reference that shares no code with the engine; `make test` tries 100 of them.
geometries: .venv/dev
	GEOMETRIES=2000 $(BIN)/python -m pytest -n $(TESTERS) tests/pipeline/test_brute_force.py

# Every kind of bad input and of faults, each as a process of its own; make test tries most of them in its own.
faults: .venv/dev
	UNET_ENGINE_FAULTS=all $(BIN)/python -m pytest -n $(TESTERS) --dist load tests/commands/test_catalogue.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# While one core lints, the other compiles what the tests import: three processes that collect them at once would do so
# three times.
check: .venv/dev
	$(MAKE) -j2 lint compiled
	$(MAKE) test

compiled: .venv/dev
	-$(BIN)/python -m pytest --collect-only -m "not slow" > /dev/null 2>&1

bench: .venv/dev
	$(BIN)/python benchmarks/guard.py
	$(BIN)/python benchmarks/end_to_end.py --quick
	$(BIN)/python benchmarks/tiling.py --out bench.svg

# The documentation as a site that works offline, in build/site. A link that leads nowhere is an error.
.venv/site: .venv/run
	$(BIN)/pip install -q --upgrade 'pip>=25.1'
	$(BIN)/pip install -q --group site
	touch $@

site: .venv/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/site/check.py build/site

# A wheel for this machine, made and tried as cibuildwheel would, in a Debian root without a compiler where root may make
# one.
wheels: .venv/dev
	packaging/wheels.sh $(BIN)/python build/wheels
	$(BIN)/pip install -q py-rattler-build
	$(BIN)/python -m pytest tests/test_docs.py -k recipe

# uv.lock: the versions that demo and tests were last seen to work with, `uv sync --locked --extra test`.
lock: .venv/run
	$(BIN)/pip install -q uv
	$(BIN)/uv lock

clean:
	rm -rf .venv build demo
