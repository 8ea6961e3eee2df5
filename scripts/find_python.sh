#!/bin/sh
# Print the first Python >= 3.11: the one that is asked for, or else what is on PATH. Used by the Makefile.
for python in ${1:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        echo "$python"
        exit 0
    fi
done
echo "coachhook needs Python 3.11 or newer, and ${1:-python3} is $("${1:-python3}" --version 2>&1 || true)." \
    "Install one, or name one: make PYTHON=/path/to/python3.11 ..." >&2
exit 1
