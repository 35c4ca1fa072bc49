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

# What volume $1 has, of the replica of number $2 or of none (0), into the volume `nodes`, each node once, and whole or
# not at all: a copy has its mark before it has its name. Compose v1 lets a replica keep its old volume, even with this
# release's file: then there are two nodes in it, of this release (edge-node-N) and of the one before.
carry() {
  $compose run --rm -T --no-deps --volume "$1:/before:ro" --entrypoint sh edge-node -euc '
    volume=$1 number=$2
    cd "$3"
    exec 9> .carried.lock
    flock 9 # the copy of a call that was interrupted may still go on
    trap "rm -rf .partial" EXIT
    keep() {
      mark=.of-$volume${1:+-$1}
      for place in edge-node-*; do
        if [ -e "$place/$mark" ]; then
          echo "$place has what volume $volume holds"
          return 0
        fi
      done
      n=$2
      if [ "$n" = 0 ] || [ -e "edge-node-$n" ]; then
        n=1
        while [ -e "edge-node-$n" ]; do n=$((n + 1)); done
      fi
      rm -rf .partial
      cp -a "/before/$1/." .partial
      if [ -z "$1" ]; then rm -rf .partial/edge-node-*; fi
      touch ".partial/$mark"
      sync
      mv -T .partial "edge-node-$n"
      echo "edge-node-$n has what volume $volume holds"
    }
    for own in /before/edge-node-*; do
      name=${own#/before/}
      if [ -d "$own" ]; then keep "$name" "${name#edge-node-}"; fi
    done
    if [ -d /before/identity ]; then keep "" "$number"; fi' carry "$1" "$2" "$PLACE" < /dev/null
}

any=
tell() { [ -z "$said" ] || { any=yes && echo "$said"; }; }

containers=$($compose ps -a -q edge-node)
for container in $containers; do
  volume=$(docker inspect --format "{{range .Mounts}}{{if eq .Destination \"$PLACE\"}}{{.Name}}{{end}}{{end}}" "$container")
  number=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.container-number"}}' "$container")
  case "$volume" in "" | *_nodes) continue ;; esac
  docker stop --time 20 "$container" > /dev/null
  if ! said=$(carry "$volume" "$number"); then
    tell
    echo "volume $volume is not carried over whole; it is as it was, and its container is stopped: try again, or" >&2
    echo "go on with the release before: docker start $container" >&2
    exit 1
  fi
  tell
  docker rm "$container" > /dev/null # but not its volume
done
if [ "${1:-}" = --left ]; then
  volumes=$(docker volume ls --quiet --filter dangling=true)
  for volume in $volumes; do
    case "$volume" in *[!0-9a-f]*) continue ;; esac # it has a name, and is none of a replica's
    said=$(carry "$volume" 0)
    tell
  done
fi
if [ -z "$any" ]; then
  echo "there was nothing to carry over"
else
  echo "let NODES in .env be at least the highest number above, or that an interrupted call said before: $compose up -d"
  echo "once the nodes are back, the volumes above can go: docker volume rm VOLUME"
fi
