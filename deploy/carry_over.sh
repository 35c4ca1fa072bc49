#!/bin/sh
# What edge nodes of the release before kept, in a volume each, into the volume `nodes`, where this release looks for
# it. Beside docker-compose.yml, before the first `docker compose up -d` of this release:
#
#     sh deploy/carry_over.sh           each replica's volume, under the replica's number
#     sh deploy/carry_over.sh --left    after an `up` without it: what that has left becomes further nodes
#
# Volumes are copied and stay as they are; the replicas' containers are removed, as `up` makes them anew. Needs the
# images of this release.
set -eu
PLACE=/var/lib/edge-attention

case "${1:-}" in
  "" | --left) ;;
  *) echo "usage: sh deploy/carry_over.sh [--left]" >&2 && exit 2 ;;
esac
if docker compose version > /dev/null 2>&1; then compose="docker compose"; else compose=docker-compose; fi

# What volume $1 has, of the replica of number $2 or of none, into the volume `nodes`; once, and each node whole or
# not at all. Compose v1 lets a replica keep its old volume, even with this release's file: then there are two nodes
# in it, of this release (edge-node-N) and of the one before.
carry() {
  $compose run --rm -T --no-deps --volume "$1:/before:ro" --entrypoint sh edge-node -euc "
    cd $PLACE
    mkdir -p .carried
    if [ -e .carried/$1 ]; then exit 0; fi
    keep() {
      rm -rf .partial
      cp -a \$1 .partial
      if [ \$1 = /before ]; then rm -rf .partial/edge-node-*; fi
      sync
      mv .partial \$2
      echo \"\$2 has what volume $1 holds\"
    }
    if [ -n '$2' ] && [ -d /before/edge-node-$2 ]; then keep /before/edge-node-$2 edge-node-$2; fi
    if [ -d /before/identity ]; then
      n=$2
      if [ -z \"\$n\" ] || [ -e edge-node-\$n ]; then
        n=1
        while [ -e edge-node-\$n ]; do n=\$((n + 1)); done
      fi
      keep /before edge-node-\$n
    fi
    touch .carried/$1" < /dev/null
}

any=
tell() { [ -z "$said" ] || { any=yes && echo "$said"; }; }

for container in $($compose ps -a -q edge-node); do
  volume=$(docker inspect --format "{{range .Mounts}}{{if eq .Destination \"$PLACE\"}}{{.Name}}{{end}}{{end}}" "$container")
  number=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.container-number"}}' "$container")
  case "$volume" in *_nodes) continue ;; esac
  docker stop --time 20 "$container" > /dev/null
  said=$(carry "$volume" "$number")
  tell
  docker rm "$container" > /dev/null # but not its volume
done
if [ "${1:-}" = --left ]; then
  for volume in $(docker volume ls --quiet --filter dangling=true); do
    said=$(carry "$volume" "")
    tell
  done
fi
if [ -z "$any" ]; then
  echo "there was nothing to carry over"
else
  echo "let NODES in .env be at least the highest number above, and: $compose up -d"
  echo "once the nodes are back, the volumes above can go: docker volume rm VOLUME"
fi
