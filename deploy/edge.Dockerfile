# The edge daemon. Build from the repository's root:
#
#     docker build -f deploy/edge.Dockerfile -t edge-attention/edge-node:0.1.0 .
#
# Python is the base's own, so the same file builds from any Debian or Ubuntu base, for amd64 and arm64 alike.
# Other execution providers by a build argument; the base stays the same:
#
#     CUDA       --build-arg ONNXRUNTIME=onnxruntime-gpu[cuda,cudnn]
#     OpenVINO   --build-arg ONNXRUNTIME=onnxruntime-openvino
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
COPY . .
RUN /build/pip/bin/pip --python /opt/edge-attention/bin/python install --no-compile --no-deps . \
 && python3 deploy/image/slim.py /opt/edge-attention --without aggregator \
 && /opt/edge-attention/bin/python -m compileall -q -j 0 /opt/edge-attention/lib

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
 && groupadd --system --gid 10001 edge \
 && useradd --system --uid 10001 --gid edge --no-create-home --home-dir /var/lib/edge-attention \
            --shell /usr/sbin/nologin edge \
 && install -d -o edge -g edge -m 0750 /var/lib/edge-attention /run/edge-attention
COPY --from=build /opt/edge-attention /opt/edge-attention
# Where ONNX Runtime finds CUDA, which comes as Python packages. Without them: nothing.
RUN find /opt/edge-attention -type d -path '*/nvidia/*/lib' > /etc/ld.so.conf.d/edge-attention.conf && ldconfig
# Large messages in half the time (docs/decisions.md): blocks up to 1 GiB come from the heap and stay in it. The daemon
# itself keeps to two arenas, so what is kept is bounded by what was once in use. Nothing is written beside modules.
ENV PATH=/opt/edge-attention/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=1073741824 \
    MALLOC_TRIM_THRESHOLD_=2147483648 \
    EDGE_NODE_STORE=/var/lib/edge-attention \
    EDGE_NODE_HEALTH_PORT=50052
USER 10001:10001
WORKDIR /var/lib/edge-attention
VOLUME /var/lib/edge-attention
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --retries=3 --start-period=30s \
    CMD ["python3", "-m", "edge_node.health", "127.0.0.1:50052"]
ENTRYPOINT ["edge-node"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edge-node" \
      org.opencontainers.image.description="Edge Attention: the daemon that runs attention shards on a box" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
