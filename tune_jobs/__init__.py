"""Studies on Ray: YAML to stages, stages to findings, findings to MLflow.

The only room that knows ray, optuna and mlflow.
"""
