# syntax=docker/dockerfile:1
# The service and nothing else: no compiler, no package index in the result, nothing writable but /tmp.
# A release names the base by digest: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
WORKDIR /src
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-compile --require-hashes --requirement requirements/build.txt \
 && python -m venv --without-pip /opt/facilitator \
 && /opt/build/bin/pip --python /opt/facilitator/bin/python install --require-hashes --requirement requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY contracts contracts
COPY facilitator facilitator
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /opt/build/bin/pip --python /opt/facilitator/bin/python install --no-index --no-deps /wheel/*.whl \
 && /opt/build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/facilitator/sbom.cdx.json /opt/facilitator/bin/python

FROM ${PYTHON_IMAGE}
ARG COMMIT=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="facilitator" \
      org.opencontainers.image.description="An x402 payment facilitator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /opt/facilitator /opt/facilitator
ENV PATH=/opt/facilitator/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FACILITATOR_COMMIT=${COMMIT}
USER 10001:10001
WORKDIR /tmp
EXPOSE 4022 4023 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["facilitator"]
CMD ["serve", "--config", "/etc/facilitator/config/facilitator.toml"]
