#!/usr/bin/env bash
# Finds the Chromium that the report page is tested in. Where there is none: installs Debian's, or says what to do.
set -euo pipefail

found() {
    local name
    for name in chromium chromium-browser google-chrome chrome; do
        if command -v "$name" >/dev/null; then return 0; fi
    done
    return 1
}

install() {
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null
}

if [ -n "${CHROMIUM:-}" ]; then
    if command -v "$CHROMIUM" >/dev/null; then exit 0; fi
    echo "CHROMIUM is set to $CHROMIUM, which is no program: set it to the path of a Chromium or Chrome, or unset it." >&2
    exit 1
fi
if found; then exit 0; fi
if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
    echo "installing Debian's chromium, in which the report page is tested"
    install || { sleep 5; install; } || true
    if found; then exit 0; fi
fi
echo "The report page is tested in a Chromium, and none was found: install one (Debian: apt-get install chromium)" >&2
echo "or set CHROMIUM to the path of a Chromium or Chrome." >&2
exit 1
