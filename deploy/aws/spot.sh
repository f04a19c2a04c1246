#!/usr/bin/env bash
# Starts the service that tells Ray when AWS is about to take this node away. May run again.
set -euo pipefail

sudo tee /etc/systemd/system/spot-notice.service > /dev/null <<UNIT
[Unit]
Description=Tells Ray of a spot interruption
After=network-online.target
Wants=network-online.target

[Service]
User=$USER
Environment=RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ExecStart=/bin/bash -c 'exec $HOME/venv/bin/python $HOME/intermoco/deploy/spot_notice.py \$\$(hostname -I | cut -d" " -f1)'
Restart=on-failure
RestartSec=5
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
UNIT

sudo systemctl daemon-reload
sudo systemctl enable spot-notice
sudo systemctl restart spot-notice
