# The test's stand-in for prom/prometheus where no registry is reached: Debian's package, with the paths, user, entry
# point and BusyBox of the official image, so that docker-compose.yml runs unchanged.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends busybox prometheus \
 && rm -rf /var/lib/apt/lists/* /var/lib/prometheus/* \
 && ln -s busybox /bin/wget \
 && install -d -o nobody -g nogroup /prometheus /etc/prometheus
USER nobody
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
