# Three images from one file:
#
#   docker build --target control   -t alignez-control   .   control API, relay, migration: everything but torch
#   docker build --target inference -t alignez-inference .   inference API on vLLM
#   docker build --target worker    -t alignez-worker    .   fit worker, the same layers with another command
#
# The chart in helm/ runs relay, migration and `helm test` from the control image with another command.
#
# Bases are pinned by their full version. A build that must be the same to the last byte names digests:
#   --build-arg PYTHON_IMAGE=python:3.11.14-slim-trixie@sha256:…
# Python 3.11 is what the tests run on; vLLM's image brings its own.
ARG PYTHON_IMAGE=python:3.11.14-slim-trixie
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0


# Our packages as one wheel, for all images. It changes with every commit, so nothing expensive comes after it.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
RUN python -m venv /build && /build/bin/pip install --no-cache-dir -c constraints.txt setuptools
COPY alignez_core/ alignez_core/
COPY api/ api/
COPY cli/ cli/
COPY migrations/ migrations/
COPY profiles/ profiles/
COPY telemetry/ telemetry/
COPY worker/ worker/
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .


# pyproject.toml names torch and transformers, because almost everything needs them; a control plane does not, and they are
# nine tenths of an installation. So the others are installed by name, pinned, and then our wheel without dependencies.
# `import-linter` keeps torch out of `profiles`, and tests keep it out of a control API.
FROM ${PYTHON_IMAGE} AS control-build
WORKDIR /src
RUN python -m venv /opt/alignez
COPY pyproject.toml constraints.txt images/requirements.py ./
RUN python requirements.py packages pyproject.toml torch transformers accelerate gguf > requirements.txt \
    && /opt/alignez/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY --from=wheel /dist/ /dist/
RUN /opt/alignez/bin/pip install --no-cache-dir --no-deps /dist/alignez-*.whl
COPY images/ images/
RUN /opt/alignez/bin/python -m images.sbom environment alignez-control > /opt/alignez/sbom.cdx.json


FROM ${PYTHON_IMAGE} AS control
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="alignez-control" \
      org.opencontainers.image.description="alignez: control API, relay and migration" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A name for the number: libraries look their user up. Nothing belongs to it but what is mounted.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin alignez
COPY --from=control-build /opt/alignez/ /opt/alignez/
# The root file system may be read-only: everything that is written goes below /tmp.
ENV PATH=/opt/alignez/bin:${PATH} \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ALIGNEZ_API_ROLE=control \
    ALIGNEZ_API_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 9100
# For Docker and Compose; Kubernetes has the chart's probes in its place. Relay and migration have no port: run them with
# --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "api.probe"]
CMD ["alignez", "api"]


# torch, CUDA and vLLM are the base image's, and what it has keeps its version: our constraints are for the rest.
FROM ${VLLM_IMAGE} AS inference
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="alignez-inference" \
      org.opencontainers.image.description="alignez: inference API on vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin alignez
WORKDIR /opt/alignez
COPY pyproject.toml constraints-vllm.txt images/requirements.py ./
# The image's Python is the system's, and meant to be installed into.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN python3 requirements.py packages pyproject.toml torch transformers > requirements.txt \
    && python3 requirements.py constraints constraints-vllm.txt > constraints.txt \
    && python3 -m pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY --from=wheel /dist/ /dist/
RUN python3 -m pip install --no-cache-dir --no-deps /dist/alignez-*.whl
COPY images/ images/
RUN python3 -m images.sbom environment alignez-inference > sbom.cdx.json
# Models below /cache, which is to be a volume; what is compiled, and everything else that is written, below /tmp.
ENV HOME=/tmp \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/tmp/.cache \
    VLLM_CACHE_ROOT=/tmp/.cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor \
    TRITON_CACHE_DIR=/tmp/.cache/triton \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ALIGNEZ_API_ROLE=inference \
    ALIGNEZ_API_ENGINE=vllm \
    ALIGNEZ_API_HOST=0.0.0.0
RUN mkdir -p /cache && chown 10001:10001 /cache
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 9100
# /health answers while the model loads; whether it is loaded, /ready says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-m", "api.probe"]
# The base starts vLLM's own server.
ENTRYPOINT []
CMD ["alignez", "api"]


FROM inference AS worker
LABEL org.opencontainers.image.title="alignez-worker" \
      org.opencontainers.image.description="alignez: fit worker"
ENV ALIGNEZ_WORKER_DEVICE=cuda
USER 10001:10001
# No port to ask: the worker's parent restarts a lost child and ends when it cannot go on (see the chart's probes).
HEALTHCHECK NONE
CMD ["alignez", "worker"]
