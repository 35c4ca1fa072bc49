# The aggregator, with the command line and the client. Build from the repository's root:
#
#     docker build -f deploy/aggregator.Dockerfile -t edge-attention/aggregator:0.1.0 .
#
# Python is the base's own, so the same file builds from any Debian or Ubuntu base with Python 3.11 or newer, for
# amd64 and arm64 alike.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
# pip has an environment of its own and installs into the one that ships, which therefore has none. The steps up to
# here and the next one are the same in both Dockerfiles, so that the second build finds them done.
RUN python3 -m venv /build/pip && python3 -m venv --without-pip /opt/edge-attention
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
WORKDIR /build/source
COPY pyproject.toml deploy/image/requirements.py ./
ARG ONNXRUNTIME=onnxruntime
RUN python3 requirements.py pyproject.toml "${ONNXRUNTIME}" > /build/requirements.txt \
 && /build/pip/bin/pip --python /opt/edge-attention/bin/python install --no-compile -r /build/requirements.txt
RUN python3 requirements.py pyproject.toml "${ONNXRUNTIME}" aggregator > /build/more.txt \
 && /build/pip/bin/pip --python /opt/edge-attention/bin/python install --no-compile -r /build/more.txt
COPY . .
RUN /build/pip/bin/pip --python /opt/edge-attention/bin/python install --no-compile --no-deps . \
 && /opt/edge-attention/bin/python -m compileall -q -j 0 /opt/edge-attention/lib

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
 && groupadd --system --gid 10001 edge \
 && useradd --system --uid 10001 --gid edge --no-create-home --home-dir /var/lib/edge-attention \
            --shell /usr/sbin/nologin edge \
 && install -d -o edge -g edge -m 0750 /var/lib/edge-attention /run/edge-attention /run/edge-attention/node \
            /run/edge-attention/viewer
COPY --from=build /opt/edge-attention /opt/edge-attention
ENV PATH=/opt/edge-attention/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EDGE_AGGREGATOR_STATE=/var/lib/edge-attention
USER 10001:10001
WORKDIR /var/lib/edge-attention
VOLUME /var/lib/edge-attention
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --retries=3 --start-period=30s \
    CMD ["python3", "-m", "edge_node.health", "127.0.0.1:50051", \
         "--authority", "/var/lib/edge-attention/trust/authority.pem"]
ENTRYPOINT ["edge-aggregator"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edge-aggregator" \
      org.opencontainers.image.description="Edge Attention: the service that fuses what edge nodes compute" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
