#!/usr/bin/env bash
# Sets up what only the head of cluster.yaml has: MLflow with PostgreSQL and an object store, and the way to Ray's dashboard.
# Both listen on 127.0.0.1 alone: whoever may open a shell on the head may forward their ports. May run again.
#
#   head.sh ARTIFACTS        such as s3://bucket/folder
set -euo pipefail
artifacts=$1

sudo DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql socat

# PostgreSQL on its Unix socket only, where the operating system says who asks: there is no password to keep.
cd /
sudo -u postgres psql -q -c "ALTER SYSTEM SET listen_addresses = ''"
sudo systemctl restart postgresql
sudo -u postgres psql -tAc "SELECT 1 FROM pg_roles WHERE rolname = '$USER'" | grep -q 1 || sudo -u postgres createuser "$USER"
sudo -u postgres psql -tAc "SELECT 1 FROM pg_database WHERE datname = 'mlflow'" | grep -q 1 \
    || sudo -u postgres createdb --owner "$USER" mlflow

sudo tee /etc/systemd/system/mlflow.service > /dev/null <<UNIT
[Unit]
Description=MLflow's tracking server
After=network-online.target postgresql.service
Wants=network-online.target

[Service]
User=$USER
Environment=MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
ExecStart=$HOME/venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 2 \\
    --backend-store-uri postgresql:///mlflow?host=/var/run/postgresql \\
    --artifacts-destination $artifacts --allowed-hosts 127.0.0.1:5000,localhost:5000
Restart=always
RestartSec=5
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
UNIT

# Ray's dashboard listens on the head's private address, for the workers; `ray attach --port-forward` asks 127.0.0.1.
sudo tee /etc/systemd/system/ray-dashboard.service > /dev/null <<UNIT
[Unit]
Description=127.0.0.1:8265 to Ray's dashboard
After=network-online.target
Wants=network-online.target

[Service]
User=$USER
ExecStart=/bin/bash -c 'exec socat TCP-LISTEN:8265,bind=127.0.0.1,fork,reuseaddr TCP:\$\$(hostname -I | cut -d" " -f1):8265'
Restart=always
RestartSec=5
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
UNIT

sudo systemctl daemon-reload
sudo systemctl enable mlflow ray-dashboard
sudo systemctl restart mlflow ray-dashboard
