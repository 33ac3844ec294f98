#!/bin/sh
# Makes a virtual environment in the folder $1, unless there is a working one, with the first
# interpreter of $PYTHON (a list) that is new enough. TensorFlow 2.21 has no wheels past Python 3.13.
set -eu

folder=$1
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

if "$folder/bin/python" -c "$supported" 2>/dev/null &&
    "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

python='' found=''
for candidate in $PYTHON; do
    version=$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
    found="$found $candidate is $version;"
    if "$candidate" -c "$supported"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: Ingot needs Python 3.11, 3.12 or 3.13; found:${found:- none of $PYTHON}" >&2
    echo "hint: install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python ($version) cannot make virtual environments: its module venv or ensurepip is missing" >&2
    echo "hint: on Debian and Ubuntu, install the package python${version%.*}-venv" >&2
    exit 1
fi
echo "making $folder with $python ($version) ..."
"$python" -m venv --clear "$folder"
