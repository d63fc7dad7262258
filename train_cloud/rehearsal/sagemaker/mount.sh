#!/bin/sh
# mount.sh FOLDER PLACE COMMAND…: in the mount namespace that this was started in, FOLDER is seen as PLACE (/opt/ml), and the
# rest of PLACE's parent as it is outside. Nothing is made outside. Then COMMAND takes the place of this process.
set -eu
folder=$1 place=$2
shift 2
parent=$(dirname "$place")
view=$(mktemp -d)
mount -t tmpfs tmpfs "$view"
for entry in "$parent"/*; do
	[ -e "$entry" ] || continue
	[ "$entry" != "$place" ] || continue
	target=$view/$(basename "$entry")
	if [ -d "$entry" ]; then mkdir "$target"; else : >"$target"; fi
	mount --rbind "$entry" "$target"
done
mkdir "$view/$(basename "$place")"
mount --rbind "$folder" "$view/$(basename "$place")"
mount --rbind "$view" "$parent"
umount -l "$view"
rmdir "$view"
exec "$@"
