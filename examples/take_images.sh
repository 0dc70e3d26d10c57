#!/bin/bash
# A command for nbdpull run: makes an image of each disk, images/ID/DISK.raw, of the blocks of this backup and of the
# images of the backup that it starts from.
#
#   nbdpull run vm1 --since vm1.token --token vm1.token -- examples/take_images.sh
set -euo pipefail

new=images/$NBDPULL_RUN_ID base=images/$NBDPULL_SINCE
mkdir -p "$new"
value() { # of the disk, such as NBDPULL_VDA_URI
    local name=NBDPULL_${disk^^}_$1
    echo "${!name}"
}
for disk in $NBDPULL_DISKS; do
    image=$new/$disk.raw
    if [ "$(value MODE)" = full ]; then
        nbdcopy "$(value URI)" "$image"
    else
        cp --reflink=auto --sparse=always "$base/$disk.raw" "$image"
        truncate --size="$(value SIZE)" "$image"
        image=$image extents=$(value EXTENTS) uri=$(value URI) nbdsh --command '
import os
h.set_uri_allow_local_file(True)  # with --tls, the URI names the certificates
h.connect_uri(os.environ["uri"])
with open(os.environ["image"], "r+b") as image, open(os.environ["extents"]) as extents:
    for offset, length, kind in map(str.split, extents):
        for at in range(int(offset), int(offset) + int(length), 1 << 20):
            size = min(1 << 20, int(offset) + int(length) - at)
            data = h.pread(size, at) if kind == "data" else bytes(size)
            image.seek(at)
            if image.read(size) != data:
                image.seek(at)
                image.write(data)
'
    fi
    sync "$image"
done
sync "$new" images
