#!/usr/bin/env bash
# go_tools.sh OUT: builds distribution v3's registry and toxiproxy into OUT, from the Go module proxy.
# What is there already, of the same version and the same Go, is left alone.
set -euo pipefail
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
export CGO_ENABLED=0

build() { # build NAME PACKAGE@VERSION
  local stamp="$2 $(go env GOVERSION)" made
  if [ -x "$OUT/$1" ] && [ "$(cat "$OUT/.$1.stamp" 2>/dev/null)" = "$stamp" ]; then
    echo "$1: up to date"
    return
  fi
  made=$(mktemp -d)
  GOBIN=$made go install -trimpath -ldflags "-s -w" "$2"
  mv "$made"/* "$OUT/$1"
  rmdir "$made"
  echo "$stamp" >"$OUT/.$1.stamp"
  echo "$1: built"
}

build registry-v3 github.com/distribution/distribution/v3/cmd/registry@v3.0.0
build toxiproxy-server github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0
