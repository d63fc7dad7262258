# shellcheck shell=bash
# What a machine needs before anything of ours can run: peace from automatic upgrades, and an AWS CLI that is new enough.
# Carried by user-data like lib.sh, which it needs, and versions.env.

# fetch URL SHA256 FILE
fetch() {
	curl -fsSL --retry 5 --retry-connrefused -o "$3" "$1" &&
		printf '%s  %s\n' "$2" "$3" | sha256sum --check --strict --quiet
}

# An upgrade in mid-run may restart services or take the driver away from under the training; during the boot it holds
# apt's locks. One that is at work already gets two minutes to end.
no_upgrades() {
	local units=(apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service unattended-upgrades.service)
	systemctl mask "${units[@]}" || say "not all of the upgrade units could be masked"
	timeout 120 systemctl stop "${units[@]}" || say "some of the upgrade units are not there"
}

# The second waits for dpkg's lock; that of the package lists has no time-out, so that the first is tried again.
apt_install() { retry 300 apt-get update -q && apt-get -o DPkg::Lock::Timeout=300 install -qy "$@"; }

aws_cli_knows_conditions() {
	aws_cli=$(aws --version 2>&1 | sed -nE 's#^aws-cli/([0-9.]+).*#\1#p') || aws_cli=
	[ -n "$aws_cli" ] && printf '%s\n' "$AWS_CLI_MINIMUM" "$aws_cli" | sort -VC
}

# An AWS CLI that knows conditional writes. Images often have version 1, which never will.
ensure_aws_cli() {
	local aws_cli into
	if aws_cli_knows_conditions; then return; fi
	say "installing AWS CLI $AWS_CLI_VERSION${aws_cli:+ in the place of $aws_cli}"
	command -v unzip >/dev/null || apt_install unzip
	into=$(mktemp -d)
	retry 120 fetch "https://awscli.amazonaws.com/awscli-exe-linux-x86_64-$AWS_CLI_VERSION.zip" "$AWS_CLI_SHA256" "$into/cli.zip"
	unzip -q "$into/cli.zip" -d "$into"
	"$into/aws/install" --update
	rm -rf "$into"
	hash -r
	if ! aws_cli_knows_conditions; then
		say "AWS CLI $AWS_CLI_VERSION is installed, but $(command -v aws) is ${aws_cli:-none}: use another image (ami_id)"
		return 1
	fi
}
