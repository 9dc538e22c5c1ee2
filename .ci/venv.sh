# Sourced by demo.sh and test.sh: makes .venv once and again only when the given requirements file changes.
requirements=$1
python=${PYTHON:-python3}
stamp=.venv/$(basename "$requirements").installed
if ! { cat requirements*.txt imagenet/requirements.txt | cmp -s - "$stamp"; }; then
    "$python" -m venv .venv
    echo "installing $requirements into .venv (about 6 GB with torch, a few minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" 2> .venv/pip.log || {
        cat .venv/pip.log >&2
        exit 1
    }
    cat requirements*.txt imagenet/requirements.txt > "$stamp"
fi
