# shellcheck shell=bash disable=SC2034 # most of the names are for those who source it
# What user-data (which carries a copy of this file) and the bootstrap scripts share: names, retries, downloads, the
# run's objects. Needs the variables of worker.env.

root=${TRAIN_CLOUD_ROOT:-} # a test boots below a folder of its own
opt=$root/opt/train-cloud
log=$root/var/log/train-cloud-boot.log
boot_record=$root/run/train-cloud/boot # on a memory file system: gone with the boot

bucket=${TRAIN_CLOUD_STORE#s3://}
prefix=${bucket#"${bucket%%/*}"}
prefix=${prefix:+${prefix#/}/}
bucket=${bucket%%/*}
run=$prefix${TRAIN_CLOUD_FOLDER:-runs}/$TRAIN_CLOUD_RUN_ID # a pipeline's lies in pipelines/
code=s3://$bucket/${prefix}code/$TRAIN_CLOUD_CODE_DIGEST

# The CLI's own default is one attempt of one second: too little on a machine that is busy with its first minute.
export AWS_METADATA_SERVICE_TIMEOUT=5 AWS_METADATA_SERVICE_NUM_ATTEMPTS=5

say() { printf 'train-cloud: %s\n' "$*"; }

# retry SECONDS COMMAND…: until it succeeds. IAM needs seconds, seldom minutes, to let a new role do what it may.
retry() {
	local deadline=$((SECONDS + $1))
	until "${@:2}"; do
		((SECONDS < deadline)) || return 1
		sleep "${TRAIN_CLOUD_RETRY_PAUSE:-5}"
	done
}

# imds PATH: one entry of the instance's metadata
imds() {
	local at=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest token
	token=$(curl -fsS -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' "$at/api/token") &&
		curl -fsS -m 5 -H "X-aws-ec2-metadata-token: $token" "$at/meta-data/$1"
}

# keys PREFIX: the run's keys below it, sorted. An object is absent when this does not list it, never because of a 403.
keys() {
	aws s3api list-objects-v2 --bucket "$bucket" --prefix "$run/$1" --query 'Contents[].[Key]' --output text |
		sed "/^None$/d; s#^$run/##"
}

# create KEY [OPTION…]: never overwrites
create() { aws s3api put-object --bucket "$bucket" --key "$run/$1" --if-none-match '*' "${@:2}" >/dev/null; }

# tell_failed REASON: where a topic was asked for; as train_cloud/platforms/notifications.py does it
tell_failed() {
	[ -z "${TRAIN_CLOUD_TOPIC:-}" ] || retry 60 aws sns publish --topic-arn "$TRAIN_CLOUD_TOPIC" --message "$1" \
		--subject "train-cloud: $TRAIN_CLOUD_RUN_ID failed" >/dev/null || say "nobody was told"
}

# Once per boot: a marker in the store, under a number and a name that no other boot has.
begin_boot() {
	local found last
	if [ ! -e "$boot_record" ]; then
		instance=$(retry 60 imds instance-id) && found=$(keys boots/) || return
		last=$(sed -nE 's#^boots/0*([0-9]+)-.*#\1#p' <<<"$found" | sort -n | tail -n 1)
		printf -v boot 'boots/%06d-%s' $((last + 1)) "$instance"
		create "$boot" || return
		mkdir -p "${boot_record%/*}" && printf '%s %s\n' "$boot" "$instance" >"$boot_record"
	fi
	read -r boot instance <"$boot_record"
}

# The code is exactly what its digest names: no byte differs, no file is missing, none was added.
verify_code() (
	cd "$opt/code" && printf '%s  SHA256SUMS\n' "$TRAIN_CLOUD_CODE_DIGEST" | sha256sum --check --strict --quiet &&
		sha256sum --check --strict --quiet SHA256SUMS &&
		diff <(cut -c 67- SHA256SUMS | sort) <(find . ! -type d ! -path ./SHA256SUMS -printf '%P\n' | sort)
)

nvidia_present() { grep -qix 0x10de "$root"/sys/bus/pci/devices/*/vendor 2>/dev/null; }
