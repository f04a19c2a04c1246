"""Search for better intermediate losses: Optuna suggests, Ray Tune runs the trials, each trial is a pretrain stage."""
