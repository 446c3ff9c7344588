#!/bin/sh
# First program of the lab host: puts a writable layer over its root disk and continues there.
export PATH=/bin
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules
mount -t tmpfs -o mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t ext4 -o ro /dev/vda /lower
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /new
exec switch_root /new /lab-init
