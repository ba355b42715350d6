# The commands of this project. `make` alone lists them; each does its own set-up in .venv when needed.
#
#   TORCH=...    another build of PyTorch than the pinned one: a requirement or the path of a wheel
#   PYTHON=...   the interpreter that makes .venv (3.11 or newer)

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help demo examples test test-all doc-blocks lint types docs docs-serve bench bench-functional bench-checks bench-nonfinite bench-sparse bench-convolutions bench-compiled bench-distributed bench-memory bench-gram bench-gpu test-gpu clean FORCE

help:  ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)-demo  ## train a LeNet on real digits and write its derivative report
	$(BIN)/hesse report examples/digits.py:lenet

EXAMPLES := natural_gradient influence_functions laplace_marginal_likelihood score_test boosting logistic mlp cnn tied_autoencoder character_model by_hand debugging implicit_brusselator sparse_least_squares deblurring invertible_flow resnet_stem_inverse

examples: $(STAMP)-demo  ## run every example: a table each, and a figure in build/examples
	@for name in $(EXAMPLES); do echo "==> $$name"; $(BIN)/python examples/$$name.py build/examples/$$name.png || exit 1; done

test: $(STAMP)-test  ## the test suite (long sweeps as a random sample)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(STAMP)-test  ## the test suite with every sweep in full
	HESSE_TEST_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

doc-blocks: $(STAMP)-test  ## run every Python block of the README and the docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs

lint: $(STAMP)-dev  ## ruff
	$(BIN)/ruff check .

types: $(STAMP)-dev  ## basedpyright
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(STAMP)-docs  ## build the site into site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(STAMP)-docs  ## the site at a local address, rebuilt as you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(STAMP)-demo  ## time hesse and its peers, each in an environment of its own
	$(BIN)/python benchmarks/run.py

bench-functional: $(STAMP)-demo  ## time hesse.grad beside torch.autograd, torch.func and torch.compile
	$(BIN)/python benchmarks/functional/run.py

bench-checks: $(STAMP)-demo  ## planted bugs: what hesse's checks and those of other libraries find
	$(BIN)/python benchmarks/checks/run.py

bench-nonfinite: $(STAMP)-demo  ## planted faults: whose line of the first NaN is right, and what the watch costs
	$(BIN)/python benchmarks/nonfinite/run.py

bench-sparse: $(STAMP)-demo  ## time sparse derivatives beside asdex and dense ones
	$(BIN)/python -m benchmarks.sparse.run

bench-convolutions: $(STAMP)-demo  ## time inverse convolutions beside Fourier division, SciPy and deepinv
	$(BIN)/python -m benchmarks.convolutions.run

bench-compiled: $(STAMP)-demo  ## time compiled products beside the operators they are of
	$(BIN)/python -m benchmarks.compiled.run

bench-distributed: $(STAMP)-demo  ## time products over 1 to 4 processes beside the model of their time
	$(BIN)/python -m benchmarks.distributed.run

bench-memory: $(STAMP)-demo  ## how much memory every quantity takes, beside its budget
	$(BIN)/python -m benchmarks.memory.run

bench-gram: $(STAMP)-demo  ## the Gram matrix of 10,000 gradients of 10 million numbers
	$(BIN)/python -m benchmarks.gram.run --samples 10000 --memory 3GiB

test-gpu: $(STAMP)-test  ## every quantity on a GPU, in every dtype
	HESSE_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/device

bench-gpu: $(STAMP)-demo  ## time every quantity on a GPU
	$(BIN)/python -m benchmarks.gpu.run

clean:  ## remove what the other commands made
	rm -rf $(VENV) .venv-*/ site build hesse-*/ .pytest_cache .ruff_cache .hypothesis

# Set-up -------------------------------------------------------------------------------------------------------------

$(STAMP)-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "hesse needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The build of PyTorch asked for: written only when it changes, kept when a later command names none.
$(STAMP)-torch-wanted: $(STAMP)-venv FORCE
	@if [ -n '$(TORCH)' ] || [ ! -f $@ ]; then echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@; fi

# Installs that build, then pins it, so that no later step replaces it.
$(VENV)/constraints.txt: $(STAMP)-torch-wanted constraints.txt
	wanted=$$(cat $<); $(BIN)/python -m pip install "$${wanted:-$$(grep '^torch==' constraints.txt)}"
	@grep -v '^torch==' constraints.txt > $@.part || true
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $@.part
	@mv $@.part $@

$(STAMP)-%: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[$*]'
	@touch $@
