#!/usr/bin/env bash
# Sets up a node of cluster.yaml: the shared file system at /mnt/shared, intermoco in ~/venv. May run again.
#
#   node.sh NFS_SERVER
set -euo pipefail
server=$1

chmod 700 ~/.ray
chmod 600 ~/.ray/auth_token

sudo apt-get update -q
sudo DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nfs-common python3-venv

sudo mkdir -p /mnt/shared
if ! grep -q ' /mnt/shared ' /etc/fstab; then
    # hard: a server that is away for a while makes writers wait, and fails none of them
    options=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,_netdev
    echo "$server:/ /mnt/shared nfs4 $options 0 0" | sudo tee -a /etc/fstab
fi
mountpoint -q /mnt/shared || sudo mount /mnt/shared
sudo install -d -m 750 -o "$USER" -g "$USER" /mnt/shared/data /mnt/shared/runs

[ -x ~/venv/bin/python ] || python3 -m venv ~/venv
wheel=$(echo ~/intermoco/intermoco-*-py3-none-any.whl)
~/venv/bin/pip install --quiet --constraint ~/intermoco/constraints.txt "intermoco[cluster] @ file://$wheel"

# read by Ray's commands, by `ray attach` and `ray exec`
settings='export PATH="$HOME/venv/bin:$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0'
grep -qxF "$settings" ~/.bashrc || echo "$settings" >> ~/.bashrc
