#!/bin/bash
# Puts a pinned Terraform into .tools/ where none is on PATH. Prints where it is.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

version=1.11.4
case "$(uname -s)-$(uname -m)" in
Linux-x86_64) platform=linux_amd64 sha256=1ce994251c00281d6845f0f268637ba50c0005657eb3cf096b92f753b42ef4dc ;;
Linux-aarch64) platform=linux_arm64 sha256=a43d1d0da9b9bab214a8305a39db0e40869572594ccf50c416a7756499143633 ;;
Darwin-x86_64) platform=darwin_amd64 sha256=a56d5002b9f7647291faccc3dd1a70350e60fb61e4c45037629508b8fdc2575b ;;
Darwin-arm64) platform=darwin_arm64 sha256=867e0808fa971217043e25b7a792b10720c79b1546f8a68479b74f138be73e18 ;;
*) platform=unknown sha256= ;;
esac
url=${TERRAFORM_URL:-https://releases.hashicorp.com/terraform/$version/terraform_${version}_$platform.zip}

give_up() {
	echo "Terraform: $1; install Terraform 1.9 or later (https://developer.hashicorp.com/terraform/install) and try again" >&2
	exit 1
}

for found in "$(command -v terraform || true)" "$PWD/.tools/terraform"; do
	if [ -x "$found" ]; then
		echo "$found"
		exit 0
	fi
done
[ "$platform" != unknown ] || give_up "no pinned release for $(uname -s) on $(uname -m)"
mkdir -p .tools
archive=$(mktemp .tools/terraform-XXXXXX)
trap 'rm -f "$archive"' EXIT
curl -fsSL --retry 2 --connect-timeout 10 --max-time 300 -o "$archive" "$url" 2>/dev/null || give_up "$url cannot be reached"
python3 - "$archive" "$sha256" .tools <<'PYTHON' || give_up "$url is not the release with SHA-256 $sha256"
import hashlib, sys, zipfile
archive, expected, folder = sys.argv[1:]
if hashlib.sha256(open(archive, "rb").read()).hexdigest() != expected:
    sys.exit(1)
zipfile.ZipFile(archive).extract("terraform", folder)
PYTHON
chmod +x .tools/terraform
echo "$PWD/.tools/terraform"
