# shellcheck shell=bash disable=SC2154 # most of the names come from lib.sh
# How a boot ends that has no run to serve or that fails before Python can say so. Carried by user-data like lib.sh,
# which it needs.

# outcome: empty while the run is not over. A head that cannot be read is an error, not an absent one.
outcome() {
	local found
	found=$(keys head.json) || return
	[ "$found" = head.json ] || return 0
	aws s3 cp --only-show-errors "s3://$bucket/$run/head.json" - |
		python3 -c 'import json, sys; print(json.load(sys.stdin)["outcome"] or "")'
}

set_capacity_0() {
	aws autoscaling set-desired-capacity --auto-scaling-group-name "$TRAIN_CLOUD_AUTOSCALING_GROUP" --desired-capacity 0
}

# Without a decrement: the group sends another machine.
terminate() {
	aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$instance" \
		--no-should-decrement-desired-capacity >/dev/null
}

# Before driver and pip: a machine that was started for a run that is over goes at once.
leave_if_over() {
	local ended
	ended=$(retry 120 outcome)
	[ -n "$ended" ] || return 0
	say "the run is over: $ended"
	retry 600 set_capacity_0
	exit 0
}

# mark_failed REASON: the outcome "failed" in the head, as train_cloud/run/head.py would swap it in.
mark_failed() {
	local ended before etag now=$root/run/train-cloud/head.json
	ended=$(outcome) && before=$(keys head.json) || return
	[ -z "$ended" ] || return 0
	if [ -n "$before" ]; then
		etag=$(aws s3api get-object --bucket "$bucket" --key "$run/head.json" "$now" --query ETag --output text) || return
	else
		echo '{"session": 0, "restart": 0, "seq": -1}' >"$now"
	fi
	python3 - "$now" "$instance" "$1" <<-'PYTHON' || return
		import json, sys, uuid
		path, owner, reason = sys.argv[1:]
		head = {"owner": owner, **json.load(open(path))}
		head.pop("crc32", None)
		head.update(commit=uuid.uuid4().hex, seq=head["seq"] + 1, outcome="failed", reason=reason)
		json.dump(head, open(path, "w"))
	PYTHON
	if [ -n "$before" ]; then
		aws s3api put-object --bucket "$bucket" --key "$run/head.json" --if-match "$etag" --body "$now" >/dev/null
	else
		create head.json --body "$now"
	fi
}

# Failed boots since the last one that reached its end; a machine that was taken away in mid-boot left no word.
failures() { keys boots/ | awk '/-ready$/ { n = 0 } /-failed$/ { n++ } END { print n + 0 }'; }

# By a spot interruption, by its group, or because it is being powered off.
taken_away() {
	imds spot/instance-action || [ "$(imds autoscaling/target-lifecycle-state)" = Terminated ] ||
		[ "$(systemctl is-system-running)" = stopping ]
}

give_up() {
	local count away=
	set +e
	say "this boot failed"
	if [ -n "${boot:-}" ]; then
		taken_away &>/dev/null && away=yes && say "the machine is being taken away: that counts for nothing"
		retry 60 aws s3 cp --only-show-errors "$log" "s3://$bucket/$run/logs/boot-${boot#boots/}.log"
		[ -n "$away" ] || retry 60 create "$boot-failed"
		if [ -z "$away" ] && count=$(retry 60 failures) && ((count >= TRAIN_CLOUD_MAX_ATTEMPTS)); then
			say "the $count. failure in a row: giving the run up"
			retry 300 mark_failed "$count boots in a row failed; see logs/boot-${boot#boots/}.log"
			retry 600 set_capacity_0 && tell_failed "$count boots in a row failed" && return
		else
			retry 300 terminate && return
		fi
	fi
	# Nothing answers. The launch template turns a power-off into a termination, and the group sends another machine.
	systemctl poweroff
}

at_exit() {
	trap - EXIT ERR
	(($1 == 0)) || give_up
	exit "$1"
}

# From here on, whatever goes wrong ends in give_up: a failed command, an unset variable, a time-out's SIGTERM.
guard() {
	trap 'say "line $LINENO: $BASH_COMMAND"' ERR
	trap 'exit 143' TERM
	trap 'at_exit $?' EXIT
}
