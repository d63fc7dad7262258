#!/usr/bin/env bash
# Format, validity, plan-only tests, documentation and checkov over terraform/. Nothing is contacted but the provider's
# mirror or registry and, the first time, PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly python=.venv/bin/python modules=(terraform terraform/sagemaker terraform/ray)

if ! command -v terraform >/dev/null; then
	echo 'terraform is not here: install Terraform 1.9 or later, or run scripts/get_terraform.sh' >&2
	exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export TF_IN_AUTOMATION=1 TF_INPUT=0 CHECKPOINT_DISABLE=1
mirror=$("$python" -c 'from train_cloud.rehearsal.terraform import find_mirror
print(find_mirror() or "")')
if [[ -n $mirror ]]; then
	cat >"$scratch/terraform.rc" <<-EOF
		provider_installation {
		  filesystem_mirror {
		    path = "$mirror"
		  }
		}
	EOF
	export TF_CLI_CONFIG_FILE=$scratch/terraform.rc
elif [[ ! -e ${TF_CLI_CONFIG_FILE:-/dev/null} ]]; then
	unset TF_CLI_CONFIG_FILE
fi

"$python" scripts/document_variables.py --check
terraform fmt -check -diff -recursive terraform
for module in "${modules[@]}"; do
	export TF_DATA_DIR=$scratch/data/$module
	terraform -chdir="$module" init -backend=false -lockfile=readonly -no-color >"$scratch/init.txt" || {
		cat "$scratch/init.txt" >&2
		exit 1
	}
	terraform -chdir="$module" validate -no-color
	terraform -chdir="$module" test -no-color
done
checkov=$(scripts/get_checkov.sh)
"$checkov" -d terraform --framework terraform --compact --quiet --skip-download | tee "$scratch/checkov.txt"
# A file that its parser cannot read is not checked, and checkov ends well all the same.
if grep -q 'Parsing errors' "$scratch/checkov.txt"; then exit 1; fi
