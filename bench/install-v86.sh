#!/bin/sh
# Put v86 (an x86 emulator in JavaScript and WebAssembly), which bench/boot.py measures beside
# ours, into .peers/v86. Needs Node and npm.
set -eu

VERSION=0.5.462

cd "$(dirname "$0")/.."
mkdir -p .peers/v86
npm install --silent --no-fund --no-audit --ignore-scripts --prefix .peers/v86 "v86@$VERSION"
