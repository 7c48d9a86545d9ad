# make demo      the main job on embedded data       make test      the tests
# make demo-cls  classification of digits            make test-all  the slow ones too
# make demo-det  objects and masks                   make demo-ir   denoising, both on generated pictures
# make check     ruff, mypy, import levels make test-matrix  the tests on every Paddle that is supported
# make docs      the site, in build/site    make bench-torch  speed beside PyTorch
PYTHON ?= python3.11
VENV   ?= .venv
PY     := $(VENV)/bin/python
# Besides these, the tests run on the Paddle that requirements.txt pins: `make test`.
OTHER_PADDLES := 2.6.2 3.3.1
# Two processes, each with half of the cores and whole files of tests.
PYTEST := -m pytest --numprocesses 2 --dist loadfile

.PHONY: demo demo-cls demo-det demo-ir test test-all test-matrix test-numpy2 test-clas test-det test-app test-install \
	bench-torch check docs format clean

demo: $(VENV)/.run
	$(PY) tools/demo.py

demo-cls: $(VENV)/.run
	$(PY) train.py --config configs/demo_digits.yml --do_eval --save_dir output/digits --resume_model auto
	$(PY) val.py --config configs/demo_digits.yml --model_path output/digits/best_model

DET := --config configs/demo_detection.yml
DET_OUT := output/demo_detection
demo-det: $(VENV)/.run
	$(PY) -m examples.street_scenes --output data/street_scenes
	$(PY) train.py $(DET) --do_eval --save_interval 250 --use_vdl --save_dir $(DET_OUT) --resume_model auto
	$(PY) val.py $(DET) --model_path $(DET_OUT)/best_model --json $(DET_OUT)/scores.json --save_json $(DET_OUT)/found.json
	$(PY) tools/detection_baseline.py $(DET)
	$(PY) export.py $(DET) --model_path $(DET_OUT)/best_model --save_dir $(DET_OUT)/exported --format both
	$(PY) predict.py --exported $(DET_OUT)/exported --image_path data/street_scenes/leftImg8bit/val --save_dir $(DET_OUT)/pictures

demo-ir: $(VENV)/.run
	$(PY) tools/demo_restoration.py

test: $(VENV)/.dev
	$(PY) $(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PY) $(PYTEST)

# The same tests on the other versions of Paddle, each in an environment of its own, the rest of it pinned alike.
test-matrix: test $(OTHER_PADDLES:%=test-paddle-%)

test-paddle-%: $(VENV)-%/.done
	$(VENV)-$*/bin/python $(PYTEST) -m "not slow"

# The package itself (PaddleSeg apart) on NumPy 2, laid over the same environment.
test-numpy2: $(VENV)/.dev build/numpy2/.done
	PYTHONPATH=build/numpy2 $(PY) $(PYTEST) tests/ops tests/models tests/losses tests/weights tests/test_import.py -m "not slow" \
		--deselect tests/weights/test_download.py::test_configurations_take_names_and_addresses

# The PaddleClas tests on its real wheel, in an environment of its own; `make test` runs them on a stand-in.
test-clas: $(VENV)-clas/.done
	VHEAT_TEST_PADDLECLAS=1 $(VENV)-clas/bin/python -m pytest tests/integrations/test_paddleclas.py

# The PaddleDetection tests on its real wheel, likewise.
test-det: $(VENV)-det/.done
	VHEAT_TEST_PADDLEDET=1 $(VENV)-det/bin/python -m pytest tests/integrations/test_paddledet.py

# The page in a real browser, Debian's Chromium, which is installed where it is missing and apt-get may do so.
test-app: $(VENV)-app/.done
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; } \
		|| { echo "make test-app needs a browser: apt-get install chromium chromium-driver (as root)" >&2; exit 1; }
	VHEAT_TEST_APP=1 $(VENV)-app/bin/python -m pytest tests/app

# What `pip install` gives a user: the wheel and its extras as pip's own resolver puts them together, each time anew.
INSTALL := build/install
EXTRAS := deploy cpu cpu,seg
PIP := -m pip --quiet --disable-pip-version-check
test-install:
	rm -rf build/lib $(INSTALL)
	for extras in $(EXTRAS); do set -e; new=$(INSTALL)/$$extras; \
		$(PYTHON) -m venv $$new; \
		ls $(INSTALL)/*.whl 2>/dev/null || $$new/bin/python $(PIP) wheel --no-deps --wheel-dir $(INSTALL) .; \
		$$new/bin/python $(PIP) install "$$(ls $(INSTALL)/*.whl)[$$extras]"; \
		$$new/bin/python -I tests/check_installed.py $${extras##*,}; \
	done

# The same on another Python, such as `make test-install-3.12`: from the PATH, or one of pyenv's. PaddleSeg needs 3.11 or less.
test-install-%:
	python=$$(python$* -c "import sys; print(sys.executable)" 2>/dev/null || ls $(HOME)/.pyenv/versions/$*.*/bin/python | tail -1); \
	$(MAKE) test-install PYTHON=$$python INSTALL=build/install-$* EXTRAS="deploy cpu $(if $(filter 3.9 3.10 3.11,$*),cpu$(comma)seg)"
comma := ,

# Speed and memory beside a plain PyTorch port, in an environment of its own; ARGS="--rounds 1" and others.
bench-torch: $(VENV)-torch/.done
	mkdir -p build
	$(VENV)-torch/bin/python benchmarks/beside_pytorch.py --json build/beside_pytorch.json $(ARGS)

check: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

# Warnings are errors: links and anchors that lead nowhere, pages that are not in the navigation.
docs: $(VENV)-docs/.done
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict --quiet

format: $(VENV)/.dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-*/ build output data/street_scenes .pytest_cache .ruff_cache .mypy_cache

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.txt
	touch $@

$(OTHER_PADDLES:%=$(VENV)-%/.done): $(VENV)-%/.done: requirements.txt requirements-dev.txt requirements-matrix.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	sed 's/^paddlepaddle==.*/paddlepaddle==$*/' requirements.txt > $(VENV)-$*/requirements.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r $(VENV)-$*/requirements.txt -r requirements-dev.txt -r requirements-matrix.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

build/numpy2/.done: | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target build/numpy2 numpy==2.2.6
	touch $@

# Environments with one more list of requirements than the tests' own.
EXTRA := $(VENV)-torch/.done $(VENV)-clas/.done $(VENV)-det/.done $(VENV)-app/.done
$(EXTRA): $(VENV)-%/.done: requirements.txt requirements-dev.txt requirements-%.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements.txt -r requirements-dev.txt -r requirements-$*.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)-docs/.done: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.txt
	touch $@
